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
"""FastDeploy's own flow, convert, permute the scales, multiply, against float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import paddle
import pytest
from fastdeploy_flow import SPELLINGS, converted, operator_scale, without_minus_eight

from w4afp8.fastdeploy import (
    w4afp8_gemm,
    w4afp8_gemm_scale_permute,
    w4afp8_gemm_weight_convert,
)
from w4afp8.quant import QuantizedWeight, pack
from w4afp8.testing.compare import Accumulator, assert_bits_equal, assert_within, gemm_bound
from w4afp8.testing.gemm_inputs import (
    GemmInputs,
    GemmProblem,
    exact_inputs,
    random_inputs,
    reference,
)
from w4afp8.testing.tensors import (
    bits_of,
    float8_tensor,
    float_tensor,
    int_tensor,
    tensor_bits,
    values_of,
)


@dataclass(frozen=True)
class Case:
    """A problem, and the version of FastDeploy's interface that it comes through."""

    problem: GemmProblem
    form: str = "newest"
    spelling: str = "sign_magnitude"
    out_dtype: str = "bfloat16"


COUNTS = (3, 0, 6)
CASES = {
    "oldest": Case(GemmProblem(COUNTS, 128, 256), "oldest", "offset"),
    "oldest padded": Case(
        GemmProblem((2, 5), 128, 128, token_padding=8), form="oldest", spelling="offset"
    ),
    "sums with leading 0": Case(GemmProblem(COUNTS, 128, 256), "leading 0"),
    "newest": Case(GemmProblem(COUNTS, 192, 256)),
    "dequant scale of tokens": Case(GemmProblem(COUNTS, 128, 256, x_scale="token")),
    "dequant scale of the tensor": Case(GemmProblem(COUNTS, 128, 256, x_scale="tensor")),
    "max_tokens_per_expert": Case(
        GemmProblem(COUNTS, 128, 256, x_scale="token"), "max_tokens_per_expert"
    ),
    "int8 with -8": Case(GemmProblem(COUNTS, 128, 256, x_scale="token"), spelling="int8"),
    "float16": Case(GemmProblem(COUNTS, 128, 256, x_scale="token"), out_dtype="float16"),
    "padding of 2048": Case(
        GemmProblem((5, 0, 2), 64, 128, token_padding=2048, x_scale="token"), spelling="int8"
    ),
    "as many outputs as rows for an expert": Case(
        GemmProblem((3,), 2048, 128, token_padding=2048, x_scale="token")
    ),
    "more rows than outputs, padded to as many": Case(
        GemmProblem((5, 2), 72, 128, token_padding=128, x_scale="token"), spelling="int8"
    ),
    "max_tokens_per_expert, as many outputs as rows": Case(
        GemmProblem((5, 2), 64, 128, token_padding=64, x_scale="token"), "max_tokens_per_expert"
    ),
    "oldest, as many outputs as rows": Case(
        GemmProblem((5, 2), 64, 128, token_padding=64), "oldest", "offset"
    ),
    "shape that is not compiled in": Case(
        GemmProblem(COUNTS, 88, 160, x_scale="token"), spelling="int8"
    ),
    "the smallest shape": Case(GemmProblem((1, 2), 8, 32)),
    "groups": Case(GemmProblem(COUNTS, 256, 384, group_size=128), spelling="int8"),
    "groups, tokens' scales": Case(
        GemmProblem(COUNTS, 128, 256, group_size=128, x_scale="token"), spelling="offset"
    ),
}


def prepared(inputs: GemmInputs, case: Case) -> GemmInputs:
    if case.spelling == "int8":
        return inputs
    return replace(inputs, weight=without_minus_eight(inputs.weight))


