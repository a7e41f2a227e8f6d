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
"""``kv_b_proj`` of multi-head latent attention in a checkpoint, and the layer made of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.config import Config
from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.experts import layer_index
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.formats.plain import Fp8Block, Plain, Quantization
from w4afp8.checkpoint.numbers import FLOATS, read_e8m0
from w4afp8.layers.mla import MLAUpProjections, shard_heads
from w4afp8.quant.kv_b_source import LARGEST_SCALE
from w4afp8.quant.weights import MXFP4_GROUP_SIZE

_LOG = logging.getLogger("w4afp8.checkpoint")
_PROJECTION = "kv_b_proj"
_NAME = re.compile(rf"(?P<prefix>(?:.+\.)?{_PROJECTION})\.(?P<field>\w+)", re.ASCII)
_WEIGHTS = ("weight_packed", "weight")


@dataclass(frozen=True, eq=False)
class KvBProj:
    """One ``kv_b_proj``, or the rows of some of its heads.

    Attributes:
        prefix: what its tensors' names begin with, "model.layers.3.self_attn.kv_b_proj".
        weight: uint8 ``[heads * (nope + v), lora / 2]`` (E2M1, the low nibble first), or float32
            ``[.., lora]``.
        scale: uint8 E8M0 ``[.., lora / 32]``, or None beside floats.
        heads: how many.
        nope: rows of W_K of a head.
        v: rows of W_V of a head.
    """

    prefix: str
    weight: NDArray[Any]
    scale: NDArray[np.uint8] | None
    heads: int
    nope: int
    v: int


def read_kv_b_proj(
    source: str | Path | SafetensorsFiles, *, layer: int | str, rank: int = 0, world_size: int = 1
) -> KvBProj:
    """Reads one ``kv_b_proj``: MXFP4 as it is, FP8 blocks and floats as float32, exactly.

    MXFP4 is ``weight`` (Quark) or ``weight_packed`` (compressed-tensors) beside ``weight_scale``;
    FP8 blocks are ``weight`` beside ``weight_scale_inv``. The config tells the number of heads and
    their features: num_attention_heads, qk_nope_head_dim, v_head_dim, kv_lora_rank.

    Args:
        source: a checkpoint, or the path of one.
        layer: index of the layer, or the projection's prefix.
        rank: of this process under tensor parallelism; it gets the heads
            ``[rank * heads / world_size, (rank + 1) * heads / world_size)``.
        world_size: number of processes, a divisor of the number of heads.

    Returns:
        KvBProj: of this rank's heads.

    Raises:
        CheckpointError: there is no such projection, or its type, shape, values or the config are
            wrong.
        ValueError: rank or world_size are wrong.
    """
    files = source if isinstance(source, SafetensorsFiles) else SafetensorsFiles(source)
    config = Config(files.path)
    prefix, fields = _find(files, layer)
    heads, nope, v, lora = (
        _size(config, key)
        for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank")
    )
    mine = shard_heads(heads, rank, world_size)
    rows = slice(mine.start * (nope + v), mine.stop * (nope + v))
    weight, scale = _read(files, config, fields, heads * (nope + v), lora)
    return KvBProj(
        prefix,
        np.ascontiguousarray(weight[rows]),
        None if scale is None else np.ascontiguousarray(scale[rows]),
        *(len(mine), nope, v),
    )


def load_mla_up(
    source: str | Path | SafetensorsFiles,
    *,
    layer: int | str,
    rank: int = 0,
    world_size: int = 1,
    dtype: str = "bfloat16",
    place: Any = None,
) -> MLAUpProjections:
    """Loads the up projections of one attention layer.

    Where the checkpoint's ``kv_b_proj`` is not in 4 bits it is rounded, once, and the error is
    logged as a warning of the logger "w4afp8.checkpoint"; `MLAUpProjections.error` holds it too.

    Args:
        source: a checkpoint, or the path of one.
        layer: index of the layer, or the prefix ("model.layers.3.self_attn.kv_b_proj").
        rank: of this process under tensor parallelism.
        world_size: number of processes, a divisor of the number of heads.
        dtype: "bfloat16" or "float16", of the activations.
        place: where the layer shall be; None for Paddle's current device.

    Returns:
        MLAUpProjections: the checkpoint's own codes and scales, bit for bit, where it is MXFP4.

    Raises:
        CheckpointError: see `read_kv_b_proj`.
        ValueError: an argument is wrong, or the operators cannot do such sizes.

    Examples:
        >>> import json, numpy as np, tempfile
        >>> from pathlib import Path
        >>> from safetensors.numpy import save_file
        >>> from w4afp8.checkpoint import load_mla_up
        >>> config = {"num_attention_heads": 4, "kv_lora_rank": 256}
        >>> config |= {"qk_nope_head_dim": 64, "v_head_dim": 64}
        >>> name = "model.layers.0.self_attn.kv_b_proj"
        >>> weight, scale = np.zeros([512, 128], np.uint8), np.full([512, 8], 127, np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "config.json").write_text(json.dumps(config))
        ...     tensors = {f"{name}.weight": weight, f"{name}.weight_scale": scale}
        ...     save_file(tensors, f"{folder}/model.safetensors")
        ...     load_mla_up(folder, layer=0, rank=1, world_size=2).heads
        2
    """
    found = read_kv_b_proj(source, layer=layer, rank=rank, world_size=world_size)
    made = MLAUpProjections.from_kv_b_proj(
        found.weight,
        found.scale,
        heads=found.heads,
        nope=found.nope,
        v=found.v,
        dtype=dtype,
        place=place,
    )
    if found.scale is None:
        path = source.path if isinstance(source, SafetensorsFiles) else source
        error = made.error
        _LOG.warning(
            "%s: %s: rounded to 4 bits, relative error %.4f of W_K and %.4f of W_V",
            *(path, found.prefix, error.k, error.v),
        )
    return made


def _find(files: SafetensorsFiles, layer: int | str) -> tuple[str, Mapping[str, str]]:
    """The prefix of a layer's projection, and the tensor of each of its fields."""
    found: dict[str, dict[str, str]] = {}
    for name in files.tensors:
        match = _NAME.fullmatch(name)
        if match is not None:
            found.setdefault(match["prefix"], {})[match["field"]] = name
    key = (lambda prefix: prefix) if isinstance(layer, str) else layer_index
    fitting = [prefix for prefix in found if key(prefix) == layer]
    if len(fitting) != 1:
        ordered = sorted(found, key=lambda prefix: (layer_index(prefix), prefix))
        names = ", ".join(f"{layer_index(p)} ({p})" for p in ordered[:8]) or "none"
        raise CheckpointError(
            files.path, f"layer: expected one of those with {_PROJECTION}, {names}, got {layer!r}"
        )
    return fitting[0], found[fitting[0]]


