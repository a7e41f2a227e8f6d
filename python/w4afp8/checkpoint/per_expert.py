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
"""Checkpoints whose experts have tensors of their own: all formats but gpt-oss's and our own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.config import Config
from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.experts import LayerTensors, Role
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.model import Checkpoint, ExpertWeights, MoELayerInfo, RouterWeights
from w4afp8.checkpoint.numbers import FLOATS, read_floats
from w4afp8.checkpoint.projection import Fields, Projection, ProjectionFormat, ProjectionInfo
from w4afp8.checkpoint.router import read_router
from w4afp8.layers.checks import check_hadamard
from w4afp8.quant import QuantizedWeight
from w4afp8.quant.weights import MXFP4_GROUP_SIZE, check_group_size

_OUT_UNIT = 8  # out_features of the grouped GEMM
Expert = Mapping[Role, Fields]


class PerExpertCheckpoint(Checkpoint):
    """A checkpoint in one of the formats of `w4afp8.checkpoint.formats`.

    Args:
        files: its tensors.
        config: beside it.
        layers: names of the tensors of each layer, and how that layer is spelled.

    Raises:
        CheckpointError: the headers contradict the format, the config or each other.
    """

    def __init__(
        self,
        files: SafetensorsFiles,
        config: Config,
        layers: Sequence[tuple[LayerTensors, ProjectionFormat]],
    ) -> None:
        self.path = files.path
        self.format = " and ".join(dict.fromkeys(reader.name for _, reader in layers))
        self._files = files
        self._config = config
        self._layers = {tensors.prefix: (tensors, reader) for tensors, reader in layers}
        self.layers = tuple(
            _describe_layer(files, config, tensors, reader) for tensors, reader in layers
        )

    def read_expert(self, layer: MoELayerInfo, expert: int) -> ExpertWeights:
        if not 0 <= expert < layer.experts:
            raise CheckpointError(
                self.path, f"expert: expected 0 to {layer.experts - 1}, got {expert}"
            )
        tensors, reader = self._layers[layer.prefix]
        fields = tensors.experts[expert]
        first = [reader.read(fields[role]) for role in _first_roles(fields)]
        down = reader.read(fields["down"])
        parts = (*first, down)
        error, norm = (
            sum(getattr(part, key) for part in parts) for key in ("squared_error", "squared_norm")
        )
        return ExpertWeights(
            up_gate=_weight(first, reader, layer),
            down=_weight([down], reader, layer),
            up_gate_bias=self._bias(fields, _first_roles(fields)) if layer.has_bias else None,
            down_bias=self._bias(fields, ("down",)) if layer.has_bias else None,
            # Gate and up read the same activations: the larger scale covers both.
            up_gate_input_scale=max(
                (
                    scale
                    for role in _first_roles(fields)
                    if (scale := reader.input_scale(fields[role]))
                ),
                default=None,
            ),
            down_input_scale=reader.input_scale(fields["down"]),
            error=math.sqrt(error / norm) if error else 0.0,
        )

    def read_router(self, layer: MoELayerInfo) -> RouterWeights | None:
        return read_router(self._files, self._config, layer)

    def release(self) -> None:
        self._files.release()

    def _bias(self, fields: Expert, roles: Sequence[Role]) -> NDArray[np.float32]:
        return np.concatenate([read_floats(self._files, fields[role]["bias"]) for role in roles])


def _first_roles(fields: Expert) -> tuple[Role, ...]:
    return ("up_gate",) if "up_gate" in fields else ("gate", "up")


def _weight(
    parts: Sequence[Projection], reader: ProjectionFormat, layer: MoELayerInfo
) -> QuantizedWeight:
    scale = _joined([part.scale for part in parts])
    return QuantizedWeight(
        codes=_joined([part.codes for part in parts])[None],
        scale=np.ascontiguousarray(scale[:, 0] if layer.group_size == -1 else scale)[None],
        weight_format=reader.weight_format,
        group_size=layer.group_size,
        scale_dtype=layer.scale_dtype,
    )


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))


def _describe_layer(
    files: SafetensorsFiles, config: Config, tensors: LayerTensors, reader: ProjectionFormat
) -> MoELayerInfo:
    described = [
        {role: _describe_projection(reader, fields) for role, fields in expert.items()}
        for expert in tensors.experts
    ]
    config.check_experts(tensors.prefix, len(tensors.experts))
    hidden, intermediate = _sizes(files, tensors, described)
    every = [
        (fields, infos[role])
        for expert, infos in zip(tensors.experts, described, strict=True)
        for role, fields in expert.items()
    ]
    group_size = _group_size(files, reader, every)
    is_bfloat16 = all(info.scale_dtype == "bfloat16" for _, info in every)
    return MoELayerInfo(
        index=tensors.index,
        prefix=tensors.prefix,
        experts=len(tensors.experts),
        hidden_size=hidden,
        intermediate_size=intermediate,
        weight_format=reader.weight_format,
        group_size=group_size,
        # A scale of a whole channel is packed as float32.
        scale_dtype="bfloat16" if is_bfloat16 and group_size != -1 else "float32",
        activation=config.activation(),
        has_bias=_check_biases(files, every),
        hadamard_block_size=_rotation(config, reader, intermediate),
        exact=reader.exact,
    )


def _rotation(config: Config, reader: ProjectionFormat, intermediate: int) -> int:
    try:
        return check_hadamard(reader.hadamard_block_size, intermediate)
    except ValueError as error:
        raise config.error("quantization_config.hadamard_block_size", str(error)) from error


def _describe_projection(reader: ProjectionFormat, fields: Fields) -> ProjectionInfo:
    reader.check_fields(fields)
    return reader.describe(fields)


def _sizes(
    files: SafetensorsFiles,
    tensors: LayerTensors,
    described: Sequence[Mapping[Role, ProjectionInfo]],
) -> tuple[int, int]:
    """hidden_size and intermediate_size, the same for all experts."""
    down = described[0]["down"]
    hidden, intermediate = down.out_features, down.in_features
    expected = {
        "gate": (intermediate, hidden),
        "up": (intermediate, hidden),
        "up_gate": (2 * intermediate, hidden),
        "down": (hidden, intermediate),
    }
    for expert, infos in zip(tensors.experts, described, strict=True):
        for role, info in infos.items():
            got = (info.out_features, info.in_features)
            if got != expected[role]:
                raise files.error(
                    next(iter(expert[role].values())),
                    f"expected a matrix {list(expected[role])} beside the first expert's down "
                    f"projection {[hidden, intermediate]}, got {list(got)}",
                )
    return hidden, intermediate


def _group_size(
    files: SafetensorsFiles,
    reader: ProjectionFormat,
    every: Sequence[tuple[Fields, ProjectionInfo]],
) -> int:
    """The weights that share a scale, the same for all projections."""
    if reader.weight_format == "mxfp4":
        expected: int | None = MXFP4_GROUP_SIZE
    else:
        expected = next(
            (info.in_features // info.groups for _, info in every if info.groups > 1), None
        )
        if expected is None and all(i.declared_group_size == i.in_features for _, i in every):
            expected = every[0][1].declared_group_size
    for fields, info in every:
        name = fields.get("weight_scale", next(iter(fields.values())))
        if expected is not None and info.groups * expected != info.in_features:
            raise files.error(
                name,
                f"expected {info.in_features / expected:g} scales a row (group size {expected}), "
                f"got {info.groups}",
            )
        try:
            check_group_size(reader.weight_format, expected or -1, info.in_features)
        except ValueError as error:
            raise files.error(name, str(error)) from error
        if info.out_features % _OUT_UNIT:
            raise files.error(
                name, f"out_features: expected a multiple of {_OUT_UNIT}, got {info.out_features}"
            )
    return expected or -1


def _check_biases(files: SafetensorsFiles, every: Sequence[tuple[Fields, ProjectionInfo]]) -> bool:
    """Whether there are biases, for all projections or for none."""
    has_bias = "bias" in every[0][0]
    for fields, info in every:
        if ("bias" in fields) != has_bias:
            message = "expected a bias for all projections or none, got another"
            raise files.error(fields.get("bias", next(iter(fields.values()))), message)
        if has_bias:
            files.expect(fields["bias"], FLOATS, (info.out_features,))
    return has_bias
