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
"""What a checkpoint holds, layer by layer, and how its numbers are spread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.model import Checkpoint, MoELayerInfo
from w4afp8.checkpoint.native_layout import packed_bytes
from w4afp8.checkpoint.progress import show_progress
from w4afp8.quant import QuantizedWeight
from w4afp8.quant.codes import split_nibbles
from w4afp8.quant.mxfp4 import E8M0_BIAS

_MINUS_8 = 8  # the code of -8 in two's complement


@dataclass(frozen=True)
class LayerSummary:
    """One mixture-of-experts layer.

    Attributes:
        layer: index of the layer in the model.
        experts: number of experts.
        hidden_size: features of a token.
        intermediate_size: features between the projections.
        weight_format: "int4" or "mxfp4".
        group_size: weights along in_features that share a scale, -1 one per output channel.
        activation: as W4AFP8MoEFFN names it.
        has_bias: whether the projections have biases.
        hadamard_block_size: see `w4afp8.checkpoint.MoELayerInfo`.
        smallest_scale: of the groups that hold a weight other than 0.
        largest_scale: of those groups.
        share_of_minus_8: share of the codes that are -8, which sign and magnitude cannot hold; None
            for mxfp4.
        exponent_spread: largest difference of the scales' binary exponents in one output channel.
        packed_bytes: of the packed weights and scales in memory.
        error: root of the mean squared quantisation error relative to the weights', the largest of
            the experts; 0 where the checkpoint's weights are in 4 bits already.
    """

    layer: int
    experts: int
    hidden_size: int
    intermediate_size: int
    weight_format: str
    group_size: int
    activation: str
    has_bias: bool
    hadamard_block_size: int
    smallest_scale: float | None
    largest_scale: float | None
    share_of_minus_8: float | None
    exponent_spread: int
    packed_bytes: int
    error: float


@dataclass(frozen=True)
class CheckpointSummary:
    """A whole checkpoint.

    Attributes:
        path: where it is.
        format: name of the format.
        file_bytes: of all its safetensors files, whatever they hold.
        layers: its mixture-of-experts layers.
    """

    path: str
    format: str
    file_bytes: int
    layers: tuple[LayerSummary, ...]


def inspect(checkpoint: Checkpoint, *, progress: bool = True) -> CheckpointSummary:
    """Reads every expert and sums up what is there.

    Args:
        checkpoint: an open checkpoint.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: a tensor cannot be read.

    Examples:
        >>> import numpy as np, tempfile
        >>> from safetensors.numpy import save_file
        >>> from w4afp8.checkpoint import inspect, open_checkpoint
        >>> shapes = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
        >>> weights = {
        ...     f"model.layers.0.mlp.experts.0.{name}.weight": np.ones(shape, np.float32)
        ...     for name, shape in shapes.items()
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(weights, f"{folder}/model.safetensors")
        ...     summary = inspect(open_checkpoint(folder), progress=False)
        >>> summary.layers[0].weight_format, summary.layers[0].share_of_minus_8
        ('int4', 0.0)
    """
    with show_progress(
        "inspect", sum(layer.experts for layer in checkpoint.layers), shown=progress
    ) as advance:
        layers = tuple(_summarise(checkpoint, layer, advance) for layer in checkpoint.layers)
    return CheckpointSummary(
        path=str(checkpoint.path),
        format=checkpoint.format,
        file_bytes=_file_bytes(checkpoint.path),
        layers=layers,
    )


def _summarise(checkpoint: Checkpoint, layer: MoELayerInfo, advance: Any) -> LayerSummary:
    spread, error = _Spread(), 0.0
    for expert in range(layer.experts):
        weights = checkpoint.read_expert(layer, expert)
        for weight in (weights.up_gate, weights.down):
            spread.add(weight)
        error = max(error, weights.error)
        checkpoint.release()
        advance()
    return LayerSummary(
        layer=layer.index,
        experts=layer.experts,
        hidden_size=layer.hidden_size,
        intermediate_size=layer.intermediate_size,
        weight_format=layer.weight_format,
        group_size=layer.group_size,
        activation=layer.activation,
        has_bias=layer.has_bias,
        hadamard_block_size=layer.hadamard_block_size,
        smallest_scale=spread.smallest,
        largest_scale=spread.largest,
        share_of_minus_8=spread.share_of_minus_8 if layer.weight_format == "int4" else None,
        exponent_spread=spread.exponents,
        packed_bytes=packed_bytes(layer),
        error=error,
    )


class _Spread:
    """Extremes over all weights that are added."""

    def __init__(self) -> None:
        self.smallest: float | None = None
        self.largest: float | None = None
        self.exponents = 0
        self._codes = 0
        self._minus_8 = 0

    @property
    def share_of_minus_8(self) -> float:
        return self._minus_8 / self._codes if self._codes else 0.0

    def add(self, weight: QuantizedWeight) -> None:
        codes = split_nibbles(weight.codes[0])
        self._codes += codes.size
        self._minus_8 += int((codes == _MINUS_8).sum())
        scale, exponent = scales_and_exponents(weight)
        used = _groups_in_use(codes, weight)
        if used.any():
            smallest, largest = float(scale[used].min()), float(scale[used].max())
            self.smallest = smallest if self.smallest is None else min(self.smallest, smallest)
            self.largest = largest if self.largest is None else max(self.largest, largest)
            self.exponents = max(self.exponents, _largest_spread(exponent, used))


def scales_and_exponents(
    weight: QuantizedWeight,
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Scales of the one expert of `weight` as float32 ``[out, groups]``, and their exponents.

    An exponent is ``floor(log2(scale))``.
    """
    scale = weight.scale[0].reshape(weight.out_features, -1)
    if weight.weight_format == "mxfp4":
        exponent = scale.astype(np.int32) - E8M0_BIAS
        return np.ldexp(np.float32(1), exponent), exponent
    return scale, np.frexp(scale)[1] - 1


def _groups_in_use(codes: NDArray[np.uint8], weight: QuantizedWeight) -> NDArray[np.bool_]:
    """``[out, groups]``: whether a group has a weight other than 0, so that its scale counts."""
    magnitude = codes if weight.weight_format == "int4" else codes & np.uint8(7)
    groups = weight.scale[0].reshape(weight.out_features, -1).shape[1]
    used: NDArray[np.bool_] = (magnitude.reshape(weight.out_features, groups, -1) != 0).any(axis=2)
    return used


def _largest_spread(exponent: NDArray[np.int32], used: NDArray[np.bool_]) -> int:
    limit = np.iinfo(np.int32)
    high = np.where(used, exponent, limit.min).max(axis=1)
    low = np.where(used, exponent, limit.max).min(axis=1)
    rows = used.any(axis=1)
    return int((high[rows] - low[rows]).max())


def _file_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)
