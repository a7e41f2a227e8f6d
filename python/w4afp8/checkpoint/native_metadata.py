# Copyright (c) 2026 PaddlePaddle Authors. All Rights Reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The metadata of the native format: strings in a safetensors header."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.model import MoELayerInfo, RouterWeights
from w4afp8.checkpoint.native_layout import NATIVE_FORMAT, NATIVE_VERSION
from w4afp8.layers.checks import MAX_EXPERTS, check_hadamard
from w4afp8.layers.experts import Activation
from w4afp8.layers.router import Scoring
from w4afp8.quant import ScaleDtype, WeightFormat
from w4afp8.quant.weights import check_group_size

_LARGEST_SIZE = 1 << 24  # of features: what a header may claim
_TYPES: dict[str, type] = {
    "index": int,
    "prefix": str,
    "experts": int,
    "hidden_size": int,
    "intermediate_size": int,
    "weight_format": str,
    "group_size": int,
    "scale_dtype": str,
    "activation": str,
    "has_bias": bool,
    "hadamard_block_size": int,
    "exact": bool,
}
_ADDED_FIELDS = {"hadamard_block_size": -1}  # since the first files were written, and their values
_CHOICES = {"weight_format": WeightFormat, "scale_dtype": ScaleDtype, "activation": Activation}
_ROUTER_TYPES = {
    **{"scoring": str, "norm_topk_prob": bool, "routed_scaling_factor": float},
    **{"n_group": int, "topk_group": int},
}


@dataclass(frozen=True)
class Source:
    """What a layer was converted from.

    Attributes:
        format: of the source.
        name: of its file or folder.
        sha256: of the layer's numbers, see `w4afp8.checkpoint.native_writer.update_digest`.
    """

    format: str
    name: str
    sha256: str


@dataclass(frozen=True)
class NativeMetadata:
    """What a file's header says besides its tensors.

    Attributes:
        layer: the layer that the file holds.
        source: what it was converted from.
        router: "options" of the layer and whether the router "limits_groups", where it has one.
    """

    layer: MoELayerInfo
    source: Source
    router: dict[str, Any] | None


def native_metadata(
    layer: MoELayerInfo, source: Source, router: RouterWeights | None
) -> dict[str, str]:
    """The strings that `read_metadata` reads."""
    metadata = {
        "format": NATIVE_FORMAT,
        "version": NATIVE_VERSION,
        "layer": json.dumps(dataclasses.asdict(layer), sort_keys=True),
        "source": json.dumps(dataclasses.asdict(source), sort_keys=True),
    }
    if router is not None:
        options = {"options": dict(router.options), "limits_groups": router.limits_groups}
        metadata["router"] = json.dumps(options, sort_keys=True)
    return metadata


def read_metadata(file: Path, metadata: Mapping[str, str]) -> NativeMetadata:
    """Checks and reads a file's metadata.

    Args:
        file: named in errors.
        metadata: of its header.

    Raises:
        CheckpointError: the file is of another format or version, or an entry is not what it must
            be.
    """
    if metadata.get("format") != NATIVE_FORMAT:
        raise CheckpointError(
            file, f"format: expected {NATIVE_FORMAT!r}, got {metadata.get('format')!r:.80}"
        )
    if metadata.get("version") != NATIVE_VERSION:
        raise CheckpointError(
            file,
            f"version: expected {NATIVE_VERSION!r} (convert the original checkpoint again), "
            f"got {metadata.get('version')!r:.80}",
        )
    source = _object(file, metadata, "source")
    _expect_types(file, "source", source, {"format": str, "name": str, "sha256": str})
    router = _object(file, metadata, "router") if "router" in metadata else None
    if router is not None:
        _check_router(file, router)
    return NativeMetadata(_layer(file, metadata), Source(**source), router)


def _layer(file: Path, metadata: Mapping[str, str]) -> MoELayerInfo:
    fields = {**_ADDED_FIELDS, **_object(file, metadata, "layer")}
    _expect_types(file, "layer", fields, _TYPES)
    for name, choices in _CHOICES.items():
        if fields[name] not in get_args(choices):
            raise CheckpointError(
                file, f"layer.{name}: expected one of {get_args(choices)}, got {fields[name]!r:.80}"
            )
    limits = {"experts": MAX_EXPERTS, "hidden_size": _LARGEST_SIZE}
    for name, limit in (limits | {"intermediate_size": _LARGEST_SIZE}).items():
        if not 1 <= fields[name] <= limit:
            raise CheckpointError(file, f"layer.{name}: expected 1 to {limit}, got {fields[name]}")
    for size in (fields["hidden_size"], fields["intermediate_size"]):
        try:
            group_size = check_group_size(fields["weight_format"], fields["group_size"], size)
        except ValueError as error:
            raise CheckpointError(file, f"layer.{error}") from error
    try:
        check_hadamard(fields["hadamard_block_size"], fields["intermediate_size"])
    except ValueError as error:
        raise CheckpointError(file, f"layer.{error}") from error
    return MoELayerInfo(**{**fields, "group_size": group_size})


def _check_router(file: Path, router: dict[str, Any]) -> None:
    _expect_types(file, "router", router, {"options": dict, "limits_groups": bool})
    options = router["options"]
    _expect_types(file, "router.options", options, {n: _ROUTER_TYPES.get(n) for n in options})
    if options.get("scoring", "softmax") not in get_args(Scoring):
        raise CheckpointError(
            file, f"router.scoring: expected one of {get_args(Scoring)}, got others"
        )


def _object(file: Path, metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(name, "null"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(file, f"{name}: expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(file, f"{name}: expected a JSON object, got {value!r:.80}")
    return value


def _expect_types(
    file: Path, where: str, fields: dict[str, Any], types: Mapping[str, type | None]
) -> None:
    if fields.keys() != types.keys():
        raise CheckpointError(
            file, f"{where}: expected {sorted(types)}, got {sorted(fields)!s:.200}"
        )
    for name, expected in types.items():
        if expected is None or type(fields[name]) is not expected:
            raise CheckpointError(
                file, f"{where}.{name}: expected a known option's type, got {fields[name]!r:.80}"
            )
