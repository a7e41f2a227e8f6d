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
"""Combine is exact: float32 products added slot by slot, one rounding at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.tensors import bits_of, float_tensor, int_tensor, tensor_bits, values_of

pytestmark = pytest.mark.usefixtures("route")


def check(
    place: Any,
    values: NDArray[Any],
    weights: NDArray[Any],
    rows: NDArray[Any],
    dtype: str,
    shared: NDArray[Any] | None = None,
) -> None:
    y = values_of(bits_of(values, dtype), dtype).astype(np.float32)
    weights = weights.astype(np.float32)
    out = ops.moe_combine(
        float_tensor(y, dtype, place),
        float_tensor(weights, "float32", place),
        int_tensor(rows, "int32", place),
        shared_output=None if shared is None else float_tensor(shared, dtype, place),
    )
    y = y.reshape(-1, y.shape[-1])
    assert out.shape == [len(rows), y.shape[1]]
    assert str(out.dtype) == f"paddle.{dtype}"
    expected = np.zeros((len(rows), y.shape[1]), np.float32)
    for slot in range(rows.shape[1]):
        kept = (rows[:, slot] >= 0) & (rows[:, slot] < len(y))
        expected[kept] += weights[kept, slot, None] * y[rows[kept, slot]]
    if shared is not None:
        expected += values_of(bits_of(shared, dtype), dtype).astype(np.float32)
    assert_bits_equal(tensor_bits(out), bits_of(expected, dtype), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("num_tokens", "topk", "hidden"),
    [(1, 1, 8), (7, 2, 90), (33, 8, 128), (300, 4, 72), (5, 32, 2880), (2, 3, 7168), (9, 1, 1)],
)
def test_sizes(place: Any, dtype: str, num_tokens: int, topk: int, hidden: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.permutation(num_tokens * topk).reshape(num_tokens, topk)
    y = rng.standard_normal((num_tokens * topk, hidden))
    check(place, y, rng.random((num_tokens, topk)), rows, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("topk", "hidden"), [(2, 72), (8, 1030), (17, 2048)])
def test_shared_output_and_padded_rows(place: Any, dtype: str, topk: int, hidden: int) -> None:
    rng = np.random.default_rng(2)
    y = rng.standard_normal((5, 40, hidden))  # 5 experts of 40 rows
    rows = rng.integers(-1, 200, (30, topk))
    shared = rng.standard_normal((30, hidden)) * 10
    check(place, y, rng.random((30, topk)), rows, dtype, shared)
    check(place, y, rng.random((30, topk)), np.full_like(rows, -1), dtype, shared)
    check(place, y, rng.random((30, topk)), rows, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rows_outside_contribute_nothing(place: Any, dtype: str) -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 20, (10, 4))
    weights = rng.standard_normal((10, 4))
    dropped = rng.random((10, 4)) < 0.4
    rows[dropped] = rng.choice([-1, 20, 2**31 - 1, -(2**31)], dropped.sum())
    weights[dropped] = np.nan
    rows[3] = -1
    check(place, rng.standard_normal((20, 64)), weights, rows, dtype)


def test_overflow_and_rounding(place: Any) -> None:
    y = np.array([[60000.0, 1.0, 1.0, -60000.0], [60000.0, 2.0**-11, 2.0**-10, 3.0]])
    check(place, y, np.array([[1.0, 1.0]]), np.array([[0, 1]]), "float16")


def test_nan_stays_in_its_token(place: Any) -> None:
    y = np.ones((4, 16))
    y[2, 3] = np.nan
    out = ops.moe_combine(
        float_tensor(y, "bfloat16", place),
        float_tensor(np.ones((2, 2), np.float32), "float32", place),
        int_tensor([[0, 1], [2, 3]], "int32", place),
    )
    is_nan = np.isnan(values_of(tensor_bits(out), "bfloat16"))
    assert is_nan[1].nonzero()[0].tolist() == [3]
    assert not is_nan[0].any()


def test_no_tokens(place: Any) -> None:
    check(place, np.ones((3, 8)), np.ones((0, 2)), np.zeros((0, 2), np.int64), "bfloat16")


def test_no_rows(place: Any) -> None:
    check(place, np.ones((0, 8)), np.ones((2, 2)), np.full((2, 2), -1), "bfloat16")
