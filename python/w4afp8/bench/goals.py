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
"""The goals of the grouped GEMM, and whether a row of results meets its goal.

Set on one H100 80GB HBM3 whose memory reads 3177 GB/s and whose tensor cores do 1500 FP8 TFLOP/s in
bursts, for even routing and BF16 output in prefix mode. Cards differ by some percent, so a goal is
scaled by the ceiling that binds, measured in the same run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from w4afp8.bench.cases import READ_GBS, TENSOR_TFLOPS, GemmCase

Shape = tuple[int, int, int]  # experts, out_features, in_features

MAIN_SHAPE: Shape = (8, 7168, 8192)
TOLERANCE = 1.02  # times the goal
OTHER_TOLERANCE = 1.03  # in padded mode and for FP16
# mxfp4 reads 4.25 bits a weight for the 4 of int4: where memory binds, this much longer.
MXFP4_FACTOR = 1.06

# Microseconds by tokens per expert, int4 per channel.
INT4_GOALS: dict[Shape, dict[int, float]] = {
    MAIN_SHAPE: {
        **{1: 79, 8: 79.5, 16: 80, 32: 81.5, 64: 85, 128: 98},
        **{256: 168, 512: 325, 1024: 630, 2048: 1275, 4096: 2550},
    },
    (8, 4096, 7168): {1: 41.5, 16: 42, 64: 44, 256: 85, 1024: 326},
    (8, 7168, 2048): {1: 22, 16: 22.5, 64: 24.5, 256: 46, 1024: 172},
    (32, 4096, 7168): {1: 161, 16: 163, 64: 173, 256: 338, 1024: 1285},
    (32, 7168, 2048): {1: 81, 16: 82, 64: 95, 256: 175, 1024: 670},
    (128, 1536, 2048): {1: 70, 8: 70.5, 64: 88, 512: 295},
    (128, 2048, 768): {1: 37, 8: 38, 64: 53, 512: 160},
}
# The same for int4 with groups of 128, at the main shape.
INT4_GROUP_GOALS: dict[int, float] = {
    **{1: 82, 8: 82.5, 16: 83, 32: 84, 64: 88, 128: 104},
    **{256: 175, 512: 340, 1024: 670, 2048: 1330, 4096: 2650},
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """``goal_us`` as this run's card has it, and whether the row's time is within tolerance."""

    goal_us: float
    met: bool


def goal_us(case: GemmCase) -> float | None:
    """The goal on the card it was set on; None where there is none."""
    if case.routing != "even" or case.model is not None:
        return None
    shape = (case.experts, case.out_features, case.in_features)
    if case.group_size == 128 and case.weight_format == "int4":
        return INT4_GROUP_GOALS.get(case.tokens_per_expert) if shape == MAIN_SHAPE else None
    goal = INT4_GOALS.get(shape, {}).get(case.tokens_per_expert)
    if goal is None or (case.weight_format == "int4" and case.has_groups()):
        return None
    is_more = case.weight_format == "mxfp4" and case.memory_binds()
    return goal * MXFP4_FACTOR if is_more else goal


def verdict(row: Mapping[str, Any]) -> Verdict | None:
    """Holds a row of results against its goal; None where it has none.

    Args:
        row: of ``gemm.jsonl``, with the ceilings ``hbm_gbs`` and ``tensor_tflops`` of its run.
    """
    case = GemmCase.from_row(dict(row))
    goal = goal_us(case)
    if goal is None:
        return None
    if case.memory_binds():
        goal *= READ_GBS / row["hbm_gbs"]
    else:
        goal *= TENSOR_TFLOPS / row["tensor_tflops"]
    is_main = case.mode == "prefix" and case.out_dtype == "bfloat16"
    tolerance = TOLERANCE if is_main else OTHER_TOLERANCE
    return Verdict(goal, bool(row["us"] <= tolerance * goal))
