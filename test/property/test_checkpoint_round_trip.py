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
"""Codes and scales survive spelling, reading, packing and unpacking, whatever they are."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from checkpoint_samples import (
    CASES,
    Case,
    Expert,
    Matrix,
    pairs_of,
    spell,
    spell_offset,
    spell_sign_magnitude,
    stored_scale_to_multiplier,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from w4afp8.checkpoint import load_moe_ffn
from w4afp8.quant import QuantizedWeight, unpack

pytestmark = pytest.mark.cpu_only

# Bits of the largest finite number of each type; below it are all that are not negative.
LARGEST_BITS = {np.float32: 0x7F7FFFFF, np.float16: 0x7BFF, ml_dtypes.bfloat16: 0x7F7F}
# 512 times it is finite, which FastDeploy's operators read.
LARGEST_CONVERTED_BITS = 0x7F7FFFFF - (9 << 23)


def scale_bits(case: Case) -> tuple[Any, int]:
    """The integer type that holds a scale, and its largest value."""
    if case.weight_format == "mxfp4":
        return np.uint8, 254
    if case.spell in (spell_offset, spell_sign_magnitude):
        return np.uint32, LARGEST_CONVERTED_BITS
    largest = LARGEST_BITS[case.scale_type]
    return np.uint32 if case.scale_type is np.float32 else np.uint16, largest


def spread(draw: st.DrawFn, shape: tuple[int, ...], number: Any, elements: Any) -> NDArray[Any]:
    """Up to 251 drawn numbers over and over: the prime length meets every place of every block."""
    length = draw(st.sampled_from([251, 13]))
    return np.resize(draw(arrays.arrays(number, length, elements=elements)), shape)


@st.composite
def experts_of(draw: st.DrawFn, case: Case) -> list[Expert]:
    number, largest = scale_bits(case)
    code = st.integers(0, 15)
    if case.smallest_code == -7:
        code = code.filter(lambda c: c != 8)
    expert = {}
    for name, (out, in_features) in case.sizes().items():
        codes = spread(draw, (out, in_features), np.uint8, code)
        if case.smallest_code == -7:
            codes[0, :2] = (7, 9)  # a layer's codes tell their spelling by their extremes
        shape = (out, case.groups(in_features))
        bits = spread(draw, shape, number, st.integers(0, largest))
        scale = bits if case.weight_format == "mxfp4" else bits.view(case.scale_type)
        expert[name] = Matrix(codes, scale)
    return [expert]


def assert_is(weight: QuantizedWeight, matrices: list[Matrix], case: Case) -> None:
    codes: NDArray[Any] = np.concatenate([pairs_of(matrix.codes) for matrix in matrices])
    scale = stored_scale_to_multiplier(case, np.concatenate([m.scale for m in matrices]))
    assert np.array_equal(weight.codes[0], codes)
    assert weight.scale.tobytes() == scale.tobytes()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_round_trip(case: Case, data: st.DataObject) -> None:
    (expert,) = experts = data.draw(experts_of(case))
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), spell(case, experts), case.config)
        layer = load_moe_ffn(folder, layer=3, topk=1, progress=False)
    assert_is(unpack(layer.up_gate_proj.packed_weight), [expert["gate"], expert["up"]], case)
    assert_is(unpack(layer.down_proj.packed_weight), [expert["down"]], case)
