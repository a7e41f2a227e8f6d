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
"""How long GPU work takes: replays of a CUDA graph, medians, on a card that is not throttled."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

REPLAY_US = 10_000.0  # length of one timed replay
REST_SECONDS = 0.06  # before each timing: sustained load reaches the card's power limit
COLD_BYTES = 300 << 20  # six times the 50 MB L2 of an H100


@dataclasses.dataclass(frozen=True)
class Timing:
    """Microseconds of one launch: the median over the replays, and the fastest replay."""

    us: float
    fastest_us: float


def num_rotations(bytes_per_set: int, limit: int = 64) -> int:
    """Sets of inputs to rotate over, so that a launch finds none of its bytes in L2."""
    return min(limit, max(2, -(-COLD_BYTES // max(bytes_per_set, 1)) + 1))


def capture(launches: Sequence[Callable[[], object]], repeats: int, stream: Any) -> Any:
    """A CUDA graph of ``repeats`` launches, in turn.

    Args:
        launches: each enqueues the same work on other inputs, on ``stream``.
        repeats: launches in the graph.
        stream: torch.cuda.Stream, not the default stream.

    Returns:
        torch.cuda.CUDAGraph.
    """
    for launch in launches:  # loads the code and fills the allocator's cache
        launch()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Relaxed: Paddle's allocator may have to ask the driver for memory.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
        for i in range(repeats):
            launches[i % len(launches)]()
    return graph


def _replay_us(graph: Any, stream: Any) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):
        begin.record()
        graph.replay()
        end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3


def time_launches(
    launches: Sequence[Callable[[], object]], *, stream: Any, replays: int = 7
) -> Timing:
    """Times GPU work in bursts: a rest and one untimed replay before each timed one.

    Args:
        launches: each enqueues the same work on other inputs, on ``stream``; see
            :func:`num_rotations`.
        stream: torch.cuda.Stream, not the default stream.
        replays: timed replays, each about 10 ms long.

    Returns:
        Timing of one launch.
    """
    probe = capture(launches, 2 * len(launches), stream)
    _replay_us(probe, stream)
    estimate = _replay_us(probe, stream) / (2 * len(launches))
    repeats = max(4, min(2000, round(REPLAY_US / estimate)))
    graph = capture(launches, repeats, stream)
    times = []
    for _ in range(replays):
        time.sleep(REST_SECONDS)
        _replay_us(graph, stream)
        times.append(_replay_us(graph, stream) / repeats)
    return Timing(statistics.median(times), min(times))
