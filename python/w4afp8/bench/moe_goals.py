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
"""The goals of the MoE layer: what it may cost beyond its two grouped GEMMs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from w4afp8.bench.moe_cases import TOKENS_PER_EXPERT

# Part of the layer's time at 64 tokens an expert, by model.
OUTSIDE_SHARE = {"DeepSeek-V3 EP8": 0.15, "Qwen3-30B-A3B 1 GPU": 0.20}
ONE_TOKEN_US = 12.0  # at one token, of every model


@dataclasses.dataclass(frozen=True)
class LayerVerdict:
    """The most that a row's layer may spend outside its GEMMs, and whether it does."""

    goal_us: float
    met: bool


def outside_us(row: Mapping[str, Any]) -> float:
    """A replay of the layer less a replay of its two GEMMs alone."""
    return float(row["us"] - row["gemm_us"])


def layer_verdict(row: Mapping[str, Any]) -> LayerVerdict | None:
    """Holds a row of ``moe.jsonl`` against its goal; None where it has none."""
    if row["tokens"] == 1:
        goal = ONE_TOKEN_US
    elif row["tokens_per_expert"] == TOKENS_PER_EXPERT and row["model"] in OUTSIDE_SHARE:
        goal = OUTSIDE_SHARE[row["model"]] * row["us"]
    else:
        return None
    return LayerVerdict(goal, bool(outside_us(row) <= goal))
