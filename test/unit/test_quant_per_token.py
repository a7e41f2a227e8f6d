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
"""FP8 quantisation with one scale per row: every byte and every scale is prescribed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.testing import float8
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.tensors import bits_of, float_tensor, tensor_bits, values_of

pytestmark = pytest.mark.usefixtures("route")

TINY = np.finfo(np.float32).tiny


def expected_rows(x: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The rule, one float32 operation after the other."""
    with np.errstate(invalid="ignore", over="ignore"):
        absmax = np.nan_to_num(np.abs(x), nan=0.0, posinf=np.inf).max(axis=1, initial=0)
        scale = np.maximum(absmax / np.float32(448), TINY)
        return float8.encode(x * (np.float32(1) / scale)[:, None]), scale


def check(place: Any, values: NDArray[Any], dtype: str) -> NDArray[np.uint8]:
    """Compares with the rule; returns the bytes."""
    x = values_of(bits_of(values, dtype), dtype).astype(np.float32)
    out, scale = ops.quant_per_token(float_tensor(x, dtype, place))
    assert out.shape == list(x.shape)
    assert scale.shape == [len(x)]
    assert str(out.dtype) == "paddle.float8_e4m3fn"
    assert str(scale.dtype) == "paddle.float32"
    expected_bytes, expected_scale = expected_rows(x)
    assert_bits_equal(tensor_bits(out), expected_bytes, dtype)
    assert_bits_equal(tensor_bits(scale), expected_scale.view(np.uint32), "scale")
    return tensor_bits(out)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_number(place: Any, dtype: str) -> None:
    # A row that holds 448 and nothing larger has the scale 1: its bytes are plain conversions.
    every = values_of(np.arange(2**16, dtype=np.uint16), dtype).astype(np.float32)
    within = every[np.isnan(every) | (np.abs(every) <= 448)]
    within = np.concatenate([within, np.full(-len(within) % 512, 448, np.float32)])
    rows = within.reshape(-1, 512)
    rows[:, 0] = 448
    check(place, rows, dtype)


def test_float32_around_every_midpoint(place: Any) -> None:
    exact = float8.VALUES[: float8.NAN].astype(np.float32)
    midpoints = (exact[1:] + exact[:-1]) / 2  # exact in float32
    magnitudes = np.concatenate([exact, midpoints])
    near = [magnitudes, np.nextafter(magnitudes, np.inf), np.nextafter(magnitudes, -np.inf)]
    row = np.concatenate([*near, *[-n for n in near]]).clip(-448, 448).astype(np.float32)
    check(place, row[None], "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (7, 129), (2, 4100), (300, 96), (1, 20000)])
def test_random_rows(place: Any, dtype: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    check(place, rng.standard_normal(shape) * np.exp2(rng.uniform(-9, 9, (shape[0], 1))), dtype)


def test_largest_becomes_448(place: Any) -> None:
    x = np.random.default_rng(1).standard_normal((64, 100)).astype(np.float32)
    assert (check(place, x, "bfloat16") & 0x7F).max(axis=1).tolist() == [0x7E] * 64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_special_rows(place: Any, dtype: str) -> None:
    x = np.zeros((6, 40), np.float32)
    x[1, :2] = [-0.0, 1e-7]  # below float16's smallest normal number
    x[2, [0, 5]] = [3.0, np.nan]
    x[3] = np.nan
    x[4, [0, 1, 2, 3]] = [1.0, -2.0, np.inf, np.nan]
    x[5, [0, 1]] = [-np.inf, 65504.0]
    out = check(place, x, dtype)
    assert out[2, 5] == float8.NAN
    assert out[2, 0] == 0x7E
    assert (out[3] == float8.NAN).all()
    assert out[4, 2] == float8.NAN
    assert out[4, 0] == 0
    assert out[4, 1] == 0x80
    assert out[5, 0] == float8.NAN
    assert out[5, 1] == 0


@pytest.mark.parametrize("value", [1e-40, 3e-38, 3.3e38])
def test_extreme_sizes(place: Any, value: float) -> None:
    # Subnormal numbers count as well as any; the scale stops at the smallest normal number.
    check(place, np.linspace(-value, value, 33, dtype=np.float64)[None], "float32")
    check(place, np.linspace(-value, value, 33, dtype=np.float64)[None], "bfloat16")


@pytest.mark.parametrize("shape", [(0, 8), (0, 1)])
def test_no_rows(place: Any, shape: tuple[int, int]) -> None:
    check(place, np.zeros(shape), "bfloat16")


@pytest.mark.parametrize("heads", [1, 3])
def test_heads_are_rows(place: Any, heads: int) -> None:
    x = np.random.default_rng(2).standard_normal((5 * heads, 72)).astype(np.float32)
    rows = ops.quant_per_token(float_tensor(x, "float32", place))
    by_head = ops.quant_per_token(float_tensor(x.reshape(5, heads, 72), "float32", place))
    for found, expected, shape in zip(by_head, rows, ([5, heads, 72], [5, heads]), strict=True):
        assert found.shape == shape
        assert_bits_equal(tensor_bits(found).reshape(expected.shape), tensor_bits(expected))
