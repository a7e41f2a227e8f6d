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
"""Packing ``kv_b_proj`` loses nothing, whatever the codes, scales and sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w4afp8.quant import dequantize, quantize, split_kv_b_proj, unpack_kv_b_proj
from w4afp8.testing.mla import MLAProblem, random_kv_b_proj

pytestmark = pytest.mark.cpu_only

BLOCKS = st.integers(1, 4).map(lambda n: 64 * n)
PROBLEMS = st.builds(MLAProblem, st.just(0), st.integers(1, 4), BLOCKS, BLOCKS, BLOCKS)
SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=40)
@given(PROBLEMS, SEEDS)
def test_round_trip(p: MLAProblem, seed: int) -> None:
    q = random_kv_b_proj(p, seed, scales=(0, 252))
    back = unpack_kv_b_proj(split_kv_b_proj(q.codes[0], q.scale[0], p.heads, p.nope, p.v))
    assert (back.codes == q.codes).all()
    assert (back.scale == q.scale).all()


@settings(deadline=None, max_examples=20)
@given(PROBLEMS, SEEDS, st.integers(253, 255), st.data())
def test_one_wrong_scale_is_found(p: MLAProblem, seed: int, byte: int, data: st.DataObject) -> None:
    q = random_kv_b_proj(p, seed)
    row = data.draw(st.integers(0, p.rows - 1))
    group = data.draw(st.integers(0, p.lora // 32 - 1))
    scale = q.scale[0].copy()
    scale[row, group] = byte
    with pytest.raises(ValueError, match=f"^scale: expected .*{row}, {group}"):
        split_kv_b_proj(q.codes[0], scale, p.heads, p.nope, p.v)


@settings(deadline=None, max_examples=20)
@given(PROBLEMS, SEEDS)
def test_rounding_what_is_mxfp4_already_changes_nothing(p: MLAProblem, seed: int) -> None:
    """Floats that MXFP4 holds come through as floats, too."""
    rng = np.random.default_rng(seed)
    values = dequantize(
        quantize(rng.standard_normal((1, p.rows, p.lora), np.float32), weight_format="mxfp4")
    )[0]
    up = split_kv_b_proj(values, None, p.heads, p.nope, p.v)
    assert (up.error.k, up.error.v) == (0.0, 0.0)
    assert (dequantize(unpack_kv_b_proj(up))[0] == values).all()
