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
from w4afp8.testing.tensors import float8_tensor, float_tensor, int_tensor, tensor_bits

NO_TENSORS = (None, None)
SETTINGS = ("w4afp8", False, -1, -1, "swiglu")


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
    """Bit for bit: the scales without permutation and 512, and 440 times the activations' scale."""
    case = Case()
    rng = np.random.default_rng(5)
    x = float8_tensor(float8.encode(rng.standard_normal((6, case.hidden)) * 16), place)
    row_scale = float_tensor(rng.uniform(1, 3, 6), "float32", place)
    sums = int_tensor([2, 2, 5, 6], "int64", place)
    up_gate, down, *scales = expert_operands(case, case.weights(), place)
    out = moe_expert_ffn(
        *(x, sums, up_gate, down, row_scale, None, *scales), None, *NO_TENSORS, *SETTINGS
    )

    def multiply(rows: Any, weight: QuantizedWeight, scale: Any) -> Any:
        packed = pack(weight, place=place)
        multiplier = float_tensor(weight.scale / np.float64(440), "float32", place)
        return ops.group_gemm(rows, packed.weight, multiplier, sums, x_scale=scale)

    weights = case.weights()
    rows, scale = ops.activation_quant(multiply(x, weights.up_gate, row_scale), sums)
    expected = multiply(rows, weights.down, scale * 440.0)
    assert (tensor_bits(out) == tensor_bits(expected)).all()


def call_ffn(*settings: Any, ndim: int = 2, scale: Any = "given", **named: Any) -> Any:
    shape = [2, 64] if ndim == 2 else [2, 1, 64]
    x = paddle.ones(shape).astype("float8_e4m3fn")
    tokens = paddle.to_tensor([1, 2], dtype="int64")
    weights = (paddle.zeros([2, 128, 64], dtype="int8"), paddle.zeros([2, 64, 64], dtype="int8"))
    up_scale = paddle.ones([2, 128]) if scale == "given" else scale
    return moe_expert_ffn(
        *(x, tokens, *weights, None, None, up_scale, paddle.ones([2, 64])),
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
def test_settings_of_every_version(settings: Any, named: Any) -> None:
    out = call_ffn(*settings, **named)
    assert out.dtype == paddle.bfloat16
    assert out.shape == [2, 64]
    assert (out.astype("float32") == 0).all()


def test_float16_output() -> None:
    assert call_ffn(*SETTINGS, out_dtype="float16").dtype == paddle.float16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: call_ffn("w4a8", False), "quant_method: expected 'w4afp8' .*, got 'w4a8'"),
        (lambda: call_ffn("w4afp8", False, -1, 128), "hadamard_block_size: expected -1 .* got 128"),
        (lambda: call_ffn(*SETTINGS[:-1], "gelu"), "activation: expected one of swiglu, swigluoai"),
        (lambda: call_ffn(*SETTINGS, ndim=3), "permute_input: expected .*_latency=False"),
        (lambda: call_ffn("w4afp8", True), "permute_input: expected .*_latency=True"),
        (lambda: call_ffn(*SETTINGS, scale=None), "up_gate_proj_scale: expected a tensor"),
        (lambda: call_ffn(*SETTINGS, rotation=1), "arguments: expected quant_method"),
        (
            lambda: moe_expert_dispatch(
                *(paddle.ones([2, 64]).astype("bfloat16"), paddle.ones([2, 4])),
                *(None, None, 2, True, "w4afp8", False),
            ),
            "group_moe: expected False",
        ),
        (
            lambda: moe_expert_dispatch(
                *(paddle.ones([2, 64]).astype("bfloat16"), paddle.ones([2, 4])),
                *(None, None, 5, False, "w4afp8", True),
            ),
            "moe_topk: expected 1 to 4",
        ),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
