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
"""Rounding rules, dequantisation, and packing of scales."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import paddle
import pytest
from numpy.typing import NDArray

from w4afp8.quant import ROUNDINGS, QuantizedWeight, dequantize, pack, quantize, unpack
from w4afp8.quant.bfloat16 import round_to_bfloat16
from w4afp8.quant.codes import CODE_VALUES, join_nibbles, split_nibbles
from w4afp8.quant.mxfp4 import round_to_e2m1
from w4afp8.quant.packing import pack_e8m0, unpack_e8m0

pytestmark = pytest.mark.cpu_only


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def codes_of(q: QuantizedWeight) -> NDArray[np.float32]:
    return CODE_VALUES[q.weight_format][split_nibbles(q.codes)]


def test_absmax_7_is_symmetric() -> None:
    w = np.zeros((1, 8, 32), np.float32)
    w[0, :, 0], w[0, :, 1], w[0, :, 2], w[0, :, 3] = -14.0, 14.0, 1.0, 3.0
    q = quantize(w)
    assert q.scale.tolist() == [[2.0] * 8]
    # 0.5 and 1.5 round to even.
    assert codes_of(q)[0, 0, :4].tolist() == [-7, 7, 0, 2]
    assert (codes_of(quantize(normal(2, 8, 64))) >= -7).all()


def test_absmax_7_5_reaches_minus_8() -> None:
    w = np.zeros((1, 8, 32), np.float32)
    w[0, :, 0], w[0, :, 1] = -7.5, 7.5
    q = quantize(w, rounding="absmax/7.5")
    assert q.scale.tolist() == [[1.0] * 8]
    assert codes_of(q)[0, 0, :2].tolist() == [-8, 7]


@pytest.mark.parametrize("group_size", [-1, 32, 128])
def test_mse_is_the_best_rule(group_size: int) -> None:
    w = normal(2, 16, 256)
    errors = {}
    for rounding in ROUNDINGS:
        q = quantize(w, group_size=group_size, rounding=rounding)
        difference = (dequantize(q) - w).reshape(*q.scale.shape, -1)
        errors[rounding] = (difference.astype(np.float64) ** 2).sum(axis=-1)
    # Per group, up to the float32 rounding of equal candidates.
    assert (errors["mse"] <= errors["absmax/7"] * (1 + 1e-5)).all()
    assert (errors["mse"] <= errors["absmax/7.5"] * (1 + 1e-5)).all()
    assert errors["mse"].sum() < 0.95 * errors["absmax/7"].sum()


@pytest.mark.parametrize("group_size", [-1, 32, 64, 128, 384])
@pytest.mark.parametrize("rounding", ["absmax/7", "absmax/7.5"])
def test_int4_error_is_half_a_step(group_size: int, rounding: Any) -> None:
    w = normal(3, 8, 384)
    q = quantize(w, group_size=group_size, rounding=rounding)
    assert q.codes.shape == (3, 8, 192)
    groups = () if group_size == -1 else (384 // group_size,)
    assert q.scale.shape == (3, 8, *groups)
    assert q.scale.dtype == np.float32
    step = np.broadcast_to(q.scale[..., None], (*q.scale.shape, w.size // q.scale.size))
    # Half a step, also where 7.5 is cut to 7; 2^-20 for float32's roundings of codes up to 8.
    assert (np.abs(dequantize(q) - w) <= step.reshape(w.shape) * (0.5 + 2.0**-20)).all()


def test_bfloat16_scales_are_used_for_the_codes() -> None:
    w = normal(2, 8, 128)
    q = quantize(w, group_size=32, scale_dtype="bfloat16")
    assert (round_to_bfloat16(q.scale) == q.scale).all()
    groups = w.reshape(2, 8, 4, 32)
    expected = np.clip(np.rint(groups / q.scale[..., None]), -8, 7).reshape(w.shape)
    assert (codes_of(q) == expected).all()


def test_group_of_zeros() -> None:
    for options in ({}, {"group_size": 32}, {"rounding": "mse"}, {"weight_format": "mxfp4"}):
        q = quantize(np.zeros((1, 8, 64), np.float32), **options)
        assert (q.codes == 0).all()
        assert (dequantize(q) == 0).all()
    assert (quantize(np.zeros((1, 8, 64), np.float32)).scale == 1).all()


def test_tiny_and_huge_weights() -> None:
    for size in (1e-44, 1e-38, 1e38):
        w = np.full((1, 8, 32), size, np.float32)
        for weight_format in ("int4", "mxfp4"):
            q = quantize(w, weight_format=weight_format)
            assert np.isfinite(dequantize(q)).all()
    assert np.allclose(dequantize(quantize(w)), w, rtol=1e-6)


def test_e2m1_rounds_to_nearest_even() -> None:
    grid = CODE_VALUES["mxfp4"][:8].astype(np.float64)
    values = np.concatenate([np.arange(0, 9, 1 / 64), [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]])
    distance = np.abs(values[:, None] - grid)
    nearest = distance.min(axis=1, keepdims=True) == distance
    codes = round_to_e2m1(values.astype(np.float32))
    assert nearest[np.arange(len(values)), codes].all()
    tied = nearest.sum(axis=1) == 2
    assert tied.sum() >= 7
    assert (codes[tied] % 2 == 0).all()
    assert (round_to_e2m1(-values.astype(np.float32)) == codes + 8).all()  # -0 too


def test_mxfp4_exponent() -> None:
    largest = np.array([1, 1.99, 2, 6, 7.9, 8, 2.0**-126, 2.0**-149, 3e38], np.float32)
    w = np.zeros((1, len(largest), 32), np.float32)
    w[0, :, 5] = largest
    q = quantize(w, weight_format="mxfp4")
    expected = np.maximum(np.floor(np.log2(largest.astype(np.float64))) - 2, -127) + 127
    assert q.scale[0, :, 0].tolist() == expected.tolist()


def test_mxfp4_gives_exact_numbers_back() -> None:
    codes = np.tile(np.arange(16, dtype=np.uint8), (2, 8, 4))
    scale = np.random.default_rng(1).integers(1, 250, (2, 8, 2)).astype(np.uint8)
    q = QuantizedWeight(join_nibbles(codes), scale, "mxfp4", 32)
    again = quantize(dequantize(q), weight_format="mxfp4")
    assert (again.codes == q.codes).all()
    assert (again.scale == q.scale).all()
    assert np.signbit(dequantize(q)[0, 0, 8])
    assert dequantize(q)[0, 0, 8] == 0


def test_paddle_tensors_and_other_floats() -> None:
    w = round_to_bfloat16(normal(2, 8, 64))
    expected = quantize(w)
    for other in (
        paddle.to_tensor(w),
        paddle.to_tensor(w).astype("bfloat16"),
        w.astype(np.float64),
    ):
        got = quantize(other)
        assert (got.codes == expected.codes).all()
        assert (got.scale == expected.scale).all()


@pytest.mark.parametrize(
    ("weight_format", "group_size", "scale_dtype"),
    [
        ("int4", -1, "float32"),
        ("int4", 32, "float32"),
        ("int4", 384, "float32"),
        ("int4", 128, "bfloat16"),
        ("mxfp4", 32, "float32"),
    ],
)
def test_pack_and_unpack_bit_for_bit(weight_format: Any, group_size: int, scale_dtype: Any) -> None:
    q = quantize(
        normal(3, 72, 384),
        weight_format=weight_format,
        group_size=group_size,
        scale_dtype=scale_dtype,
        rounding="absmax/7.5" if weight_format == "int4" else "absmax/7",
    )
    packed = pack(q)
    assert packed.weight.shape == [3, 128, 192]
    assert packed.weight_scale.shape == [3, 72]
    if group_size == -1:
        assert packed.group_scale is None
    elif weight_format == "int4":
        assert packed.group_scale.shape == [3, 384 // group_size, 72]
        assert str(packed.group_scale.dtype) == f"paddle.{scale_dtype}"
    back = unpack(packed)
    assert (back.codes == q.codes).all()
    assert (back.scale == q.scale).all()
    assert (back.scale.dtype, back.scale_dtype) == (q.scale.dtype, q.scale_dtype)
    assert (back.weight_format, back.group_size) == (q.weight_format, q.group_size)


def test_e8m0_is_relative_to_the_largest() -> None:
    scale = np.array([[[120, 127, 0, 119, 126], [254, 0, 1, 253, 254]]], np.uint8)
    weight_scale, relative = pack_e8m0(scale)
    assert weight_scale.tolist() == [[1.0, 2.0**127]]
    assert relative.shape == (1, 2, 2, 4)
    assert relative[0, 0].tolist() == [[247, 254, 127, 246], [254, 0, 1, 253]]
    assert relative[0, 1].tolist() == [[253, 254, 254, 254], [254, 254, 254, 254]]
    assert (unpack_e8m0(weight_scale, relative, 160) == scale).all()


def test_e8m0_whole_range_comes_back() -> None:
    scale = np.random.default_rng(2).integers(0, 255, (2, 300, 9)).astype(np.uint8)
    scale[0, :255, 0] = np.arange(255)
    scale[0, :255, 1:] = 0  # largest bytes from 0 on
    assert (unpack_e8m0(*pack_e8m0(scale), 288) == scale).all()


def test_folded_factors_cannot_be_unpacked() -> None:
    for options in ({"group_size": 32}, {"weight_format": "mxfp4"}):
        packed = pack(quantize(normal(1, 8, 64), **options))
        folded = dataclasses.replace(packed, weight_scale=packed.weight_scale * 1.5)
        with pytest.raises(ValueError, match="weight_scale: expected"):
            unpack(folded)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (np.zeros((8, 32), np.float32), {}, r"weight: expected \[experts, out"),
        (np.zeros((0, 8, 32), np.float32), {}, "weight: expected"),
        (np.zeros((1, 8, 32), np.int32), {}, "weight: expected floats, got int32"),
        (np.full((1, 8, 32), np.nan), {}, r"weight: expected finite numbers, got nan at \(0, 0\)"),
        (np.full((1, 8, 32), np.inf), {"weight_format": "mxfp4"}, "finite numbers, got inf"),
        (np.zeros((1, 8, 48), np.float32), {}, "in_features: expected .* 32, got 48"),
        (np.zeros((1, 8, 64), np.float32), {"group_size": 48}, "group_size: expected"),
        (np.zeros((1, 8, 96), np.float32), {"group_size": 64}, "group_size: expected a divisor"),
        (np.zeros((1, 8, 64), np.float32), {"weight_format": "fp4"}, "weight_format: expected"),
        (np.zeros((1, 8, 64), np.float32), {"rounding": "max"}, "rounding: expected one of"),
        (np.zeros((1, 8, 64), np.float32), {"scale_dtype": "float16"}, "scale_dtype: expected"),
        (np.zeros((1, 8, 64), np.float32), {"scale_dtype": "bfloat16"}, "scale_dtype: expected"),
        (
            np.zeros((1, 8, 64), np.float32),
            {"weight_format": "mxfp4", "group_size": 64},
            "group_size: expected 32",
        ),
        (
            np.zeros((1, 8, 64), np.float32),
            {"weight_format": "mxfp4", "rounding": "mse"},
            "rounding: expected the default",
        ),
    ],
)
def test_bad_arguments(weight: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(weight, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.zeros((8, 16), np.uint8)}, "codes: expected"),
        ({"codes": np.zeros((1, 8, 16), np.int8)}, "codes: expected .* uint8"),
        ({"codes": np.zeros((1, 8, 8), np.uint8)}, "in_features: expected"),
        ({"scale": np.ones((1, 7), np.float32)}, r"scale: expected .* \[1, 8\], got .* \[1, 7\]"),
        ({"scale": np.ones((1, 8), np.float64)}, "scale: expected .* float32"),
        ({"scale": np.full((1, 8), np.nan, np.float32)}, "scale: expected finite"),
        ({"scale": [1.0]}, "scale: expected a numpy array"),
        ({"weight_format": "mxfp4", "scale": np.full((1, 8, 1), 255, np.uint8)}, "0xFF"),
        ({"weight_format": "mxfp4"}, "scale: expected .* uint8"),
        (
            {
                "group_size": 32,
                "scale": np.full((1, 8, 1), 1.001, np.float32),
                "scale_dtype": "bfloat16",
            },
            "bfloat16 numbers",
        ),
    ],
)
def test_bad_quantized_weight(changes: Any, message: str) -> None:
    good = {"codes": np.zeros((1, 8, 16), np.uint8), "scale": np.ones((1, 8), np.float32)}
    QuantizedWeight(**good)
    with pytest.raises(ValueError, match=message):
        QuantizedWeight(**(good | changes))


@pytest.mark.parametrize("function", [pack, unpack, dequantize])
def test_arrays_are_no_quantized_weights(function: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a \w+Weight, got ndarray"):
        function(np.zeros((2, 8, 32), np.float32))


def test_bfloat16_rounds_to_nearest_even() -> None:
    """Every bfloat16 number but infinities and NaN, with what decides its rounding behind it."""
    upper = np.arange(1 << 16, dtype=np.uint32)[:, None] << np.uint32(16)
    bits = upper | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = bits[np.isfinite(upper.view(np.float32))[:, 0]].view(np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert round_to_bfloat16(values).tobytes() == expected.tobytes()
