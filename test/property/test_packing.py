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
"""Packing and unpacking lose nothing, whatever the codes, scales and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from w4afp8.quant import QuantizedWeight, dequantize, pack, quantize, unpack
from w4afp8.quant.codes import join_nibbles, split_nibbles
from w4afp8.quant.packing import pack_e8m0, unpack_e8m0
from w4afp8.testing.packed_layout import naive_pack
from w4afp8.testing.tensors import tensor_bits

pytestmark = pytest.mark.cpu_only

EXPERTS = st.integers(1, 3)
OUTS = st.integers(1, 40).map(lambda n: 8 * n)
INS = st.integers(1, 12).map(lambda n: 32 * n)


@st.composite
def quantized_weights(draw: st.DrawFn) -> QuantizedWeight:
    experts, out, in_features = draw(EXPERTS), draw(OUTS), draw(INS)
    codes = draw(arrays.arrays(np.uint8, (experts, out, in_features // 2), elements=bytes_()))
    weight_format: Any = draw(st.sampled_from(["int4", "mxfp4"]))
    if weight_format == "mxfp4":
        shape = (experts, out, in_features // 32)
        scale: NDArray[Any] = draw(arrays.arrays(np.uint8, shape, elements=bytes_(254)))
        return QuantizedWeight(codes, scale, "mxfp4", 32)
    sizes = [size for size in (32, 64, 128, 256, 384) if in_features % size == 0]
    group_size = draw(st.sampled_from([-1, *sizes]))
    groups = () if group_size == -1 else (in_features // group_size,)
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    scale = draw(arrays.arrays(np.float32, (experts, out, *groups), elements=finite))
    return QuantizedWeight(codes, scale, "int4", group_size)


def bytes_(largest: int = 255) -> st.SearchStrategy[int]:
    return st.integers(0, largest)


@settings(deadline=None, max_examples=60)
@given(quantized_weights())
def test_pack_round_trip(weight: QuantizedWeight) -> None:
    packed = pack(weight)
    assert (tensor_bits(packed.weight) == naive_pack(weight.codes, weight.weight_format)).all()
    back = unpack(packed)
    assert (back.codes == weight.codes).all()
    assert back.scale.tobytes() == weight.scale.tobytes()  # the sign of -0 too


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=3), elements=bytes_()))
def test_nibbles_round_trip(pairs: NDArray[np.uint8]) -> None:
    assert (join_nibbles(split_nibbles(pairs)) == pairs).all()


@given(
    st.integers(1, 9).flatmap(lambda n: arrays.arrays(np.uint8, (2, 3, n), elements=bytes_(254)))
)
def test_e8m0_round_trip(scale: NDArray[np.uint8]) -> None:
    weight_scale, relative = pack_e8m0(scale)
    assert (relative.max(axis=(1, 3)) == 254).all()
    assert (unpack_e8m0(weight_scale, relative, 32 * scale.shape[2]) == scale).all()


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, (2, 8, 64), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from([("int4", -1), ("int4", 32), ("mxfp4", 32)]),
)
def test_quantising_again_changes_nothing(
    values: NDArray[np.float32], form: tuple[Any, int]
) -> None:
    weight_format, group_size = form
    once = dequantize(quantize(values, weight_format=weight_format, group_size=group_size))
    twice = dequantize(quantize(once, weight_format=weight_format, group_size=group_size))
    # The scale of int4 is divided out and multiplied in again: a few float32 roundings.
    tolerance = 0.0 if weight_format == "mxfp4" else 2.0**-20
    assert (np.abs(twice - once) <= tolerance * np.abs(once) + 1e-44).all()
