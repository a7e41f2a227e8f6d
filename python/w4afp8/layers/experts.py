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

from typing import Any, Literal, Protocol, TypeAlias

import paddle
from paddle import Tensor

from w4afp8 import ops
from w4afp8._checks import dtype_name
from w4afp8._extension import extension
from w4afp8._routes import is_eager
from w4afp8.layers.expert_linear import ExpertLinear
from w4afp8.layers.operands import Array, Operands, as_float32, multiply
from w4afp8.layers.router import MoERouter
from w4afp8.quant import PackedWeight

Activation = Literal["swiglu", "swiglu_oai", "gelu"]
# Of up_gate and of down; activation, hadamard_block_size, max_tokens.
Experts: TypeAlias = tuple[Operands, Operands, str, int, int]


class Weights(Protocol):
    """A projection's."""

    @property
    def operands(self) -> Operands: ...


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
    up_gate: Weights,
    down: Weights,
    x: Tensor,
    tokens: Tensor,
    x_scale: Tensor | None,
    *,
    activation: Activation,
    out_dtype: str | paddle.dtype,
    hadamard_block_size: int = -1,
    token_padding: int = 0,
    max_tokens: int = -1,
    in_one_call: bool = True,
) -> Tensor:
    """``down(activation(up_gate(x)))`` of every expert: three launches, in one call if eager.

    The same bits either way. In one call the launches overlap on a GPU, and the first one applies
    the activation where `fuses_activation` says so.

    Args:
        up_gate: first projection.
        down: second projection.
        x: float8_e4m3fn ``[rows, hidden]`` sorted by expert, or ``[experts, token_padding,
            hidden]``.
        tokens: prefix sums, or counts where there is a token_padding, as `w4afp8.ops.group_gemm`
            has them.
        x_scale: float32, the shape of x without features, or what else `group_gemm` takes.
        activation: between the projections.
        out_dtype: "bfloat16" or "float16", also of the biases.
        hadamard_block_size: of the blocks that the second projection's input is rotated in, or -1.
        token_padding: rows of x for each expert; 0: sorted rows.
        max_tokens: that one expert probably has, -1 unknown; a hint for speed only.
        in_one_call: where tensors are eager; False: one operator after the other.

    Returns:
        The shape of x, of out_dtype.
    """
    dtype = dtype_name(out_dtype)
    if in_one_call and is_eager():
        experts = experts_of(up_gate, down, activation, hadamard_block_size, max_tokens)
        out: Tensor = extension().moe_experts(x, tokens, x_scale, experts, dtype, token_padding)
        return out
    options = {"out_dtype": dtype, "token_padding": token_padding, "max_tokens": max_tokens}
    hidden = multiply(up_gate.operands, x, tokens, x_scale, **options)
    hidden, hidden_scale = ops.activation_quant(
        hidden,
        tokens,
        activation=activation,
        token_padding=token_padding,
        hadamard_block_size=hadamard_block_size,
    )
    return multiply(down.operands, hidden, tokens, hidden_scale, **options)


def fuses_activation(rows: int, outputs: int, in_features: int) -> bool:
    """Whether the first product of experts applies a gated activation, on a GPU and in one call.

    Args:
        rows: that the product probably has.
        outputs: of each row, gates and what they let through.
        in_features: of the product.

    Returns:
        True where the outputs are a multiple of 128, and in 16 bits 40 MiB or more, from 4096
        in_features on 20 MiB.
    """
    fuses: bool = extension().fuses_activation(rows, outputs, in_features)
    return fuses


def experts_of(
    up_gate: Weights, down: Weights, activation: str, hadamard_block_size: int, max_tokens: int
) -> Experts:
    """What `w4afp8._ops.moe_experts` and `moe_ffn` want to know of a layer's experts."""
    return up_gate.operands, down.operands, activation, hadamard_block_size, max_tokens


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
