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
"""Cases, routings and sets of the benchmark: what is read, how tokens spread, what is measured."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import pytest

from w4afp8.bench.case_sets import (
    MODEL_SHAPES,
    MODEL_TOKENS,
    contests,
    goal_contests,
    model_contests,
    skew_contests,
)
from w4afp8.bench.cases import GemmCase, error_bound
from w4afp8.bench.goals import goal_us
from w4afp8.bench.routing import SKEWS, even_among_busy, even_split, skewed_counts
from w4afp8.testing.compare import CARRIED_EVERY

pytestmark = pytest.mark.cpu_only

MAIN = (8, 7168, 8192)


def test_bytes_of_one_call() -> None:
    weights = 8 * 7168 * 8192
    scales = 8 * 7168 * 4
    assert GemmCase(*MAIN, 1).weight_bytes() == weights // 2 + scales
    groups = GemmCase(*MAIN, 1, group_size=128)
    assert groups.weight_bytes() == weights // 2 + scales + weights // 128 * 2
    mxfp4 = GemmCase(*MAIN, 1, weight_format="mxfp4", group_size=32)
    assert mxfp4.weight_bytes() == weights * 17 // 32 + scales  # 4.25 bits a weight
    assert groups.moved_bytes() == groups.weight_bytes() + 8 * (8192 + 2 * 7168)


def test_idle_experts_are_not_read() -> None:
    case = GemmCase(4, 64, 128, 10, counts=(0, 10, 0, 10))
    assert case.weight_bytes() == GemmCase(2, 64, 128, 10).weight_bytes()
    assert case.tokens == 20


@pytest.mark.parametrize(
    ("tokens", "floor", "memory_binds"),
    [(1, 76.4, True), (64, 79.9, True), (256, 160.3, False), (4096, 2565.5, False)],
)
def test_floor(tokens: int, floor: float, memory_binds: bool) -> None:
    # 8 * (7168 * 8192 * 4.125 / 8 + 4 * 7168 + tokens * 22528) / 3177e3, and
    # 8 * tokens * 2 * 7168 * 8192 / 1500e6: by hand.
    case = GemmCase(*MAIN, tokens, group_size=128)
    assert round(case.floor_us(), 1) == floor
    assert case.memory_binds() == memory_binds


@pytest.mark.parametrize(
    ("tokens", "padding"), [(1, 2048), (2048, 2048), (2049, 4096), (4096, 4096)]
)
def test_padding_is_2048_or_the_next_power_of_two(tokens: int, padding: int) -> None:
    assert GemmCase(*MAIN, tokens, mode="padded").token_padding == padding
    assert GemmCase(*MAIN, tokens).token_padding == 0


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="counts: expected 4 of them, got 2"):
        GemmCase(4, 64, 128, 1, counts=(1, 1))


def test_case_of_a_row_is_the_case() -> None:
    for contest in goal_contests() + model_contests():
        for case in contest.cases:
            assert GemmCase.from_row(case.row_values()) == case


@pytest.mark.parametrize("routing", SKEWS)
@pytest.mark.parametrize(("total", "experts"), [(128, 8), (8192, 8), (2048, 128), (131072, 128)])
def test_skews_keep_the_total(routing: str, total: int, experts: int) -> None:
    counts = skewed_counts(routing, total, experts)
    assert len(counts) == experts
    assert sum(counts) == total
    assert min(counts) >= 0
    assert max(counts) > 1.5 * total / sum(count > 0 for count in counts)
    even = even_among_busy(counts)
    assert [count > 0 for count in even] == [count > 0 for count in counts]
    assert sum(even) == total
    assert max(even) - min(count for count in even if count) <= 1


def test_what_the_skews_are() -> None:
    assert sum(count == 0 for count in skewed_counts("half_idle", 1280, 128)) == 64
    assert sum(count == 1 for count in skewed_counts("nearly_empty", 1280, 128)) == 112
    assert max(skewed_counts("overloaded", 1280, 128)) == 640
    falling = sorted(skewed_counts("zipf", 12800, 128), reverse=True)
    rest = [count - 1 for count in falling[:4]]  # but for one token each: 1, 1/2, 1/3, 1/4
    # Rounding down loses a token a rank, all given to the first.
    assert [round(rest[0] / count) for count in rest] == [1, 2, 3, 4]


def test_even_split_shares_what_is_left_over() -> None:
    assert even_split(10, 4) == (3, 3, 2, 2)


@pytest.mark.parametrize(("routing", "total"), [("even", 100), ("zipf", 15)])
def test_impossible_skews_are_refused(routing: str, total: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        skewed_counts(routing, total, 8)


def test_goals_has_every_row_that_has_a_goal() -> None:
    cases = [case for contest in goal_contests() for case in contest.cases]
    assert all(goal_us(case) is not None for case in cases)
    assert len(set(cases)) == len(cases)
    # 11 numbers of tokens in 3 formats, 28 of the other shapes in 2, in 2 modes; 5 in FP16.
    assert len(cases) == 2 * (11 * 3 + 28 * 2) + 5
    assert sum(case.out_dtype == "float16" for case in cases) == 5


def test_contests_of_one_shape_stand_together() -> None:
    for name in ("goals", "models", "skew"):
        shapes = [contest.shape for contest in contests(name)]  # type: ignore[arg-type]
        changes = 1 + sum(a != b for a, b in itertools.pairwise(shapes))
        assert changes == len(set(shapes)), name


def test_contests_have_one_shape_and_one_number_of_tokens() -> None:
    for contest in goal_contests() + model_contests() + skew_contests():
        assert len({(c.experts, c.out_features, c.in_features) for c in contest.cases}) == 1
        assert len({case.tokens for case in contest.cases}) == 1


def test_models_are_cut_at_whole_groups() -> None:
    assert all(shape.in_features % 32 == 0 for shape in MODEL_SHAPES)
    assert all(shape.out_features % 8 == 0 for shape in MODEL_SHAPES)
    by_model = collections.Counter(shape.model for shape in MODEL_SHAPES)
    assert by_model == dict.fromkeys(by_model, 4)
    assert len(model_contests()) == len(MODEL_SHAPES) * len(MODEL_TOKENS)


def test_skews_are_held_against_as_many_busy_experts() -> None:
    for contest in skew_contests():
        assert contest.reference is not None
        busy = sum(count > 0 for count in contest.reference.token_counts)
        for case in contest.cases:
            assert case.max_tokens == -1  # the host knows no counts
            assert sum(count > 0 for count in case.token_counts) == busy
            assert case.tokens == contest.reference.tokens
    assert {case.routing for c in skew_contests() for case in c.cases} == set(SKEWS)


def test_error_bound_grows_with_in_features_unless_sums_are_promoted() -> None:
    case = GemmCase(8, 7168, 1024, 1)
    longer = dataclasses.replace(case, in_features=8192)
    assert longer.error_bound() > case.error_bound()
    promoted = dataclasses.replace(case, group_size=64)
    assert dataclasses.replace(longer, group_size=64).error_bound() == promoted.error_bound()
    assert promoted.error_bound() == error_bound("bfloat16", 64)
    grouped = dataclasses.replace(longer, out_dtype="float16", group_size=128)
    assert grouped.error_bound() == error_bound("float16", 128)


def test_error_bound_of_carried_sums_hardly_grows_beyond_an_interval() -> None:
    every = CARRIED_EVERY["int4"]
    short, one, many = (
        GemmCase(8, 7168, in_features, 1, out_dtype="float16").error_bound()
        for in_features in (1024, every, 4 * every)
    )
    assert short == error_bound("float16", 1024)
    assert short < one < many < 1.05 * one


def test_error_bound_is_hardly_more_than_the_rounding_of_a_short_sum() -> None:
    # sqrt(0.541 / 3) of half a unit: 1.66e-3 and 2.07e-4. A step's cut adds 32 units of 2^-13.
    assert 1.66e-3 < error_bound("bfloat16", 32) < 1.05 * 1.66e-3
    assert 2.07e-4 < error_bound("float16", 32) < 2.5 * 2.07e-4
