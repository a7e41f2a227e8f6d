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
"""Activation and FP8 quantisation in one pass, against float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.testing import float8
from w4afp8.testing.compare import FLOAT32_UNIT, assert_bits_equal, assert_within
from w4afp8.testing.tensors import bits_of, float_tensor, int_tensor, tensor_bits, values_of

pytestmark = pytest.mark.usefixtures("route")

ACTIVATIONS = ("none", "swiglu", "swiglu_oai", "gelu")
GATED = ("swiglu", "swiglu_oai")
# Float32 evaluation: exp and erf are within a few units u = 2^-24 and their argument, at most 2^7
# where the result matters, carries up to one more: 2^7 u, twice for safety. Relative to the product
# of the magnitudes, because gelu's 1 + erf and swiglu_oai's up + 1 may cancel.
FLOAT32_ERROR = 2.0**-16


# Of scale = absmax / 448 and of x * (1 / scale): three float32 roundings, twice for safety.
SCALING_ERROR = 6 * FLOAT32_UNIT


def exactly_activated(h: NDArray[Any], activation: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """float64 result and the magnitude that its float32 error is relative to."""
    h = h.astype(np.float64)
    if activation == "none":
        return h, np.zeros_like(h)
    if activation == "gelu":
        erf = np.vectorize(math.erf, otypes=[np.float64])
        return 0.5 * h * (1 + erf(h / math.sqrt(2))), np.abs(h)
    gate, up = np.split(h, 2, axis=-1)
    if activation == "swiglu":
        value = gate / (1 + np.exp(-gate)) * up
        return value, np.abs(value)
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    value = gate / (1 + np.exp(-1.702 * gate))
    return value * (up + 1), np.abs(value) * (np.abs(up) + 1)


def activated(h: NDArray[Any], activation: str, dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The result rounded to `dtype`, and its error.

    Rounding keeps the order of numbers: the float32 result is between two float64 numbers, and
    rounded it is between these two rounded. Most often both are the same, and there is no error.
    """
    value, magnitude = exactly_activated(h, activation)
    error = FLOAT32_ERROR * magnitude
    low, high = (
        values_of(bits_of(end, dtype), dtype).astype(np.float64)
        for end in (value - error, value + error)
    )
    return (low + high) / 2, (high - low) / 2


