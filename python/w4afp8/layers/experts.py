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
"""What the layers with experts share: their two projections, filled and run."""

from __future__ import annotations

from typing import Any, Literal

from paddle import Tensor

from w4afp8 import ops
from w4afp8.layers.expert_linear import ExpertLinear
from w4afp8.layers.operands import Array, as_float32
from w4afp8.layers.router import MoERouter
from w4afp8.quant import PackedWeight

Activation = Literal["swiglu", "swiglu_oai", "gelu"]


def make_projections(
    hidden_size: int,
    intermediate_size: int,
    num_experts: int,
    activation: Activation,
    *,
    group_sizes: tuple[int, int],
    has_biases: tuple[bool, bool],
    **options: Any,
) -> tuple[ExpertLinear, ExpertLinear]:
    """The first projection, of gate and up where the activation has both, and the second.

    Their weights are zeros. `options` are those of both, see `ExpertLinear`.
    """
    outputs = intermediate_size if activation == "gelu" else 2 * intermediate_size
    sizes = (hidden_size, outputs), (intermediate_size, hidden_size)
    first, second = (
        ExpertLinear(*size, num_experts, group_size=group_size, has_bias=has_bias, **options)
        for size, group_size, has_bias in zip(sizes, group_sizes, has_biases, strict=True)
    )
    return first, second


def run_experts(
    up_gate_proj: ExpertLinear,
    down_proj: ExpertLinear,
    x: Tensor,
    tokens: Tensor,
    x_scale: Tensor,
    *,
    activation: Activation,
    hadamard_block_size: int = -1,
    token_padding: int = 0,
    max_tokens: int = -1,
) -> Tensor:
    """``down(activation(up_gate(x)))`` of every expert, in three launches.

    Args:
        up_gate_proj: first projection.
        down_proj: second projection.
        x: float8_e4m3fn ``[rows, hidden]`` sorted by expert, or ``[experts, token_padding,
            hidden]``.
        tokens: int32 ``[experts + 1]``, prefix sums with a leading 0, or the counts ``[experts]``
            where there is a token_padding.
        x_scale: float32, the shape of x without features.
        activation: between the projections.
        hadamard_block_size: of the blocks that the second projection's input is rotated in, or -1.
        token_padding: rows of x for each expert; 0: sorted rows.
        max_tokens: that one expert probably has, -1 unknown; a hint for speed only.

    Returns:
        The projections' type, the shape of x.
    """
    shape = {"token_padding": token_padding, "max_tokens": max_tokens}
    hidden = up_gate_proj(x, tokens, x_scale, **shape)
    hidden, hidden_scale = ops.activation_quant(
        hidden,
        tokens,
        activation=activation,
        token_padding=token_padding,
        hadamard_block_size=hadamard_block_size,
    )
    return down_proj(hidden, tokens, hidden_scale, **shape)


def tokens_hint(copies: int, experts: int) -> int:
    """The `max_tokens` of copies of tokens, spread evenly; -1 where their number is unknown."""
    return -1 if copies < 0 else -(-copies // experts)


def fill_projection(
    projection: ExpertLinear, packed: PackedWeight, bias: Array | None, *, name: str
) -> None:
    """Gives a projection its weights and its bias; `name` is what errors call the weights."""
    projection.set_weight(packed, name=name)
    if bias is not None:
        projection.set_bias(as_float32(bias), name=f"{name}_bias")


def fill_router(
    router: MoERouter, gate_weight: Array | None, correction_bias: Array | None
) -> None:
    """Gives a router its weight and its bias, where there are such."""
    if gate_weight is not None:
        router.set_state("weight", as_float32(gate_weight), called="gate_weight")
    if correction_bias is not None:
        bias = as_float32(correction_bias)
        router.set_state("correction_bias", bias, called="correction_bias")
