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
"""The MLA up projections: exact cases bit by bit, the others within the bound of testing/mla.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.quant import MLAUpWeights, QuantizedWeight, split_kv_b_proj
from w4afp8.quant.codes import CODE_VALUES, join_nibbles
from w4afp8.testing.compare import Accumulator, assert_bits_equal, assert_within
from w4afp8.testing.mla import (
    MLAProblem,
    Op,
    random_activations,
    random_kv_b_proj,
    reference,
    up_bound,
    up_weights,
)
from w4afp8.testing.tensors import bits_of, float_tensor, tensor_bits, values_of

pytestmark = pytest.mark.usefixtures("route")

OPS: tuple[Op, ...] = ("k_up", "v_up")
DTYPES = ("bfloat16", "float16")
# nope, lora, v: DeepSeek's, the other sizes that models have, and what only the CPU does.
SIZES = [
    (128, 512, 128),
    (64, 256, 64),
    (192, 768, 128),
    (128, 512, 64),
    (192, 512, 256),
    pytest.param((64, 64, 64), marks=pytest.mark.cpu_only),
    pytest.param((320, 448, 192), marks=pytest.mark.cpu_only),
]
TOKENS = (1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257)


def packed(place: Any, p: MLAProblem, kv_b_proj: QuantizedWeight) -> MLAUpWeights:
    codes, scale = kv_b_proj.codes[0], kv_b_proj.scale[0]
    return split_kv_b_proj(codes, scale, p.heads, p.nope, p.v, place=place)


def run(op: Op, x: paddle.Tensor, up: MLAUpWeights) -> paddle.Tensor:
    if op == "k_up":
        return ops.mla_k_up(x, up.w_k, up.w_k_scale)
    return ops.mla_v_up(x, up.w_v, up.w_v_scale)


def run_bits(
    place: Any, p: MLAProblem, op: Op, x: NDArray[Any], kv_b_proj: QuantizedWeight, dtype: str
) -> NDArray[np.uint16]:
    """Bits of the result ``[tokens, heads, out]``."""
    out = run(op, float_tensor(x, dtype, place), packed(place, p, kv_b_proj))
    assert out.shape == [len(x), p.heads, p.out_features(op)]
    assert str(out.dtype) == f"paddle.{dtype}"
    return tensor_bits(out)


def check_within(
    place: Any, p: MLAProblem, op: Op, dtype: str, accumulator: Accumulator, seed: int = 0
) -> None:
    kv_b_proj, x = random_kv_b_proj(p, seed), random_activations(p, op, dtype, seed)
    weight = up_weights(p, kv_b_proj)[op]
    result = values_of(run_bits(place, p, op, x, kv_b_proj, dtype), dtype)
    bound = up_bound(x, weight, dtype, accumulator)
    assert_within(result, reference(x, weight), bound, f"{op} {p}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes(
    place: Any, accumulator: Accumulator, sizes: tuple[int, ...], op: Op, dtype: str
) -> None:
    nope, lora, v = sizes
    check_within(place, MLAProblem(37, 3, nope, lora, v), op, dtype, accumulator)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_tokens(place: Any, accumulator: Accumulator, tokens: int, op: Op) -> None:
    p = MLAProblem(tokens, 2, 64, 256, 64)
    check_within(place, p, op, DTYPES[tokens % 2], accumulator, seed=tokens)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("tokens", "heads"), [(1, 128), (3, 5), (600, 1), (1000, 17)])
def test_heads(place: Any, accumulator: Accumulator, tokens: int, heads: int, op: Op) -> None:
    check_within(place, MLAProblem(tokens, heads, 64, 256, 64), op, "bfloat16", accumulator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_exact_sums(place: Any, tokens: int, op: Op, dtype: str) -> None:
    """Sums of up to 512 products of -1, 0 or 1 and a weight: 24 bits hold them in any order.

    The finest unit is 0.5 * 2^-2 and the largest sum 512 * 6 * 2^2: 2^17 units.
    """
    p = MLAProblem(tokens, 3, 128, 512, 64)
    kv_b_proj = random_kv_b_proj(p, tokens, scales=(125, 129))
    rng = np.random.default_rng(tokens)
    x = rng.integers(-1, 2, (tokens, p.heads, p.in_features(op))).astype(np.float32)
    expected = reference(x, up_weights(p, kv_b_proj)[op])
    bits = run_bits(place, p, op, x, kv_b_proj, dtype)
    assert_bits_equal(without_sign_of_zero(bits), without_sign_of_zero(bits_of(expected, dtype)))


def without_sign_of_zero(bits: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """A sum of zeros may have either sign."""
    return np.where(bits == 0x8000, np.uint16(0), bits)


def every_pair(scales: NDArray[Any], p: MLAProblem) -> QuantizedWeight:
    """Every code with every scale, in W_K and in W_V: a group of 32 holds each code twice."""
    groups = (p.rows, p.lora // 32)
    codes = np.tile(np.arange(32, dtype=np.uint8) % 16, (1, *groups))
    scale = np.resize(scales.astype(np.uint8), groups)[None]
    found = QuantizedWeight(join_nibbles(codes), scale, "mxfp4")
    for rows in (slice(p.nope), slice(p.nope, None)):
        assert set(scale[0, rows].ravel()) == set(scales)
    return found


def unit_activations(p: MLAProblem, op: Op, value: float) -> NDArray[np.float32]:
    """Token i is `value` in feature i: the output is the weight itself, times that."""
    return np.eye(p.in_features(op), dtype=np.float32)[:, None] * np.float32(value)


@pytest.mark.parametrize("op", OPS)
def test_every_weight_is_exact_in_bfloat16(place: Any, op: Op) -> None:
    """All 16 codes with all scales that are not refused, down to subnormal weights."""
    p = MLAProblem(0, 1, 64, 256, 64)
    kv_b_proj = every_pair(np.arange(253), p)
    expected = reference(unit_activations(p, op, 1.0), up_weights(p, kv_b_proj)[op])
    assert_bits_equal(
        bits_of(values_of(bits_of(expected, "bfloat16"), "bfloat16"), "float32"),
        bits_of(expected, "float32"),
        "a weight is no bfloat16 number",
    )
    bits = run_bits(place, p, op, unit_activations(p, op, 1.0), kv_b_proj, "bfloat16")
    want = bits_of(expected, "bfloat16")
    assert_bits_equal(without_sign_of_zero(bits), without_sign_of_zero(want))


@pytest.mark.parametrize(("lowest", "spread"), [(100, 36), (180, 36), (100, 15), (180, 16)])
@pytest.mark.parametrize("op", OPS)
def test_every_weight_is_exact_in_float16(place: Any, op: Op, lowest: int, spread: int) -> None:
    """All codes with scales that spread over 36 binades; seen through a fitting activation.

    Up to 15 binades a GPU makes a weight by one product.
    """
    p = MLAProblem(0, 1, 64, 256, 64)
    kv_b_proj = every_pair(lowest + np.arange(spread + 1), p)
    for exponent in (-14, 0, 10):
        x = unit_activations(p, op, 2.0**exponent)
        expected = bits_of(reference(x, up_weights(p, kv_b_proj)[op]), "float16")
        bits = run_bits(place, p, op, x, kv_b_proj, "float16")
        assert_bits_equal(without_sign_of_zero(bits), without_sign_of_zero(expected))


@pytest.mark.parametrize("op", OPS)
def test_float16_weights_far_below_count_as_zero(place: Any, op: Op) -> None:
    """36 binades below the largest scale of an output are exact, 37 are zero: docs/mla.md."""
    p = MLAProblem(0, 1, 64, 256, 64)
    largest = 140
    for below, factor in ((36, 1.0), (37, 0.0)):
        kv_b_proj = every_pair(np.array([largest - below, largest]), p)
        # In W_K the scales of an output alternate from row to row, in W_V from group to group.
        scale = np.full((1, p.rows, p.lora // 32), largest - below, np.uint8)
        scale[:, 1 : p.nope : 2] = largest
        scale[:, p.nope :, 1] = largest
        kv_b_proj = QuantizedWeight(kv_b_proj.codes, scale, "mxfp4")
        weight = up_weights(p, kv_b_proj)[op]
        kept = np.where(np.abs(weight) < 6.5 * 2.0 ** (largest - below - 127), factor, 1.0)
        x = unit_activations(p, op, 1.0)
        bits = run_bits(place, p, op, x, kv_b_proj, "float16")
        expected = bits_of(reference(x, weight * kept), "float16")
        assert_bits_equal(without_sign_of_zero(bits), without_sign_of_zero(expected))


@pytest.mark.parametrize("op", OPS)
def test_float16_activations_keep_their_bits(place: Any, op: Op) -> None:
    p = MLAProblem(0, 1, 64, 256, 64)
    ones = np.full((1, p.rows, p.lora // 2), 0x22, np.uint8)  # code 2 is 1.0
    scale = np.full((1, p.rows, p.lora // 32), 127, np.uint8)
    x = unit_activations(p, op, 1 + 2.0**-10)
    bits = run_bits(place, p, op, x, QuantizedWeight(ones, scale, "mxfp4"), "float16")
    assert (bits == 0x3C01).all()


def test_the_value_of_each_code(place: Any) -> None:
    """Against a table that is written down, not computed."""
    p = MLAProblem(0, 1, 64, 256, 64)
    kv_b_proj = every_pair(np.array([128]), p)
    bits = run_bits(place, p, "k_up", unit_activations(p, "k_up", 1.0), kv_b_proj, "bfloat16")
    magnitudes = [0, 1, 2, 3, 4, 6, 8, 12]
    assert values_of(bits, "bfloat16")[5, 0, :16].tolist() == magnitudes + [-m for m in magnitudes]
    assert CODE_VALUES["mxfp4"].tolist() == [m / 2 for m in magnitudes + [-m for m in magnitudes]]


VIEWS = {
    "first features": lambda wide, n: wide[:, :, :n],
    "last features": lambda wide, n: wide[:, :, -n:],
    "every second token": lambda wide, n: wide[::2, :, :n],
    "some heads": lambda wide, n: wide[:, 1:3, :n],
    "one token": lambda wide, n: wide[2:3, :, :n],
    "one head": lambda wide, n: wide[:, 2:3, 64 : 64 + n],
    "heads first": lambda wide, n: wide.transpose(1, 0, 2)[:, :, :n],
}


def view_of(wide: paddle.Tensor, name: str, n: int) -> paddle.Tensor:
    """A view of a 16-bit tensor as numpy takes it; Paddle's own slices may be copies on a GPU."""
    model = np.empty(wide.shape, np.uint16)
    view = VIEWS[name](model, n)
    offset = view.__array_interface__["data"][0] - model.__array_interface__["data"][0]
    strides = [stride // 2 for stride in view.strides]
    return paddle.as_strided(wide, list(view.shape), strides, offset)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", VIEWS)
def test_views(place: Any, name: str, op: Op) -> None:
    p = MLAProblem(9, 4, 64, 256, 64)
    n = p.in_features(op)
    values = np.random.default_rng(0).standard_normal((p.tokens, p.heads, n + 64))
    view = view_of(float_tensor(values, "bfloat16", place), name, n)
    picked = VIEWS[name](values, n)
    whole = MLAProblem(*picked.shape[:2], p.nope, p.lora, p.v)
    kv_b_proj = random_kv_b_proj(whole)
    expected = run_bits(place, whole, op, picked, kv_b_proj, "bfloat16")
    assert_bits_equal(tensor_bits(run(op, view, packed(place, whole, kv_b_proj))), expected)


@pytest.mark.parametrize("op", OPS)
def test_a_slice_of_the_query(place: Any, op: Op) -> None:
    p = MLAProblem(3, 2, 64, 256, 64)
    n = p.in_features(op)
    query = float_tensor(np.ones((3, 2, n + 32)), "bfloat16", place)
    expected = run_bits(place, p, op, np.ones((3, 2, n)), random_kv_b_proj(p), "bfloat16")
    out = run(op, query[:, :, :n], packed(place, p, random_kv_b_proj(p)))
    assert_bits_equal(tensor_bits(out), expected)


@pytest.mark.parametrize("op", OPS)
def test_nan_stays_in_its_token_and_head(place: Any, op: Op) -> None:
    p = MLAProblem(5, 3, 64, 256, 64)
    kv_b_proj, x = random_kv_b_proj(p), random_activations(p, op, "bfloat16")
    clean = run_bits(place, p, op, x, kv_b_proj, "bfloat16")
    x[2, 1, 7] = np.nan
    values = values_of(run_bits(place, p, op, x, kv_b_proj, "bfloat16"), "bfloat16")
    assert np.isnan(values[2, 1]).all()
    values[2, 1] = values_of(clean, "bfloat16")[2, 1]
    assert_bits_equal(bits_of(values, "bfloat16"), clean)


@pytest.mark.parametrize("op", OPS)
def test_no_tokens(place: Any, op: Op) -> None:
    p = MLAProblem(0, 2, 64, 256, 64)
    x = np.zeros((0, 2, p.in_features(op)), np.float32)
    assert run_bits(place, p, op, x, random_kv_b_proj(p), "bfloat16").size == 0