def check(
    place: Any, values: NDArray[Any], tokens: Any, activation: str, dtype: str, *, padding: int = 0
) -> None:
    h = values_of(bits_of(values, dtype), dtype)
    tensor = float_tensor(h, dtype, place)
    counts = int_tensor(tokens, "int32", place)
    out, scale = ops.activation_quant(tensor, counts, activation=activation, token_padding=padding)
    features = h.shape[-1] // (2 if activation in GATED else 1)
    assert out.shape == [*h.shape[:-1], features]
    assert scale.shape == list(h.shape[:-1])

    if padding:
        live = np.arange(padding) < np.asarray(tokens)[:, None]
    else:
        live = np.arange(len(h)) < tokens[-1]
    expected, error = activated(h[live], activation, dtype)
    scale_rows = tensor_bits(scale).view(np.float32)[live].astype(np.float64)[:, None]
    error += SCALING_ERROR * np.abs(expected)
    largest = np.abs(expected).max(axis=1, keepdims=True, initial=0)
    assert_within(
        scale_rows * 448, largest, error.max(axis=1, keepdims=True, initial=0) + 1e-35, "scale"
    )
    # E4M3 has 4 significant bits: half a unit is 2^-4 of the value, or 2^-10 among subnormals.
    rounding = np.maximum(np.abs(expected) * 2.0**-4, scale_rows * 2.0**-10)
    got = float8.decode(tensor_bits(out)[live]) * scale_rows
    assert_within(got, expected, rounding + 2 * error, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("features", [2, 16, 130, 192, 1536, 9000])
def test_random_rows(place: Any, activation: str, dtype: str, features: int) -> None:
    h = np.random.default_rng(0).standard_normal((9, features)) * 3
    check(place, h, [0, 4, 9], activation, dtype)


@pytest.mark.parametrize("activation", GATED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("most", [4, 30, 60, 86, 90, 200, 700])
def test_closed_gates(place: Any, activation: str, dtype: str, most: int) -> None:
    """Down to where exp overflows, and the reciprocal of a little less is subnormal."""
    alpha = 1.702 if activation == "swiglu_oai" else 1.0
    gates = -np.linspace(most / 2, most, 2 * 64).reshape(2, 64) / alpha
    check(place, np.concatenate([gates, np.ones_like(gates)], axis=1), [2], activation, dtype)


@pytest.mark.parametrize("features", [40, 1536, 18000])
def test_many_rows(place: Any, features: int) -> None:
    """For which a thread on a GPU has more features, and a row fewer threads."""
    h = np.zeros((1100, features))
    h[:5] = np.random.default_rng(4).standard_normal((5, features)) * 3
    check(place, h, [0, 4, 5], "swiglu", "bfloat16")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_wide_range(place: Any, activation: str) -> None:
    # Every region: clamps, saturated sigmoids and erf, cancellation.
    gate = np.linspace(-60, 60, 480)
    up = np.random.default_rng(1).permutation(np.linspace(-30, 30, 480))
    h = np.concatenate([gate, up])[None] if activation in GATED else gate[None]
    check(place, h, [0, 1], activation, "float16")
    check(place, h / 20, [0, 1], activation, "float16")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_without_token_have_no_influence(place: Any, activation: str) -> None:
    rng = np.random.default_rng(2)
    h = rng.standard_normal((3, 8, 64))
    counts = [5, 0, 8]
    for expert, count in enumerate(counts):
        h[expert, count:] = np.nan
    check(place, h, counts, activation, "bfloat16", padding=8)
    rows = rng.standard_normal((20, 64))
    rows[13:] = np.nan
    check(place, rows, [0, 13, 13], activation, "bfloat16")
    check(place, rows, [13], activation, "bfloat16")


@pytest.mark.parametrize("experts", [1, 33, 1024, 1500])
def test_many_experts_with_padding(place: Any, experts: int) -> None:
    rng = np.random.default_rng(experts)
    counts = rng.integers(0, 6, experts) * (rng.random(experts) < 0.3)
    counts[-1] = 5
    h = rng.standard_normal((experts, 5, 16))
    h[np.arange(5) >= counts[:, None]] = np.nan
    check(place, h, counts, "swiglu", "bfloat16", padding=5)


def test_corrupt_counts_stay_inside(place: Any) -> None:
    h = np.random.default_rng(3).standard_normal((2, 4, 32))
    tensor = float_tensor(h, "bfloat16", place)
    for tokens in ([-5, 2**31 - 1], [2**31 - 1, -(2**31)]):
        counts = int_tensor(tokens, "int32", place)
        out, _ = ops.activation_quant(tensor, counts, activation="swiglu", token_padding=4)
        full = [max(0, min(4, count)) for count in tokens]
        right, _ = ops.activation_quant(
            tensor, int_tensor(full, "int32", place), activation="swiglu", token_padding=4
        )
        live = np.arange(4) < np.array(full)[:, None]
        assert (tensor_bits(out)[live] == tensor_bits(right)[live]).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_become_nan(place: Any, activation: str) -> None:
    h = np.ones((3, 32))
    h[0, 3], h[1, 4], h[2, 5] = np.nan, np.inf, 2.0
    if activation == "swiglu_oai":
        h[1, 4] = np.nan  # the clamp makes 7 of infinity
    out, _ = ops.activation_quant(
        float_tensor(h, "bfloat16", place),
        int_tensor([0, 3], "int64", place),
        activation=activation,
    )
    is_nan = np.isnan(float8.decode(tensor_bits(out)))
    assert is_nan[0].nonzero()[0].tolist() == [3]
    assert is_nan[1].nonzero()[0].tolist() == [4]
    assert not is_nan[2].any()


@pytest.mark.parametrize("shape", [(0, 16), (5, 16)])
def test_no_tokens(place: Any, shape: tuple[int, int]) -> None:
    check(place, np.full(shape, np.nan), [0, 0], "swiglu", "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("features", [7, 64, 9000])
def test_features_as_they_are(place: Any, features: int, dtype: str) -> None:
    """Without an activation the quantisation is that of quant_per_token."""
    h = float_tensor(np.random.default_rng(5).standard_normal((9, features)), dtype, place)
    out, scale = ops.activation_quant(h, int_tensor([4, 9], "int32", place), activation="none")
    expected, expected_scale = ops.quant_per_token(h)
    assert_bits_equal(tensor_bits(out), tensor_bits(expected))
    assert_bits_equal(tensor_bits(scale), tensor_bits(expected_scale))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_before_the_quantisation(place: Any, dtype: str) -> None:
    """135 * 129 / 128 is above the middle between 128 and 144 of FP8, and in either type on it.

    448 makes the scale 1, and the sigmoid of such gates is 1 in float32.
    """
    h = np.repeat([[135.0, 64.0, 129 / 128, 7.0]], 8, axis=1)
    out, scale = ops.activation_quant(
        float_tensor(h, dtype, place), int_tensor([1], "int32", place), activation="swiglu"
    )
    assert tensor_bits(scale).view(np.float32) == [1.0]
    np.testing.assert_array_equal(
        float8.decode(tensor_bits(out)), np.repeat([[128.0, 448.0]], 8, axis=1)
    )


def test_what_float16_does_not_hold_is_infinite(place: Any) -> None:
    h = np.repeat([[300.0, 1.0, 300.0, 1.0]], 8, axis=1)
    for dtype, is_nan in (("float16", True), ("bfloat16", False)):
        tensor = float_tensor(h, dtype, place)
        out, _ = ops.activation_quant(tensor, int_tensor([1], "int32", place))
        found = np.isnan(float8.decode(tensor_bits(out))[0])
        assert found.tolist() == [is_nan] * 8 + [False] * 8
