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
"""test/unit/test_mla_float8.py with tensors on the GPU; independence of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import test_mla_float8
from test_mla_float8 import *  # noqa: F403
from test_mla_float8 import OPS, check_within, packed, run

from w4afp8.testing.compare import Accumulator, assert_bits_equal
from w4afp8.testing.mla import MLAProblem, Op, float8_activations, random_kv_b_proj
from w4afp8.testing.tensors import float8_tensor, float_tensor, tensor_bits

pytestmark = test_mla_float8.pytestmark


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("tokens", "heads"), [(300, 32), (1000, 5)])
def test_large(place: Any, accumulator: Accumulator, tokens: int, heads: int, op: Op) -> None:
    check_within(place, MLAProblem(tokens, heads), op, "bfloat16", accumulator)


@pytest.mark.parametrize("op", OPS)
def test_a_token_does_not_depend_on_its_batch(place: Any, op: Op) -> None:
    p = MLAProblem(600, 16)
    up = packed(place, p, random_kv_b_proj(p))
    codes, scale = float8_activations(p, op)

    def bits(part: slice) -> Any:
        scales = float_tensor(scale[part], "float32", place)
        return tensor_bits(run(op, float8_tensor(codes[part], place), scales, up, "bfloat16"))

    whole = bits(slice(None))
    assert_bits_equal(bits(slice(None)), whole, "again")
    for tokens in (1, 5, 64, 65, 200, 513):
        part = slice(37, 37 + tokens)
        assert_bits_equal(bits(part), whole[part], f"{tokens} tokens")