def _size(config: Config, key: str) -> int:
    value = config.model.get(key)
    if type(value) is not int or value <= 0:
        raise config.error(key, f"expected a positive integer, got {value!r:.80}")
    return value


def _read(
    files: SafetensorsFiles, config: Config, fields: Mapping[str, str], rows: int, lora: int
) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Weight and scale of all heads."""
    field = next((name for name in _WEIGHTS if name in fields), None)
    if field is None:
        anyone = next(iter(fields.values()))
        raise files.error(anyone, "expected weight or weight_packed beside it, got none")
    name = fields[field]
    dtype = files.info(name).dtype
    if dtype == "U8":
        files.expect(name, ("U8",), (rows, lora // 2))
        scale = fields.get("weight_scale", f"{name.rpartition('.')[0]}.weight_scale")
        files.expect(scale, ("U8", "F8_E8M0"), (rows, lora // MXFP4_GROUP_SIZE))
        return files.view(name), _checked(files, scale)
    if dtype != "F8_E4M3" and dtype not in FLOATS:
        raise files.error(name, f"expected U8 (MXFP4), F8_E4M3 or floats, got {dtype}")
    kind = Fp8Block if dtype == "F8_E4M3" else Plain
    reader = kind(files, config, Quantization(weight_format="mxfp4"))
    reader.check_fields(fields)
    reader.describe(fields)
    files.expect(name, reader.dtypes, (rows, lora))
    return reader.values(fields), None


def _checked(files: SafetensorsFiles, name: str) -> NDArray[np.uint8]:
    """E8M0 scales whose weights bfloat16 can hold."""
    scale = read_e8m0(files, name)
    too_large = np.argwhere(scale > LARGEST_SCALE)
    if len(too_large):
        row, group = (int(i) for i in too_large[0])
        raise files.error(
            name,
            f"expected E8M0 bytes of 0..{LARGEST_SCALE} (beyond, a weight is no bfloat16 number), "
            f"got {int(scale[row, group])} at {[row, group]}",
        )
    return scale
