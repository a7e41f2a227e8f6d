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
"""Every expert's rows through both projections, with what FastDeploy has between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor

from w4afp8 import ops
from w4afp8.fastdeploy.activations import activate, to_fp8
from w4afp8.incubate.nn.functional._projections import Projection
from w4afp8.layers.experts import run_experts
from w4afp8.layers.operands import on_place_of

ACTIVATIONS = {"swiglu": "swiglu", "swigluoai": "swiglu_oai"}


@dataclass(frozen=True, eq=False)
class Between:
    """From up_gate_proj's output to down_proj's input.

    Attributes:
        activation: "swiglu" or "swigluoai", with gate and up in turns.
        hadamard_block_size: of the blocks that are rotated, or -1.
        token_padding: rows of each expert, or 0.
        in_scale: of static quantisation, float32 ``[experts]``; None: dynamic.
    """

    activation: str
    hadamard_block_size: int
    token_padding: int
    in_scale: Tensor | None

    @property
    def is_one_operator(self) -> bool:
        """Whether `w4afp8.ops.activation_quant` does it all."""
        return self.in_scale is None and self.activation == "swiglu"

    def quantised(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """FP8 rows and their scales; static: none."""
        if self.activation == "swigluoai":
            pairs = hidden.reshape([*hidden.shape[:-1], -1, 2])
            halves = paddle.concat([pairs[..., 0], pairs[..., 1]], axis=-1)
            hidden = on_place_of(hidden, halves)
        name = ACTIVATIONS[self.activation]
        if self.in_scale is not None:
            gated = activate(hidden, name, self.hadamard_block_size)
            of_rows = self.in_scale, tokens, hidden.shape[0], self.token_padding
            return to_fp8(gated, _static_scale(*of_rows)), None
        return ops.activation_quant(
            hidden,
            tokens,
            activation=name,  # type: ignore[arg-type]
            token_padding=self.token_padding,
            hadamard_block_size=self.hadamard_block_size,
        )


def run_projections(
    up_gate: Projection,
    down: Projection,
    x: Tensor,
    tokens: Tensor,
    in_scale: Tensor | None,
    between: Between,
    *,
    max_tokens: int = -1,
    out_dtype: str = "bfloat16",
) -> Tensor:
    """Runs every expert on its rows, in one call where that is what `run_experts` does.

    Args:
        up_gate: first projection.
        down: second projection.
        x: float8_e4m3fn ``[rows, hidden]`` sorted by expert, or ``[experts, P, hidden]``.
        tokens: prefix sums, or counts, as `w4afp8.ops.group_gemm` has them.
        in_scale: what multiplies x's rows, or None.
        between: the activation and the quantisation behind it.
        max_tokens: that one expert probably has, -1 unknown; a hint for speed only.
        out_dtype: "bfloat16" or "float16".

    Returns:
        x's shape, of out_dtype.
    """
    options: dict[str, Any] = {"out_dtype": out_dtype, "max_tokens": max_tokens}
    options["token_padding"] = between.token_padding
    if between.is_one_operator:
        options["hadamard_block_size"] = between.hadamard_block_size
        operands = up_gate, down, x, tokens, in_scale
        return run_experts(*operands, activation="swiglu", **options)
    rows, scale = between.quantised(up_gate(x, tokens, in_scale, **options), tokens)
    return down(rows, tokens, scale, **options)


def _static_scale(in_scale: Tensor, tokens: Tensor, rows: int, padding: int) -> Tensor:
    """The scale of each row's expert, in a shape that is broadcast to the rows."""
    if padding:
        return in_scale.reshape([-1, 1, 1])
    row = on_place_of(tokens, paddle.arange(rows, dtype=tokens.dtype))
    expert = paddle.searchsorted(tokens[-in_scale.shape[0] :], row, right=True)
    expert = expert.clip(max=in_scale.shape[0] - 1)
    return paddle.gather(in_scale, expert).unsqueeze(-1)
