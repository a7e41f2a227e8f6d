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
"""gpt-oss: MXFP4 with all experts of a layer in one tensor, gate and up row by row.

Layout: https://github.com/openai/gpt-oss, as the Hugging Face checkpoints of it have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.config import Config
from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.experts import layer_index
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.model import Checkpoint, ExpertWeights, MoELayerInfo, RouterWeights
from w4afp8.checkpoint.numbers import FLOATS, read_e8m0_of, read_floats_of
from w4afp8.checkpoint.router import read_router
from w4afp8.quant import QuantizedWeight
from w4afp8.quant.weights import MXFP4_GROUP_SIZE

_NAME = re.compile(r"(.+)\.experts\.(?:gate_up|down)_proj_(?:blocks|scales)")
_BYTES = MXFP4_GROUP_SIZE // 2


class GptOss(Checkpoint):
    """``{prefix}.experts.{gate_up,down}_proj_{blocks,scales,bias}``.

    ``blocks`` uint8 ``[experts, out, in / 32, 16]``, the low nibble is the even in_feature;
    ``scales`` E8M0 uint8 ``[experts, out, in / 32]``; ``bias`` ``[experts, out]``. The rows of
    gate_up are gate 0, up 0, gate 1, up 1, ...

    Args:
        files: its tensors.
        config: beside it.
        prefixes: of the layers.

    Raises:
        CheckpointError: tensors are missing, or their types and shapes are not the format's.
    """

    format = "gpt-oss"

    def __init__(self, files: SafetensorsFiles, config: Config, prefixes: Iterable[str]) -> None:
        self.path = files.path
        self._files = files
        self._config = config
        layers = (_describe(files, config, prefix) for prefix in prefixes)
        self.layers = tuple(sorted(layers, key=lambda layer: (layer.index, layer.prefix)))

    def read_expert(self, layer: MoELayerInfo, expert: int) -> ExpertWeights:
        if not 0 <= expert < layer.experts:
            raise CheckpointError(
                self.path, f"expert: expected 0 to {layer.experts - 1}, got {expert}"
            )
        up_gate = f"{layer.prefix}.experts.gate_up_proj"
        down = f"{layer.prefix}.experts.down_proj"
        return ExpertWeights(
            up_gate=self._weight(up_gate, expert, interleaved=True),
            down=self._weight(down, expert, interleaved=False),
            up_gate_bias=gate_first(read_floats_of(self._files, f"{up_gate}_bias", expert)),
            down_bias=read_floats_of(self._files, f"{down}_bias", expert),
        )

    def read_router(self, layer: MoELayerInfo) -> RouterWeights | None:
        return read_router(self._files, self._config, layer)

    def release(self) -> None:
        self._files.release()

    def _weight(self, name: str, expert: int, *, interleaved: bool) -> QuantizedWeight:
        blocks = self._files.view(f"{name}_blocks")[expert]
        codes = blocks.reshape(len(blocks), -1)
        scale = read_e8m0_of(self._files, f"{name}_scales", expert)
        arrange = gate_first if interleaved else np.array
        return QuantizedWeight(arrange(codes)[None], arrange(scale)[None], "mxfp4")


def find_prefixes(files: SafetensorsFiles) -> list[str]:
    """Of the layers that are spelled like this, or in part."""
    matches = (_NAME.fullmatch(name) for name in files.tensors)
    return sorted({match[1] for match in matches if match is not None})


def gate_first(rows: NDArray) -> NDArray:
    """Rows gate 0, up 0, gate 1, ... to all gates, then all ups."""
    return np.concatenate([rows[0::2], rows[1::2]])


def _describe(files: SafetensorsFiles, config: Config, prefix: str) -> MoELayerInfo:
    up_gate, down = f"{prefix}.experts.gate_up_proj", f"{prefix}.experts.down_proj"
    shape = (None, None, None, _BYTES)
    experts, rows, groups, _ = files.expect(f"{up_gate}_blocks", ("U8",), shape).shape
    config.check_experts(prefix, experts)
    if rows % 16:
        raise files.error(f"{up_gate}_blocks", f"expected 16 * n rows of gate and up, got {rows}")
    hidden, intermediate = groups * MXFP4_GROUP_SIZE, rows // 2
    if intermediate % MXFP4_GROUP_SIZE:
        raise files.error(
            f"{up_gate}_blocks", f"expected {MXFP4_GROUP_SIZE} * n rows of gate, got {rows // 2}"
        )
    down_groups = intermediate // MXFP4_GROUP_SIZE
    files.expect(f"{down}_blocks", ("U8",), (experts, hidden, down_groups, _BYTES))
    for name, out, in_groups in ((up_gate, rows, groups), (down, hidden, down_groups)):
        files.expect(f"{name}_scales", ("U8", "F8_E8M0"), (experts, out, in_groups))
        files.expect(f"{name}_bias", FLOATS, (experts, out))
    return MoELayerInfo(
        index=layer_index(prefix),
        prefix=prefix,
        experts=experts,
        hidden_size=hidden,
        intermediate_size=intermediate,
        weight_format="mxfp4",
        group_size=MXFP4_GROUP_SIZE,
        activation=config.oai_activation(),
        has_bias=True,
    )