def multiply(inputs: GemmInputs, case: Case, place: Any) -> np.ndarray:
    """The bits of the rows, as float64's reference has them."""
    p, form = case.problem, case.form
    shape = [p.experts, p.token_padding] if p.token_padding else [p.num_rows]
    x = float8_tensor(inputs.x.reshape(*shape, p.in_features), place)
    leading_zero = form == "leading 0" or (form == "oldest" and not p.token_padding)
    dtype = "int32" if leading_zero or form == "oldest" else "int64"
    tokens = int_tensor(p.tokens(leading_zero=leading_zero), dtype, place)
    weight = converted(inputs.weight, case.spelling, place)
    scale = operator_scale(inputs.weight.scale, place)
    settings = (p.token_padding, max(p.counts), case.out_dtype == "bfloat16")
    dequant = None
    if inputs.x_scale is not None:
        of_rows = shape if p.x_scale == "token" else [1]
        dequant = float_tensor(inputs.x_scale.reshape(of_rows), "float32", place)
    if form == "oldest":
        row_sum = float_tensor(np.full(shape, np.nan), "float32", place)
        out = w4afp8_gemm(x, weight, tokens, row_sum, scale, *settings)
    elif form == "max_tokens_per_expert":
        most = int_tensor([max(p.counts)], "int64", place)
        out = w4afp8_gemm(x, weight, tokens, scale, dequant, most, *settings)
    else:
        out = w4afp8_gemm(x, weight, tokens, scale, dequant, *settings)
    assert list(out.shape) == [*shape, p.out_features]
    return tensor_bits(out).reshape(p.num_rows, p.out_features)


def rows_with_tokens(p: GemmProblem) -> np.ndarray:
    return np.concatenate([np.arange(p.num_rows)[p.rows_of(e)] for e in range(p.experts)])


@pytest.mark.parametrize("name", CASES)
def test_within_the_bound(place: Any, accumulator: Accumulator, name: str) -> None:
    case = CASES[name]
    inputs = prepared(random_inputs(case.problem), case)
    expected = reference(inputs)
    bound = gemm_bound(inputs, expected, case.out_dtype, accumulator)
    rows = rows_with_tokens(case.problem)
    actual = values_of(multiply(inputs, case, place), case.out_dtype)
    assert_within(actual[rows], expected[rows], bound[rows], name)


@pytest.mark.parametrize("name", CASES)
def test_exact(place: Any, name: str) -> None:
    case = CASES[name]
    inputs = prepared(exact_inputs(case.problem), case)
    rows = rows_with_tokens(case.problem)
    expected = bits_of(reference(inputs)[rows], case.out_dtype)
    actual = multiply(inputs, case, place)[rows]
    # Sums of signed terms may be +0 or -0.
    zero = (actual & 0x7FFF) == 0
    assert_bits_equal(np.where(zero, 0, actual), np.where(expected & 0x7FFF, expected, 0), name)


def test_minus_eight_is_kept(place: Any) -> None:
    codes = np.full((1, 64, 64), 0x88, np.uint8)  # all -8
    weight = QuantizedWeight(codes, np.ones((1, 64), np.float32))
    inputs = GemmInputs(
        GemmProblem((1,), 64, 128), np.full((1, 128), 0x38, np.uint8), weight, None, None
    )
    out = multiply(inputs, Case(inputs.problem, spelling="int8"), place)
    assert (values_of(out, "bfloat16") == -8 * 128).all()


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("out", "features"), [(128, 128), (88, 160)])
def test_converted_bytes_are_packed_ones(
    place: Any, spelling: str, out: int, features: int
) -> None:
    problem = GemmProblem((1, 1), out, features)
    weight = without_minus_eight(random_inputs(problem).weight)
    packed = pack(weight, place=place).weight
    found = converted(weight, spelling, place)
    padded_out, half_in = packed.shape[1:]
    fastdeploys = [2, half_in, padded_out] if spelling == "int8" else list(packed.shape)
    assert list(found.shape) == fastdeploys
    assert_bits_equal(
        tensor_bits(found).reshape(2, -1), tensor_bits(packed).reshape(2, -1), spelling
    )


