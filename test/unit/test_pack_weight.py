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
"""Packing: the bytes that docs/formats.md prescribes, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.testing import float8
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.packed_layout import naive_pack
from w4afp8.testing.shapes import GEMM_SHAPES, LinearShape
from w4afp8.testing.tensors import int_tensor, tensor_bits

pytestmark = pytest.mark.usefixtures("route")

FORMATS = ("int4", "mxfp4")


def check(place: Any, codes: NDArray[np.uint8], weight_format: Any) -> None:
    _, out, half_in = codes.shape
    packed = ops.pack_weight(int_tensor(codes, "uint8", place), weight_format=weight_format)
    assert_bits_equal(tensor_bits(packed), naive_pack(codes, weight_format), "packed")
    back = ops.unpack_weight(
        packed, weight_format=weight_format, out_features=out, in_features=2 * half_in
    )
    assert_bits_equal(tensor_bits(back), codes, "unpacked")


def random_codes(experts: int, shape: LinearShape) -> NDArray[np.uint8]:
    size = (experts, shape.out_features, shape.in_features // 2)
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("shape", GEMM_SHAPES, ids=str)
def test_every_byte(place: Any, weight_format: str, shape: LinearShape) -> None:
    check(place, random_codes(2, shape), weight_format)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("code", range(16))
def test_every_code_alone(place: Any, weight_format: str, code: int) -> None:
    # -8 of int4 and -0 of E2M1 (both 8) among them.
    check(place, np.full((1, 72, 48), code * 17, np.uint8), weight_format)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("experts", [1, 3, 40])
def test_experts(place: Any, weight_format: str, experts: int) -> None:
    check(place, random_codes(experts, LinearShape(136, 160)), weight_format)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_padding_is_zero_and_ignored(place: Any, weight_format: Any) -> None:
    codes = np.full((1, 8, 16), 0xFF, np.uint8)
    packed = ops.pack_weight(int_tensor(codes, "uint8", place), weight_format=weight_format)
    bits = tensor_bits(packed)
    assert packed.shape == [1, 64, 32]
    assert np.count_nonzero(bits) <= 8 * 32
    # Where every bit that no code uses is set, the codes come back all the same.
    of_code = [naive_pack(np.full_like(codes, 17 * code), weight_format) for code in range(16)]
    in_use = np.bitwise_or.reduce(of_code)
    dirty = bits | ~in_use
    back = ops.unpack_weight(
        int_tensor(dirty, "uint8", place),
        weight_format=weight_format,
        out_features=8,
        in_features=32,
    )
    assert_bits_equal(tensor_bits(back), codes)


def test_int4_nibbles_are_linear_in_e4m3(place: Any) -> None:
    # The byte the GEMM makes of a nibble w, (w & 14) + (w & 1) * 0x82, is E4M3 for 2 q * 2^-9.
    for code in range(16):
        codes = np.full((1, 64, 64), code * 17, np.uint8)
        packed = ops.pack_weight(int_tensor(codes, "uint8", place), weight_format="int4")
        byte = int(tensor_bits(packed)[0, 0, 0])
        assert byte >> 4 == byte & 15
        e4m3 = (byte & 14) + (byte & 1) * 0x82
        assert float8.VALUES[e4m3] == 2 * (code - 16 * (code > 7)) * 2.0**-9
