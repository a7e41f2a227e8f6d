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
"""Work as a CUDA graph, and the time of its replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

TURN_US = 6_000.0  # length of one timed replay
SLOWER_THAN_FLOOR = 1.3  # a guess, for the number of launches in a graph


def captured(launches: Sequence[Callable[[], object]], floor_us: float, stream: Any) -> Any:
    """A CUDA graph of about ``TURN_US`` of launches, and how many it holds.

    Args:
        launches: each enqueues the same work on other inputs, on ``stream``.
        floor_us: the least that one launch can take.
        stream: torch.cuda.Stream, not the default stream, current.

    Returns:
        Pair of torch.cuda.CUDAGraph and the number of launches.
    """
    for launch in launches:  # loads the code and fills the allocators' caches
        launch()
    stream.synchronize()
    repeats = max(len(launches), round(TURN_US / (SLOWER_THAN_FLOOR * floor_us)))
    graph = torch.cuda.CUDAGraph()
    # Relaxed: Paddle's allocator may have to ask the driver for memory. Not torch.cuda.graph, which
    # empties caches first.
    graph.capture_begin(capture_error_mode="relaxed")
    try:
        for i in range(repeats):
            launches[i % len(launches)]()
    finally:
        graph.capture_end()
    return graph, repeats


def replay_us(graph: Any, repeats: int) -> float:
    """Microseconds of one launch of a graph, replayed right behind an untimed replay of it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3 / repeats
