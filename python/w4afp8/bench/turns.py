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
"""Times several things in turns, so that a card's drift and temperature are the same for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

REST_SECONDS = 0.06  # before each timing: sustained load reaches a card's power limit


def medians_in_turns(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    rest: Callable[[], None] = lambda: time.sleep(REST_SECONDS),
) -> dict[str, float]:
    """The median of each contender's measurements: every round measures all of them once."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            rest()
            times[name].append(measure())
    return {name: statistics.median(values) for name, values in times.items()}
