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
"""Goals: their scaling by a run's ceilings, and the line between met and missed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from w4afp8.bench.cases import GemmCase
from w4afp8.bench.goals import INT4_GOALS, INT4_GROUP_GOALS, MAIN_SHAPE, goal_us, verdict
from w4afp8.bench.row_text import format_name, rates, summary_line

pytestmark = pytest.mark.cpu_only

DECODE, PREFILL = GemmCase(*MAIN_SHAPE, 16), GemmCase(*MAIN_SHAPE, 1024)
MXFP4 = {"weight_format": "mxfp4", "group_size": 32}


def row_of(case: GemmCase, us: float, **others: Any) -> dict[str, Any]:
    values = {"hbm_gbs": 3177.0, "tensor_tflops": 1500.0, "peer": None, "peer_us": None}
    return {**case.row_values(), "us": us, "error": 1e-3, **values, **others}


def met(row: dict[str, Any]) -> bool:
    found = verdict(row)
    assert found is not None
    return found.met


def test_goals_are_above_their_floors() -> None:
    # But for 1024 and more tokens, where the tensor cores were seen faster than the constant.
    for shape, goals in INT4_GOALS.items():
        for tokens, goal in goals.items():
            assert goal > 0.98 * GemmCase(*shape, tokens).floor_us()
    for tokens, goal in INT4_GROUP_GOALS.items():
        assert goal >= INT4_GOALS[MAIN_SHAPE][tokens]


def test_mxfp4_has_more_to_read() -> None:
    assert goal_us(dataclasses.replace(DECODE, **MXFP4)) == pytest.approx(80 * 1.06)
    assert goal_us(dataclasses.replace(PREFILL, **MXFP4)) == 630


@pytest.mark.parametrize(
    "case",
    [
        GemmCase(*MAIN_SHAPE, 17),
        GemmCase(8, 4096, 7168, 16, group_size=128),
        dataclasses.replace(DECODE, group_size=64),
        dataclasses.replace(DECODE, model="a model"),
        GemmCase(*MAIN_SHAPE, 16, routing="zipf", counts=(16,) * 8),
    ],
)
def test_no_goal(case: GemmCase) -> None:
    assert goal_us(case) is None
    assert verdict(row_of(case, 1.0)) is None


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 1.02), ({"mode": "padded"}, 1.03), ({"out_dtype": "float16"}, 1.03)],
)
def test_tolerance(options: dict[str, Any], tolerance: float) -> None:
    case = dataclasses.replace(DECODE, **options)
    assert met(row_of(case, 80 * tolerance - 0.01))
    assert not met(row_of(case, 80 * tolerance + 0.01))


def test_goal_scales_with_the_ceiling_that_binds() -> None:
    slow_memory = {"hbm_gbs": 3177.0 / 1.04}
    assert met(row_of(DECODE, 80 * 1.04, **slow_memory))
    assert not met(row_of(DECODE, 80 * 1.04))
    slow_tensor_cores = {"tensor_tflops": 1500.0 / 1.04}
    assert not met(row_of(DECODE, 80 * 1.04, **slow_tensor_cores))
    assert met(row_of(PREFILL, 630 * 1.04, **slow_tensor_cores))
    assert not met(row_of(PREFILL, 630 * 1.04, **slow_memory))
    # A faster card is held to more.
    assert not met(row_of(PREFILL, 630, tensor_tflops=1500.0 * 1.04))


def test_rates() -> None:
    found = rates(row_of(PREFILL, 1000.0))
    assert found.tflops == pytest.approx(8 * 1024 * 2 * 7168 * 8192 / 1e9)
    assert found.gbs == pytest.approx(PREFILL.moved_bytes() / 1e6)
    assert found.floor_percent == pytest.approx(PREFILL.floor_us() / 10, rel=1e-4)  # us, rounded
    assert (found.binding, rates(row_of(DECODE, 80.0)).binding) == ("tensor cores", "memory")


def test_rates_need_even_routing() -> None:
    with pytest.raises(ValueError, match="routing: expected 'even', got 'zipf'"):
        rates(row_of(DECODE, 80.0, routing="zipf"))


def test_summary_says_goal_and_ratio() -> None:
    line = summary_line(row_of(DECODE, 100.0, peer="DeepGEMM FP8 masked", peer_us=150.0))
    assert "goal 80.0 MISSED" in line
    assert "1.50 x DeepGEMM FP8 masked" in line
    skewed = summary_line(row_of(DECODE, 100.0, routing="zipf"))
    assert "zipf" in skewed
    assert "goal" not in skewed


def test_format_names() -> None:
    assert format_name(row_of(DECODE, 1.0)) == "int4"
    assert format_name(row_of(dataclasses.replace(DECODE, group_size=128), 1.0)) == "int4 g128"
    assert format_name(row_of(dataclasses.replace(DECODE, **MXFP4), 1.0)) == "mxfp4"
