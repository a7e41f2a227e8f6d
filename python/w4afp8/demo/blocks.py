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
"""A feed-forward block as a mixture of experts: cut, quantised, and back in the encoder.

A dense block cut along its intermediate channels into experts that every token visits, each with
weight 1, is the dense block: down(gelu(up x)) is a sum over intermediate channels, and the experts
hold its parts. So the float encoder is the truth for the quantised one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor, nn

from w4afp8.demo.encoder import DenseFeedForward
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.quant import QuantizedWeight, Rounding, WeightFormat, dequantize, quantize

EXPERTS = 4


@dataclass(frozen=True)
class Format:
    """One way to store the weights."""

    title: str
    weight_format: WeightFormat
    group_size: int


FORMATS: tuple[Format, ...] = (
    Format("int4 per channel", "int4", -1),
    Format("int4 group 128", "int4", 128),
    Format("MXFP4", "mxfp4", 32),
)


@dataclass(frozen=True)
class ExpertWeights:
    """A block cut into experts, float32.

    up ``[experts, intermediate / experts, hidden]``, down ``[experts, hidden, intermediate /
    experts]``, and their biases. The down bias is expert 0's alone, as it must be added once.
    """

    up: np.ndarray
    up_bias: np.ndarray
    down: np.ndarray
    down_bias: np.ndarray


def cut_into_experts(block: DenseFeedForward, experts: int = EXPERTS) -> ExpertWeights:
    """Cuts a dense block along its intermediate channels."""
    intermediate, hidden = block.up.shape
    if intermediate % experts:
        raise ValueError(f"experts: expected a divisor of {intermediate}, got {experts}")
    channels = intermediate // experts
    down_bias = np.zeros((experts, hidden), dtype=np.float32)
    down_bias[0] = block.down_bias
    return ExpertWeights(
        up=block.up.reshape(experts, channels, hidden),
        up_bias=block.up_bias.reshape(experts, channels),
        down=np.ascontiguousarray(block.down.reshape(hidden, experts, channels).transpose(1, 0, 2)),
        down_bias=down_bias,
    )


@dataclass(frozen=True)
class QuantizedFeedForward:
    """A block cut into experts whose matrices are in 4 bits."""

    up: QuantizedWeight
    down: QuantizedWeight
    parts: ExpertWeights

    def dequantized(self) -> DenseFeedForward:
        """The dense float32 block that these 4-bit weights stand for."""
        up, down = dequantize(self.up), dequantize(self.down)
        return DenseFeedForward(
            up=up.reshape(-1, up.shape[2]),
            up_bias=self.parts.up_bias.reshape(-1),
            down=down.transpose(1, 0, 2).reshape(down.shape[1], -1),
            down_bias=self.parts.down_bias.sum(axis=0),
        )


def quantize_block(
    block: DenseFeedForward, form: Format, *, rounding: Rounding = "absmax/7"
) -> QuantizedFeedForward:
    """Cuts a block into experts and quantises their matrices.

    `rounding` is int4's rule for the scale; MXFP4 has one rule of its own.
    """
    parts = cut_into_experts(block)
    up, down = (
        quantize(
            matrix,
            weight_format=form.weight_format,
            group_size=form.group_size,
            rounding=rounding if form.weight_format == "int4" else "absmax/7",
        )
        for matrix in (parts.up, parts.down)
    )
    return QuantizedFeedForward(up, down, parts)


class QuantizedBlock(nn.Layer):
    """Float32 in and out; inside, a `W4AFP8MoEFFN` of four experts on `place`."""

    def __init__(
        self, block: QuantizedFeedForward, *, dtype: str, place: paddle.base.core.Place
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.place = place
        # Equal logits give every expert 1/4 of the weight, exactly; times 4 is 1.
        self.moe = W4AFP8MoEFFN.from_quantized(
            block.up,
            block.down,
            topk=EXPERTS,
            activation="gelu",
            dtype=dtype,
            routed_scaling_factor=float(EXPERTS),
            up_gate_bias=block.parts.up_bias,
            down_bias=block.parts.down_bias,
        )
        self.moe.to(device=place)

    def forward(self, x: Tensor) -> Tensor:
        inputs = x.astype(self.dtype).to(self.place)
        logits = paddle.zeros([x.shape[0] * x.shape[1], EXPERTS]).to(self.place)
        return self.moe(inputs, logits).to(x.place).astype(x.dtype)
