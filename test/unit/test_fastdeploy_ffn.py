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
"""FastDeploy's experts: padded rows, every version's arguments, and the bits of our operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from fastdeploy_block import EXPERTS, Case, expert_operands, in_scale

from w4afp8 import ops
from w4afp8.fastdeploy import moe_expert_dispatch, moe_expert_ffn
from w4afp8.quant import QuantizedWeight, pack
from w4afp8.testing import float8
from w4afp8.testing.tensors import (
    float8_tensor,
    float_tensor,
    int_tensor,
    tensor_bits,
    values_of,
)

NO_TENSORS = (None, None)
SETTINGS = ("w4afp8", False, -1, -1, "swiglu")
ONE = np.uint8(0x38)  # in FP8


@pytest.mark.parametrize("unit", [None, 2.0**-3])
@pytest.mark.parametrize(("group_size", "rotation"), [(-1, -1), (128, 64)])
def test_padded_rows_are_the_flat_ones(
    place: Any, unit: float | None, group_size: int, rotation: int
) -> None:
    case = Case(unit=unit, group_size=group_size)
    rng = np.random.default_rng(2)
    counts, padding = [3, 0, 5, 1], 2048
    bits = float8.encode(rng.standard_normal((sum(counts), case.hidden)) * 16)
    scale = rng.uniform(1, 3, sum(counts)).astype(np.float32)
    padded_bits = np.full((EXPERTS, padding, case.hidden), float8.NAN, np.uint8)
    padded_scale = np.full((EXPERTS, padding), np.nan, np.float32)
    holds = np.arange(padding) < np.array(counts)[:, None]
    padded_bits[holds], padded_scale[holds] = bits, scale
    up_gate, down, *scales = expert_operands(case, case.weights(), place)

    def experts(x: Any, row_scale: Any, tokens: Any, is_padded: bool) -> np.ndarray:
        out = moe_expert_ffn(
            float8_tensor(x, place),
            int_tensor(tokens, "int64", place),
            up_gate,
            down,
            None if unit else float_tensor(row_scale, "float32", place),
            None,
            *scales,
            in_scale(case, place),
            *NO_TENSORS,
            *("w4afp8", is_padded, -1, rotation, "swiglu"),
        )
        assert out.dtype == paddle.bfloat16
        return tensor_bits(out)

    flat = experts(bits, scale, np.cumsum(counts), False)
    padded = experts(padded_bits, padded_scale, counts, True)
    assert padded.shape == (EXPERTS, padding, case.hidden)
    assert (padded[holds] == flat).all()


def test_dynamic_experts_are_our_operators(place: Any) -> None:
    """Bit for bit: the scales without permutation and 512, down's times the 440 of dynamic ones."""
    case = Case()
    rng = np.random.default_rng(5)
    x = float8_tensor(float8.encode(rng.standard_normal((6, case.hidden)) * 16), place)
    row_scale = float_tensor(rng.uniform(1, 3, 6), "float32", place)
    sums = int_tensor([2, 2, 5, 6], "int64", place)
    up_gate, down, *scales = expert_operands(case, case.weights(), place)
    out = moe_expert_ffn(
        *(x, sums, up_gate, down, row_scale, None, *scales), None, *NO_TENSORS, *SETTINGS
    )

    def multiply(rows: Any, weight: QuantizedWeight, scale: Any, factor: float = 1.0) -> Any:
        packed = pack(weight, place=place)
        multiplier = float_tensor(weight.scale / np.float64(440), "float32", place) * factor
        return ops.group_gemm(rows, packed.weight, multiplier, sums, x_scale=scale)

    weights = case.weights()
    rows, scale = ops.activation_quant(multiply(x, weights.up_gate, row_scale), sums)
    expected = multiply(rows, weights.down, scale, 440.0)
    assert (tensor_bits(out) == tensor_bits(expected)).all()


def call_ffn(place: Any, *settings: Any, ndim: int = 2, scale: Any = "given", **named: Any) -> Any:
    x = float8_tensor(np.full([2, 64] if ndim == 2 else [2, 1, 64], ONE), place)
    tokens = int_tensor([1, 2], "int64", place)
    weights = (int_tensor(np.zeros((2, out, 32)), "int8", place) for out in (128, 64))
    up_scale, down_scale = (float_tensor(np.ones((2, n)), "float32", place) for n in (128, 64))
    return moe_expert_ffn(
        *(x, tokens, *weights, None, None, up_scale if scale == "given" else scale, down_scale),
        *(None, None, *settings),
        **named,
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (SETTINGS, {}),
        ((None, *SETTINGS), {}),
        ((), {"quant_method": "w4afp8", "max_tokens_per_expert": None}),
        (("w4afp8", False), {"hadamard_block_size": -1}),
    ],
)
def test_settings_of_every_version(place: Any, settings: Any, named: Any) -> None:
    out = call_ffn(place, *settings, **named)
    assert out.dtype == paddle.bfloat16
    assert out.shape == [2, 64]
    assert (values_of(tensor_bits(out), "bfloat16") == 0).all()


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("dtype", ["float16", paddle.float16], ids=str)
def test_float16_by_name_or_type(place: Any, dtype: Any) -> None:
    assert call_ffn(place, *SETTINGS, out_dtype=dtype).dtype == paddle.float16


@pytest.mark.parametrize(
    ("settings", "named", "message"),
    [
        (("w4a8", False), {}, "quant_method: expected 'w4afp8' .*, got 'w4a8'"),
        (("w4afp8", False, -1, 128), {}, "hadamard_block_size: expected -1 .* got 128"),
        ((*SETTINGS[:-1], "gelu"), {}, "activation: expected one of swiglu, swigluoai"),
        (SETTINGS, {"ndim": 3}, "permute_input: expected .*_latency=False"),
        (("w4afp8", True), {}, "permute_input: expected .*_latency=True"),
        (SETTINGS, {"scale": None}, "up_gate_proj_scale: expected a tensor"),
        (SETTINGS, {"rotation": 1}, "arguments: expected quant_method"),
    ],
)
def test_refusals(place: Any, settings: Any, named: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call_ffn(place, *settings, **named)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((2, True, "w4afp8", False), "group_moe: expected False"),
        ((5, False, "w4afp8", True), "moe_topk: expected 1 to 4"),
    ],
)
def test_refusals_of_dispatch(place: Any, settings: Any, message: str) -> None:
    x = float_tensor(np.ones((2, 64)), "bfloat16", place)
    logits = float_tensor(np.ones((2, 4)), "float32", place)
    with pytest.raises(ValueError, match=message):
        moe_expert_dispatch(x, logits, None, None, *settings)
