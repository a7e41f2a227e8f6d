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
"""Dispatch is exact: a stable sort by expert, and the bytes of quant_per_token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.shapes import TOKEN_COUNTS
from w4afp8.testing.tensors import float_tensor, int_tensor, tensor_bits

pytestmark = pytest.mark.usefixtures("route")


def check(
    place: Any,
    ids: NDArray[Any],
    experts: int,
    hidden: int = 64,
    dtype: str = "bfloat16",
    *,
    padding: int = 0,
    first_expert: int = 0,
) -> None:
    num_tokens, topk = ids.shape
    x = np.random.default_rng(0).standard_normal((num_tokens, hidden)) * 5
    tensor = float_tensor(x, dtype, place)
    permuted, scale, tokens, row_index = ops.moe_dispatch(
        tensor,
        int_tensor(ids, "int32", place),
        experts=experts,
        token_padding=padding,
        first_expert=first_expert,
    )
    rows = [experts, padding] if padding else [num_tokens * topk]
    assert permuted.shape == [*rows, hidden]
    assert scale.shape == rows
    assert tokens.shape == [experts if padding else experts + 1]
    assert row_index.shape == [num_tokens, topk]

    expert = ids.reshape(-1) - first_expert
    kept = (expert >= 0) & (expert < experts)
    source = np.argsort(np.where(kept, expert, experts), kind="stable")[: kept.sum()]
    counts = np.bincount(expert[kept], minlength=experts)
    begins = np.concatenate([[0], np.cumsum(counts)])
    target = np.arange(len(source))
    expected_tokens = begins
    if padding:
        places = target - begins[expert[source]]
        source, target = (a[places < padding] for a in (source, expert[source] * padding + places))
        expected_tokens = np.minimum(counts, padding)
    expected_rows = np.full(expert.shape, -1)
    expected_rows[source] = target
    assert tensor_bits(tokens).view(np.int32).tolist() == expected_tokens.tolist()
    assert tensor_bits(row_index).view(np.int32).reshape(-1).tolist() == expected_rows.tolist()

    bytes_of_token, scale_of_token = (tensor_bits(t) for t in ops.quant_per_token(tensor))
    got_bytes, got_scales = (
        tensor_bits(permuted).reshape(-1, hidden),
        tensor_bits(scale).reshape(-1),
    )
    assert_bits_equal(got_bytes[target], bytes_of_token[source // topk], "permuted")
    assert_bits_equal(got_scales[target], scale_of_token[source // topk], "scale")


def random_ids(num_tokens: int, topk: int, experts: int) -> NDArray[Any]:
    rng = np.random.default_rng(1)
    ids = [rng.permutation(experts)[:topk] for _ in range(num_tokens)]
    return np.array(ids, np.int64).reshape(num_tokens, topk)


@pytest.mark.parametrize("num_tokens", TOKEN_COUNTS)
def test_every_number_of_tokens(place: Any, num_tokens: int) -> None:
    check(place, random_ids(num_tokens, 2, 8), 8, hidden=32)


@pytest.mark.parametrize(
    ("num_tokens", "topk", "experts"),
    [(9, 1, 1), (20, 8, 128), (20, 32, 33), (33, 6, 160), (300, 8, 1024), (3, 1, 1024)],
)
def test_sizes(place: Any, num_tokens: int, topk: int, experts: int) -> None:
    check(place, random_ids(num_tokens, topk, experts), experts)


@pytest.mark.parametrize("hidden", [1, 8, 90, 128, 2880, 7168])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_hidden(place: Any, hidden: int, dtype: str) -> None:
    check(place, random_ids(11, 3, 6), 6, hidden, dtype)


def test_all_to_one_expert(place: Any) -> None:
    check(place, np.full((70, 1), 5), 8)


def test_expert_twice_in_one_token(place: Any) -> None:
    check(place, np.array([[3, 3, 1], [0, 3, 0]]), 4)


def test_slots_outside_are_dropped(place: Any) -> None:
    ids = random_ids(40, 4, 8)
    ids[::3, 1] = -1
    ids[1::5, 0] = 8
    ids[2, 2], ids[3, 3] = 2**31 - 1, -(2**31)
    check(place, ids, 8)
    check(place, np.full((5, 2), -1), 8)


@pytest.mark.parametrize("num_tokens", [0, 1, 17, 500])
def test_padded(place: Any, num_tokens: int) -> None:
    check(place, random_ids(num_tokens, 3, 9), 9, padding=200)


def test_later_tokens_of_a_full_expert_are_dropped(place: Any) -> None:
    ids = random_ids(300, 2, 8)
    ids[::2, 0] = 5
    check(place, ids, 8, padding=64)
    check(place, ids, 8, padding=1)


@pytest.mark.parametrize("padding", [0, 70])
def test_share_of_a_rank(place: Any, padding: int) -> None:
    ids = random_ids(130, 8, 256)
    ids[3, 3], ids[4, 4], ids[5, 5] = 2**31 - 1, -(2**31), -1
    check(place, ids, 32, padding=padding, first_expert=64)
    check(place, ids, 32, padding=padding, first_expert=224)
    check(place, ids, 32, padding=padding, first_expert=2**31 - 33)  # nobody's


@pytest.mark.parametrize("num_tokens", [513, 1100, 2100, 5000])
def test_many_slots(place: Any, num_tokens: int) -> None:
    # On the GPU: several tokens for each block, and slots for several rounds of counting.
    check(place, random_ids(num_tokens, 8, 40), 32, hidden=8, first_expert=4)
    check(place, random_ids(num_tokens, 8, 40), 40, hidden=8, padding=num_tokens // 5)


def test_many_slots_of_one_block(place: Any) -> None:
    # On the GPU: more than a block works out at once.
    check(place, np.random.default_rng(2).integers(0, 6, (45000, 32)), 5, hidden=1)
