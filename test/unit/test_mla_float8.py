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

"""The up projections of FP8 activations with a scale for each token and head."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from numpy.typing import NDArray
from test_mla_up import (
    DTYPES,
    OPS,
    SIZES,
    VIEWS,
    every_pair,
    packed,
    unit_activations,
    without_sign_of_zero,
)

from w4afp8 import ops
from w4afp8._routes import force_route
from w4afp8.layers import MLAUpProjections
from w4afp8.quant import MLAUpWeights, QuantizedWeight
from w4afp8.testing import float8
from w4afp8.testing.compare import Accumulator, assert_bits_equal, assert_within
from w4afp8.testing.mla import (
    MLAProblem,
    Op,
    float8_activations,
    float8_bound,
    float8_weights,
    random_kv_b_proj,
    reference,
    up_weights,
)
from w4afp8.testing.tensors import (
    bits_of,
    float8_tensor,
    float_tensor,
    tensor_bits,
    values_of,
)

pytestmark = pytest.mark.usefixtures("route")

EXACT_BINADES = 14  # below an output's largest scale: docs/mla.md


def run(
    op: Op, x: paddle.Tensor, scale: paddle.Tensor, up: MLAUpWeights, dtype: str
) -> paddle.Tensor:
    if op == "k_up":
        return ops.mla_k_up(x, up.w_k, up.w_k_scale, scale, dtype)
    return ops.mla_v_up(x, up.w_v, up.w_v_scale, scale, dtype)


def run_bits(
    place: Any,
    p: MLAProblem,
    op: Op,
    x: NDArray[np.uint8],
    scale: NDArray[Any],
    kv_b_proj: QuantizedWeight,
    dtype: str,
) -> NDArray[np.uint16]:
    """Bits of the result ``[tokens, heads, out]``."""
    scales = float_tensor(scale, "float32", place)
    out = run(op, float8_tensor(x, place), scales, packed(place, p, kv_b_proj), dtype)
    assert out.shape == [len(x), p.heads, p.out_features(op)]
    assert str(out.dtype) == f"paddle.{dtype}"
    return tensor_bits(out)


def check_within(
    place: Any,
    p: MLAProblem,
    op: Op,
    dtype: str,
    accumulator: Accumulator,
    scales: tuple[int, int] = (118, 128),
) -> None:
    kv_b_proj = random_kv_b_proj(p, p.tokens, scales=scales)
    x, scale = float8_activations(p, op, p.tokens)
    weight = float8_weights(p, kv_b_proj)[op]
    result = values_of(run_bits(place, p, op, x, scale, kv_b_proj, dtype), dtype)
    values = float8.decode(x)
    expected = reference(values * scale[..., None], weight)
    bound = float8_bound(values, scale, weight, dtype, accumulator)
    assert_within(result, expected, bound, f"{op} {p}")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes(place: Any, accumulator: Accumulator, sizes: tuple[int, ...], op: Op) -> None:
    nope, lora, v = sizes
    dtype = DTYPES[(nope + lora) // 64 % 2]
    check_within(place, MLAProblem(37, 2, nope, lora, v), op, dtype, accumulator)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("tokens", "heads"), [(1, 16), (63, 2), (64, 2), (65, 2), (129, 5)])
def test_tokens(place: Any, accumulator: Accumulator, tokens: int, heads: int, op: Op) -> None:
    check_within(place, MLAProblem(tokens, heads, 64, 256, 64), op, "bfloat16", accumulator)


@pytest.mark.parametrize("op", OPS)
def test_scales_far_apart(place: Any, accumulator: Accumulator, op: Op) -> None:
    p = MLAProblem(40, 2, 64, 256, 64)
    check_within(place, p, op, "bfloat16", accumulator, scales=(90, 130))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tokens", [1, 150])
def test_exact_sums(place: Any, tokens: int, op: Op, dtype: str) -> None:
    """Sums of up to 512 products of -1, 0 or 1 and a code: 13 bits hold them in any order.

    With one scale for all, the unit is 0.5 and the largest sum 512 * 6: 6144 units.
    """
    p = MLAProblem(tokens, 3, 128, 512, 64)
    kv_b_proj = random_kv_b_proj(p, tokens, scales=(126, 126))
    rng = np.random.default_rng(tokens)
    x = rng.integers(-1, 2, (tokens, p.heads, p.in_features(op))).astype(np.float64)
    scale = np.exp2(rng.integers(-3, 4, (tokens, p.heads)))
    expected = reference(x * scale[..., None], up_weights(p, kv_b_proj)[op])
    bits = run_bits(place, p, op, float8.encode(x), scale, kv_b_proj, dtype)
    assert_bits_equal(without_sign_of_zero(bits), without_sign_of_zero(bits_of(expected, dtype)))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("lowest", [0, 110, 238])
def test_every_weight_is_exact(place: Any, op: Op, lowest: int) -> None:
    """All codes with scales that spread over 14 binades."""
    p = MLAProblem(0, 1, 64, 256, 64)
    kv_b_proj = every_pair(lowest + np.arange(EXACT_BINADES + 1), p)
    weight = up_weights(p, kv_b_proj)[op]
    np.testing.assert_array_equal(float8_weights(p, kv_b_proj)[op], weight)
    x = unit_activations(p, op, 1.0)
    bits = run_bits(place, p, op, float8.encode(x), np.ones(x.shape[:2]), kv_b_proj, "bfloat16")
    expected = bits_of(reference(x, weight), "bfloat16")
    assert_bits_equal(without_sign_of_zero(bits), without_sign_of_zero(expected))


@pytest.mark.parametrize("op", OPS)
def test_smaller_weights_are_rounded(place: Any, op: Op) -> None:
    """To units of 2^-15 of the largest scale, ties to even: 15 to 18 binades below, and more."""
    p = MLAProblem(0, 1, 64, 256, 64)
    largest = 140
    for below in (15, 16, 17, 18, 40):
        kv_b_proj = every_pair(np.array([largest - below, largest]), p)
        scale = np.full((1, p.rows, p.lora // 32), largest - below, np.uint8)
        scale[:, 1 : p.nope : 2] = largest
        scale[:, p.nope :, 1] = largest
        kv_b_proj = QuantizedWeight(kv_b_proj.codes, scale, "mxfp4")
        weight = float8_weights(p, kv_b_proj)[op]
        assert (weight != up_weights(p, kv_b_proj)[op]).any()
        x = unit_activations(p, op, 1.0)
        codes = float8.encode(x)
        bits = run_bits(place, p, op, codes, np.ones(x.shape[:2]), kv_b_proj, "bfloat16")
        expected = bits_of(reference(x, weight), "bfloat16")
        assert_bits_equal(without_sign_of_zero(bits), without_sign_of_zero(expected))


def test_every_activation_is_exact(place: Any) -> None:
    """All 254 numbers of E4M3, one in each token, times a weight of 1 and a scale of 2."""
    p = MLAProblem(256, 1, 64, 256, 64)
    ones = np.full((1, p.rows, p.lora // 2), 0x22, np.uint8)  # code 2 is 1.0
    kv_b_proj = QuantizedWeight(ones, np.full((1, p.rows, p.lora // 32), 127, np.uint8), "mxfp4")
    for op in OPS:
        x = np.zeros((p.tokens, 1, p.in_features(op)), np.uint8)
        x[:, 0, 5] = np.arange(256)
        bits = run_bits(place, p, op, x, np.full((256, 1), 2.0), kv_b_proj, "float16")
        expected = 2 * float8.VALUES[:, None]
        found = values_of(bits, "float16")[:, 0].astype(np.float64)
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", VIEWS)
def test_views(place: Any, name: str, op: Op) -> None:
    p = MLAProblem(9, 4, 64, 256, 64)
    n = p.in_features(op)
    rng = np.random.default_rng(0)
    values = float8.encode(rng.standard_normal((p.tokens, p.heads, n + 64)))
    picked = VIEWS[name](values, n)
    wide = float8_tensor(values, place)
    offset = picked.__array_interface__["data"][0] - values.__array_interface__["data"][0]
    view = paddle.as_strided(wide, list(picked.shape), list(picked.strides), offset)
    whole = MLAProblem(*picked.shape[:2], p.nope, p.lora, p.v)
    kv_b_proj, scale = random_kv_b_proj(whole), np.ones(picked.shape[:2])
    expected = run_bits(place, whole, op, picked, scale, kv_b_proj, "bfloat16")
    scales = float_tensor(scale, "float32", place)
    with force_route("pybind"):  # the other one copies
        out = run(op, view, scales, packed(place, whole, kv_b_proj), "bfloat16")
    assert_bits_equal(tensor_bits(out), expected)


@pytest.mark.parametrize("op", OPS)
def test_nan_stays_in_its_token_and_head(place: Any, op: Op) -> None:
    p = MLAProblem(5, 3, 64, 256, 64)
    kv_b_proj = random_kv_b_proj(p)
    x, scale = float8_activations(p, op)
    clean = values_of(run_bits(place, p, op, x, scale, kv_b_proj, "bfloat16"), "bfloat16")
    x[2, 1, 7] = float8.NAN
    values = values_of(run_bits(place, p, op, x, scale, kv_b_proj, "bfloat16"), "bfloat16")
    assert np.isnan(values[2, 1]).all()
    values[2, 1] = clean[2, 1]
    assert_bits_equal(bits_of(values, "bfloat16"), bits_of(clean, "bfloat16"))


@pytest.mark.parametrize("op", OPS)
def test_no_tokens(place: Any, op: Op) -> None:
    p = MLAProblem(0, 2, 64, 256, 64)
    x, scale = float8_activations(p, op)
    assert run_bits(place, p, op, x, scale, random_kv_b_proj(p), "float16").size == 0


@pytest.mark.parametrize("op", OPS)
def test_quantised_activations(place: Any, op: Op) -> None:
    """A scale for each token and head; what is left is the error of E4M3, 2^-4 of a number.

    Numbers below 2^-6 scales have units of 2^-9, which for each is 2^-10 / 448 of the largest one.
    """
    p = MLAProblem(33, 4, 64, 256, 64)
    x = np.random.default_rng(0).standard_normal((p.tokens, p.heads, p.in_features(op)))
    x *= np.exp2(np.arange(p.heads))[:, None]
    codes, scale = ops.quant_per_token_and_head(float_tensor(x, "float32", place))
    assert str(codes.dtype) == "paddle.float8_e4m3fn"
    scales = scale.numpy()
    np.testing.assert_allclose(scales, np.abs(x).max(axis=2) / 448, rtol=2.0**-22)
    values = float8.decode(tensor_bits(codes)) * scales[..., None]
    step = np.maximum(2.0**-4 * np.abs(x), 2.0**-10 * scales[..., None])
    assert (np.abs(values - x) <= step * (1 + 2.0**-20)).all()
    up = packed(place, p, random_kv_b_proj(p))
    expected = run_bits(place, p, op, tensor_bits(codes), scales, random_kv_b_proj(p), "bfloat16")
    out = run(op, codes, scale, up, "bfloat16")
    assert_bits_equal(tensor_bits(out), expected)


def test_quantising_wants_three_dimensions(place: Any) -> None:
    with pytest.raises(ValueError, match=r"x: expected \[tokens, heads, features\], got \[3, 64\]"):
        ops.quant_per_token_and_head(float_tensor(np.ones((3, 64)), "bfloat16", place))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer(place: Any, dtype: str) -> None:
    p = MLAProblem(9, 4, 64, 256, 64)
    q = random_kv_b_proj(p)
    layer = MLAUpProjections.from_kv_b_proj(
        q.codes[0], q.scale[0], heads=p.heads, nope=p.nope, v=p.v, dtype=dtype, place=place
    )
    for op, product in (("k_up", layer.absorb_q), ("v_up", layer.project_v)):
        x, scale = float8_activations(p, op)
        operands = float8_tensor(x, place), float_tensor(scale, "float32", place)
        expected = run_bits(place, p, op, x, scale, q, dtype)
        assert_bits_equal(tensor_bits(product(*operands)), expected)
        with pytest.raises(ValueError, match="_scale: expected float32 scales"):
            product(operands[0])