@pytest.mark.parametrize("out", [8, 16, 40, 256])
def test_scales_are_permuted_in_place(place: Any, out: int) -> None:
    values = np.arange(2 * out, dtype=np.float32).reshape(2, out)
    expected = values.copy()
    for begin in range(0, out // 16 * 16, 16):
        for i in range(8):
            expected[:, begin + 2 * i] = values[:, begin + i]
            expected[:, begin + 2 * i + 1] = values[:, begin + i + 8]
    scale = float_tensor(values, "float32", place)
    assert w4afp8_gemm_scale_permute(scale) is scale
    assert scale.numpy().tolist() == expected.tolist()


ONES = paddle.ones([2, 64])
X = paddle.ones([3, 128]).astype("float8_e4m3fn")
TOKENS = paddle.to_tensor([1, 3], dtype="int64")
WEIGHT = paddle.zeros([2, 64, 64], dtype="uint8")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: w4afp8_gemm_weight_convert(paddle.full([1, 8, 32], 3, dtype="uint8")),
            "weight: expected a code 0 or 15, which tells the spelling",
        ),
        (
            lambda: w4afp8_gemm_weight_convert(paddle.full([1, 8, 32], 16, dtype="uint8")),
            "weight: expected codes of 0 to 14 .* got 16",
        ),
        (
            lambda: w4afp8_gemm_weight_convert(
                paddle.to_tensor([[[0, 15] * 16] * 8], dtype="uint8")
            ),
            "weight: expected codes .* got a 0 and 15",
        ),
        (
            lambda: w4afp8_gemm_weight_convert(paddle.zeros([1, 8, 48], dtype="uint8")),
            r"weight: expected \[experts, 8 \* n, 32 \* n\] codes, got",
        ),
        (
            lambda: w4afp8_gemm_weight_convert(paddle.zeros([24, 8], dtype="int8")),
            r"weight: expected \[16 \* n, 8 \* n\] pairs of codes, got",
        ),
        (
            lambda: w4afp8_gemm_weight_convert(paddle.zeros([1, 8, 32])),
            "weight: expected uint8 .* got float32",
        ),
        (
            lambda: w4afp8_gemm_scale_permute(paddle.ones([2, 12])),
            "weight_scale: expected .* got shape",
        ),
        (
            lambda: w4afp8_gemm(X, WEIGHT, TOKENS, ONES, ONES, 0, 2, True),
            "weight_scale: expected one operand of its shape, got two",
        ),
        (
            lambda: w4afp8_gemm(X, WEIGHT, TOKENS, ONES, None, 0, 2),
            "arguments: expected weight_scale, token_padding_size, max_tokens, is_bfloat16, got 4",
        ),
        (
            lambda: w4afp8_gemm(X, WEIGHT, TOKENS, ONES, None, 0, 2, True, rows=1),
            "arguments: expected .* the names .*rows",
        ),
        (
            lambda: w4afp8_gemm(X, WEIGHT, TOKENS, weight_scale=paddle.ones([2, 72]), **SETTINGS),
            "weight: expected uint8 or int8 of w4afp8_gemm_weight_convert",
        ),
        (
            lambda: w4afp8_gemm(
                X, WEIGHT, TOKENS, weight_scale=paddle.ones([2, 1, 2, 64]), **SETTINGS
            ),
            "weight_scale: expected float32",
        ),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


SETTINGS = {"token_padding_size": 0, "max_tokens": 2, "is_bflot16": True}


@pytest.mark.parametrize("told_by", ["names", "int32", "a third operand", "is_bflot16"])
def test_row_sums_are_told_where_they_look_like_scales(place: Any, told_by: str) -> None:
    """Two experts and 64 rows each: sums of rows have the shape of the scales of 64 outputs."""
    x = float8_tensor(np.full((2, 64, 128), 0x38, np.uint8), place)  # ones
    counts = int_tensor([64, 64], "int32" if told_by == "int32" else "int64", place)
    weight = w4afp8_gemm_weight_convert(int_tensor(np.zeros((2, 64, 128)), "uint8", place))  # -7
    sums, scale, ones = (
        float_tensor(np.full((2, 64), value), "float32", place) for value in (np.nan, 512, 1)
    )
    if told_by == "names":
        named = {"input_row_sum": sums, "weight_scale": scale, "token_padding_size": 64}
        out = w4afp8_gemm(x, weight, counts, **named, max_tokens=64, is_bfloat16=True)
    elif told_by == "is_bflot16":
        out = w4afp8_gemm(x, weight, counts, sums, scale, 64, 64, is_bflot16=True)
    else:
        third = [ones] if told_by == "a third operand" else []
        out = w4afp8_gemm(x, weight, counts, sums, scale, *third, 64, 64, True)
    assert (values_of(tensor_bits(out), "bfloat16") == -7 * 128).all()
