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
"""Routing within groups of experts, against a naive version of DeepSeek-V3's rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_moe_route import SCORE_ERROR, run, scores_of

from w4afp8.testing.compare import assert_within

pytestmark = pytest.mark.usefixtures("route")


def group_scores(keys: NDArray[Any], n_group: int) -> NDArray[Any]:
    """Sums of each group's two largest keys, or the one that there is: ``[tokens, n_group]``."""
    grouped = keys.reshape(len(keys), n_group, -1)
    largest: NDArray[Any] = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
    return largest


def chosen(keys: NDArray[Any], topk: int, n_group: int, topk_group: int) -> NDArray[Any]:
    """Experts of each token by sorting; ties go to the lower group and the lower expert."""
    best = np.argsort(-group_scores(keys, n_group), axis=1, kind="stable")[:, :topk_group]
    kept = np.zeros((len(keys), n_group), bool)
    np.put_along_axis(kept, best, True, axis=1)
    candidates = np.where(np.repeat(kept, keys.shape[1] // n_group, axis=1), keys, -np.inf)
    return np.argsort(-candidates, axis=1, kind="stable")[:, :topk]


@pytest.mark.parametrize(
    ("experts", "topk", "n_group", "topk_group"),
    [
        (256, 8, 8, 4),  # DeepSeek-V3
        (160, 6, 8, 3),  # DeepSeek-V2's sizes
        (64, 4, 32, 4),  # groups of two
        (32, 5, 32, 7),  # groups of one
        (60, 7, 5, 2),
        (96, 32, 3, 2),
        (8, 2, 1, 1),
        (1024, 16, 8, 8),
        (512, 16, 2, 1),
    ],
)
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_sizes(
    place: Any, experts: int, topk: int, n_group: int, topk_group: int, score: str
) -> None:
    rng = np.random.default_rng(experts + topk)
    logits = rng.standard_normal((23, experts)) * 3
    bias = rng.standard_normal(experts).astype(np.float32)
    options = {"n_group": n_group, "topk_group": topk_group, "score": score}
    weights, ids = run(place, logits, topk, correction_bias=bias, **options)

    scores = scores_of(logits.astype(np.float32), score)
    keys = scores + bias
    assert all(len(set(row)) == topk for row in ids.tolist())
    size = experts // n_group
    for token, row in enumerate(ids):
        assert len(set(row // size)) <= topk_group, f"token {token}"
    expected = chosen(keys, topk, n_group, topk_group)
    error = 2 * SCORE_ERROR + 2.0**-23 * np.abs(bias).max()
    got_keys, best_keys = (np.take_along_axis(keys, i, 1) for i in (ids, expected))
    clear = clear_tokens(keys, n_group, topk_group, 4 * error)
    assert clear.sum() >= 10
    assert_within(got_keys[clear], best_keys[clear], np.full_like(best_keys[clear], error), "keys")

    picked = np.take_along_axis(scores, ids, 1)
    picked /= picked.sum(axis=1, keepdims=True)
    assert_within(weights, picked, 3 * SCORE_ERROR * np.abs(picked), "weights")


def clear_tokens(
    keys: NDArray[Any], n_group: int, topk_group: int, distance: float
) -> NDArray[np.bool_]:
    """Tokens whose last chosen group is farther than `distance` before the first one not chosen."""
    if topk_group == n_group:
        return np.ones(len(keys), bool)
    falling = np.sort(group_scores(keys, n_group), axis=1)[:, ::-1]
    gap: NDArray[Any] = falling[:, topk_group - 1] - falling[:, topk_group]
    return gap > distance


def test_the_sum_of_two_decides(place: Any) -> None:
    # Group 0 has the best expert, group 1 the best pair, group 2 the best three.
    bias = np.array([6, 0, 0, 4, 3, 0, 3, 3, 3], np.float32)
    for topk_group, expected in ((1, [3, 4, 5]), (2, [0, 3, 4]), (3, [0, 3, 4])):
        _, ids = run(
            place, np.zeros((4, 9)), 3, correction_bias=bias, n_group=3, topk_group=topk_group
        )
        assert ids.tolist() == [expected] * 4


def test_ties_go_to_the_lower_group(place: Any) -> None:
    logits = np.zeros((2, 64))
    logits[1, 40:] = 1
    _, ids = run(place, logits, 4, n_group=8, topk_group=2)
    assert ids.tolist() == [[0, 1, 2, 3], [40, 41, 42, 43]]
    # Equal sums of different pairs, exactly: 3 + 1 and 2 + 2.
    bias = np.array([0, 0, 3, 1, 2, 2, 0, 0], np.float32)
    _, ids = run(place, np.zeros((1, 8)), 2, correction_bias=bias, n_group=4, topk_group=1)
    assert ids.tolist() == [[2, 3]]


def test_negative_keys_never_lose_to_other_groups(place: Any) -> None:
    # A masked expert must not count as 0, which is more than what is left.
    bias = np.full(8, -50, np.float32)
    bias[4] = -10
    _, ids = run(place, np.zeros((1, 8)), 4, correction_bias=bias, n_group=2, topk_group=1)
    assert ids.tolist() == [[4, 5, 6, 7]]


def test_ids_stay_in_the_groups_whatever_the_logits(place: Any) -> None:
    logits = np.random.default_rng(2).standard_normal((6, 40))
    logits[0] = np.nan
    logits[1, 7] = np.nan
    logits[2, 7], logits[2, 8] = np.inf, -np.inf
    logits[3] = -np.inf
    logits[4, ::2] = -np.inf
    for score in ("softmax", "sigmoid"):
        _, ids = run(place, logits, 10, score=score, n_group=4, topk_group=1)
        assert ((ids >= 0) & (ids < 40)).all()
        assert all(len(set(row)) == 10 and len({i // 10 for i in row}) == 1 for row in ids.tolist())


def test_no_tokens(place: Any) -> None:
    weights, ids = run(place, np.zeros((0, 8)), 2, n_group=4, topk_group=2)
    assert weights.shape == ids.shape == (0, 2)
