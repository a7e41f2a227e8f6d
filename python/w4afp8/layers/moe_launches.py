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
"""The launches of the mixture-of-experts layer: in one call, or operator by operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddle import Tensor

from w4afp8 import ops
from w4afp8._extension import extension
from w4afp8._routes import is_eager
from w4afp8.layers.experts import (
    Activation,
    Weights,
    experts_of,
    run_experts,
    tokens_hint,
)
from w4afp8.layers.router import Routing

if TYPE_CHECKING:
    from w4afp8.layers.moe_ffn import W4AFP8MoEFFN


def run_layer(
    layer: W4AFP8MoEFFN, rows: Tensor, logits: Tensor, shared_output: Tensor | None
) -> Tensor:
    """From the router's logits to the output: six launches, the same bits by either way.

    Args:
        layer: whose weights and options count.
        rows: ``[tokens, hidden]`` of the layer's `activation_dtype`.
        logits: float32, bfloat16 or float16 ``[tokens, experts of the router]``.
        shared_output: as `rows`, added to the output, or None.

    Returns:
        As `rows`.
    """
    run = run_in_one_call if is_eager() else run_by_operators
    return run(layer, rows, logits, shared_output)


def run_in_one_call(
    layer: W4AFP8MoEFFN, rows: Tensor, logits: Tensor, shared_output: Tensor | None
) -> Tensor:
    """The six operators with one workspace between them, on a GPU with `fuses_activation`."""
    return call_layer(
        *(rows, logits, shared_output, layer.router.routing),
        *(layer.up_gate_proj, layer.down_proj, layer.activation),
        hadamard_block_size=layer.hadamard_block_size,
        max_tokens=hint_of(layer, rows),
        first_expert=layer.first_expert,
    )


def call_layer(
    rows: Tensor,
    logits: Tensor,
    shared_output: Tensor | None,
    routing: Routing,
    up_gate: Weights,
    down: Weights,
    activation: Activation,
    *,
    hadamard_block_size: int,
    max_tokens: int,
    first_expert: int = 0,
) -> Tensor:
    """`run_in_one_call` without a layer: eager tensors only, contiguous ones.

    Args:
        rows: as `run_layer` has them.
        logits: likewise.
        shared_output: likewise.
        routing: how tokens choose.
        up_gate: the first projection's weights.
        down: the second one's.
        activation: between the projections.
        hadamard_block_size: of the blocks that the second projection's input is rotated in, or -1.
        max_tokens: that one expert probably has, -1 unknown; a hint for speed only.
        first_expert: the router's number for the first expert.

    Returns:
        As `rows`.
    """
    experts = experts_of(up_gate, down, activation, hadamard_block_size, max_tokens)
    out: Tensor = extension().moe_ffn(rows, logits, shared_output, routing, experts, first_expert)
    return out


def run_by_operators(
    layer: W4AFP8MoEFFN, rows: Tensor, logits: Tensor, shared_output: Tensor | None
) -> Tensor:
    """One registered operator after the other, as a traced program needs them."""
    topk_weights, topk_ids = layer.router(rows, logits)
    permuted, scale, tokens, row_index = ops.moe_dispatch(
        rows, topk_ids, experts=layer.num_experts, first_expert=layer.first_expert
    )
    y = run_experts(
        *(layer.up_gate_proj, layer.down_proj, permuted, tokens, scale),
        activation=layer.activation,
        out_dtype=layer.activation_dtype,
        hadamard_block_size=layer.hadamard_block_size,
        max_tokens=hint_of(layer, rows),
        in_one_call=False,
    )
    return ops.moe_combine(y, topk_weights, row_index, shared_output=shared_output)


def hint_of(layer: W4AFP8MoEFFN, rows: Tensor) -> int:
    """The `max_tokens` that the products are given.

    Of the router's experts: most rows of a part are empty, and would tell the GEMM of more tokens.
    """
    return tokens_hint(rows.shape[0] * layer.router.topk, layer.router.num_experts)
