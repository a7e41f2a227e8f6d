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
"""No tokens: slices and reshaped tensors without elements, whose strides may be anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from bad_input_cases import GEMM, OPTIONAL, OUT, RIGHT, TOPK
from bad_input_cases import IN as FEATURES
from bad_input_tensors import Zeros
from bad_mla_cases import FLOAT8, HEADS, LORA, NOPE, V_UP, V

from w4afp8 import ops
from w4afp8.layers import ExpertLinear, MLAUpProjections, W4AFP8MoEFFN
from w4afp8.testing.tensors import float_tensor, int_tensor

pytestmark = [pytest.mark.cpu_only, pytest.mark.usefixtures("route")]

CPU = paddle.CPUPlace()
GEMM_OF_TOKENS = {**GEMM, "x_scale": OPTIONAL["group_gemm"]["x_scale"]}
# The operator, its arguments, those of them that lose their tokens, and the shapes that are left.
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...], list[list[int]]]] = {
    "group_gemm": ("group_gemm", GEMM_OF_TOKENS, ("x", "x_scale"), [[0, OUT]]),
    "quant_per_token": ("quant_per_token", RIGHT["quant_per_token"], ("x",), [[0, FEATURES], [0]]),
    "quant_per_token_and_head": (
        "quant_per_token_and_head",
        {"x": Zeros("float32", (6, HEADS, NOPE))},
        ("x",),
        [[0, HEADS, NOPE], [0, HEADS]],
    ),
    "activation_quant": (
        "activation_quant",
        RIGHT["activation_quant"],
        ("h",),
        [[0, FEATURES // 2], [0]],
    ),
    "moe_route": ("moe_route", RIGHT["moe_route"], ("logits",), [[0, TOPK], [0, TOPK]]),
    "moe_dispatch": (
        "moe_dispatch",
        RIGHT["moe_dispatch"],
        ("x", "topk_ids"),
        [[0, FEATURES], [0], [3], [0, TOPK]],
    ),
    "moe_combine": (
        "moe_combine",
        {**RIGHT["moe_combine"], **OPTIONAL["moe_combine"]},
        ("y", "topk_weights", "row_index", "shared_output"),
        [[0, FEATURES]],
    ),
    "mla_k_up": ("mla_k_up", RIGHT["mla_k_up"], ("q_nope",), [[0, HEADS, LORA]]),
    "mla_v_up": ("mla_v_up", V_UP, ("x",), [[0, HEADS, V]]),
    "mla_v_up of float8": ("mla_v_up", {**V_UP, **FLOAT8}, ("x", "x_scale"), [[0, HEADS, V]]),
}


def emptied(tensor: paddle.Tensor, form: str) -> paddle.Tensor:
    """Without its rows: a slice, or a plain tensor that was given its shape by `reshape`."""
    if form == "slice":
        return tensor[:0]
    return paddle.empty([0, 3, 5], dtype=tensor.dtype).reshape([0, *tensor.shape[1:]])


def shapes(result: Any) -> list[list[int]]:
    return [list(t.shape) for t in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("form", ["slice", "reshaped"])
@pytest.mark.parametrize("case", CASES)
def test_operators(case: str, form: str) -> None:
    op, given, without_tokens, expected = CASES[case]
    arguments = {name: a.on(CPU) if isinstance(a, Zeros) else a for name, a in given.items()}
    changed = {name: emptied(arguments[name], form) for name in without_tokens}
    assert shapes(getattr(ops, op)(**{**arguments, **changed})) == expected


def test_mla_layer() -> None:
    layer = MLAUpProjections(HEADS, NOPE, LORA, V)
    q, x = (float_tensor(np.ones((6, HEADS, n)), "bfloat16", CPU) for n in (NOPE, LORA))
    assert shapes(layer.absorb_q(q[:0])) == [[0, HEADS, LORA]]
    assert shapes(layer.project_v(x[:0])) == [[0, HEADS, V]]
    for product, whole, out in ((layer.absorb_q, q, LORA), (layer.project_v, x, V)):
        x8, scale = ops.quant_per_token_and_head(whole)
        assert shapes(product(x8[:0], scale[:0])) == [[0, HEADS, out]]
        assert shapes(product(*ops.quant_per_token_and_head(whole[:0]))) == [[0, HEADS, out]]


def test_expert_linear() -> None:
    layer = ExpertLinear(64, 32, 2)
    x, scale = ops.quant_per_token(float_tensor(np.ones((6, 64)), "bfloat16", CPU))
    tokens = int_tensor([0, 0, 0], "int32", CPU)
    assert shapes(layer(x[:0], tokens, scale[:0])) == [[0, 32]]


def test_moe_layer() -> None:
    layer = W4AFP8MoEFFN(64, 32, 4, 2)
    x, logits = (float_tensor(np.ones((6, n)), "bfloat16", CPU) for n in (64, 4))
    assert shapes(layer(x[:0], logits[:0], shared_output=x[:0])) == [[0, 64]]
