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
"""Reads the routers of checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.config import Config
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.model import MoELayerInfo, RouterWeights
from w4afp8.checkpoint.numbers import FLOATS, read_floats

_CORRECTION_BIASES = ("gate.e_score_correction_bias", "moe_statics.e_score_correction_bias")


def read_router(
    files: SafetensorsFiles, config: Config, layer: MoELayerInfo
) -> RouterWeights | None:
    """The router of a layer, by the names that the ecosystems give it.

    Args:
        files: of the checkpoint.
        config: beside it.
        layer: whose router.

    Returns:
        Its weights; None where there is no ``gate.weight`` or ``router.weight``.

    Raises:
        CheckpointError: a tensor is of another type or shape, or the config of another type.
    """
    prefix = layer.prefix
    for part in ("gate", "router"):
        name = f"{prefix}.{part}.weight"
        if name in files.tensors:
            break
    else:
        return None
    bias = f"{prefix}.{part}.bias"
    correction = (f"{prefix}.{suffix}" for suffix in _CORRECTION_BIASES)
    correction_bias = next((name for name in correction if name in files.tensors), None)
    return RouterWeights(
        weight=_weight(files, name, layer),
        bias=_per_expert(files, bias, layer) if bias in files.tensors else None,
        correction_bias=(
            None if correction_bias is None else _per_expert(files, correction_bias, layer)
        ),
        options=config.router_options(),
        limits_groups=config.limits_groups,
    )


def _weight(files: SafetensorsFiles, name: str, layer: MoELayerInfo) -> NDArray[np.float32]:
    """``[hidden, experts]``, from that (Paddle's order) or from ``[experts, hidden]``."""
    of_paddle = (layer.hidden_size, layer.experts)
    shape = files.info(name).shape
    if shape != of_paddle or layer.hidden_size == layer.experts:
        files.expect(name, FLOATS, of_paddle[::-1])
        return np.ascontiguousarray(read_floats(files, name).T)
    files.expect(name, FLOATS, of_paddle)
    return read_floats(files, name)


def _per_expert(files: SafetensorsFiles, name: str, layer: MoELayerInfo) -> NDArray[np.float32]:
    shape: tuple[Any, ...] = (layer.experts,)
    if len(files.info(name).shape) == 2:  # ERNIE's
        shape = (1, layer.experts)
    files.expect(name, FLOATS, shape)
    return read_floats(files, name).reshape(-1)
