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
"""The Walsh-Hadamard transform between activation and quantisation, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_activation_quant import SCALING_ERROR, activated

from w4afp8 import ops
from w4afp8.testing import float8
from w4afp8.testing.compare import FLOAT32_UNIT, assert_within
from w4afp8.testing.tensors import bits_of, float_tensor, int_tensor, tensor_bits, values_of

pytestmark = pytest.mark.usefixtures("route")


def hadamard_matrix(size: int) -> NDArray[np.float64]:
    """Orthonormal, in natural order: entry (i, j) has the sign of the parity of i & j."""
    i = np.arange(size)
    parity = np.vectorize(lambda both: both.bit_count() % 2)(i[:, None] & i[None])
    return (1 - 2 * parity) / np.sqrt(size)


def transformed(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    # The matrix of a product of sizes is the Kronecker product of theirs.
    inner = min(size, 128)
    blocks = values.reshape(*values.shape[:-1], -1, size // inner, inner)
    return (hadamard_matrix(size // inner) @ blocks @ hadamard_matrix(inner)).reshape(values.shape)


def block_norms(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The 2-norm of each element's block."""
    norms = np.linalg.norm(values.reshape(*values.shape[:-1], -1, size), axis=-1)
    return np.repeat(norms, size, axis=-1)


def check(
    place: Any,
    values: NDArray[Any],
    tokens: Any,
    size: int,
    *,
    activation: Any = "swiglu",
    dtype: str = "bfloat16",
    padding: int = 0,
) -> None:
    h = values_of(bits_of(values, dtype), dtype)
    out, scale = ops.activation_quant(
        float_tensor(h, dtype, place),
        int_tensor(tokens, "int32", place),
        activation=activation,
        token_padding=padding,
        hadamard_block_size=size,
    )
    live = np.arange(len(h)) < tokens[-1]
    if padding:
        live = np.arange(padding) < np.asarray(tokens)[:, None]
    expected, error = activated(h[live], activation, dtype)
    # An error of the activation is turned, which keeps its norm. Each of log2(size) additions, and
    # the factor, round by one unit of what the block's norm bounds.
    steps = np.log2(size) + 2
    error = block_norms(error, size)
    error += steps * FLOAT32_UNIT * block_norms(expected, size)
    expected = transformed(expected, size)
    error += SCALING_ERROR * np.abs(expected)

    scale_rows = tensor_bits(scale).view(np.float32)[live].astype(np.float64)[:, None]
    largest = np.abs(expected).max(axis=1, keepdims=True, initial=0)
    assert_within(
        scale_rows * 448, largest, error.max(axis=1, keepdims=True, initial=0) + 1e-35, "scale"
    )
    # As in test_activation_quant.
    rounding = np.maximum(np.abs(expected) * 2.0**-4, scale_rows * 2.0**-10)
    got = float8.decode(tensor_bits(out)[live]) * scale_rows
    assert_within(got, expected, rounding + 2 * error, activation)


@pytest.mark.parametrize(
    ("features", "size"),
    [
        (8, 8),
        (40, 8),
        (96, 32),
        (768, 256),
        (1536, 512),
        (2048, 512),
        (2880, 64),
        (1024, 1024),
        (4096, 4096),
        (16384, 8192),
        (16384, 16384),
    ],
)
def test_sizes(place: Any, features: int, size: int) -> None:
    h = np.random.default_rng(0).standard_normal((3, 2 * features)) * 3
    check(place, h, [0, 2, 3], size)


@pytest.mark.parametrize(
    ("features", "size"), [(256, 256), (768, 256), (1536, 512), (3072, 1024), (6144, 2048)]
)
def test_many_rows(place: Any, features: int, size: int) -> None:
    """For which a thread on a GPU has more features, and a row fewer threads."""
    h = np.zeros((1100, 2 * features))
    h[:9] = np.random.default_rng(5).standard_normal((9, 2 * features)) * 3
    check(place, h, [0, 2, 9], size)


@pytest.mark.parametrize("activation", ["none", "swiglu", "swiglu_oai", "gelu"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_activations(place: Any, activation: str, dtype: str) -> None:
    h = np.random.default_rng(1).standard_normal((5, 512)) * 3
    check(place, h, [0, 5], 128, activation=activation, dtype=dtype)


def test_padded_rows(place: Any) -> None:
    h = np.random.default_rng(2).standard_normal((4, 6, 256))
    counts = [6, 0, 3, 1]
    for expert, count in enumerate(counts):
        h[expert, count:] = np.nan
    check(place, h, counts, 64, padding=6)


def test_one_feature_spreads_evenly(place: Any) -> None:
    # gelu(64) is 64: the transform of a unit vector has equal magnitudes, exactly.
    h = np.zeros((1, 256))
    h[0, 77] = 64.0
    out, scale = ops.activation_quant(
        float_tensor(h, "bfloat16", place),
        int_tensor([0, 1], "int32", place),
        activation="gelu",
        hadamard_block_size=64,
    )
    values = float8.decode(tensor_bits(out))[0] * tensor_bits(scale).view(np.float32)[0]
    expected = transformed(h, 64)[0]
    assert (np.abs(expected[64:128]) == 8).all()
    assert_within(values, expected, 8 * 2.0**-22 * np.ones(256))


def test_infinity_stays_in_its_block(place: Any) -> None:
    h = np.ones((2, 64))
    h[0, 20] = np.inf
    out, _ = ops.activation_quant(
        float_tensor(h, "bfloat16", place),
        int_tensor([0, 2], "int32", place),
        activation="gelu",
        hadamard_block_size=16,
    )
    is_nan = np.isnan(float8.decode(tensor_bits(out)))
    assert is_nan[0, 16:32].all()
    assert not is_nan[0, :16].any()
    assert not is_nan[0, 32:].any()
    assert not is_nan[1].any()
