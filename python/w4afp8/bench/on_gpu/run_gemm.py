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
"""``w4afp8 bench gemm``: ceilings, then every contest of the sets, each row written at once."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence

from w4afp8.bench.case_sets import Contest, SetName, contests
from w4afp8.bench.on_gpu import ceilings, peer
from w4afp8.bench.on_gpu.device import find_gpu, say, this_machine
from w4afp8.bench.on_gpu.gemm import Bench, run_contests
from w4afp8.bench.row_text import summary_line
from w4afp8.bench.rows import write_rows
from w4afp8.testing.gpu import torch_on_paddle_stream


def run(
    sets: Sequence[SetName],
    *,
    rows_file: pathlib.Path,
    commit: str,
    time_limit: float,
    with_peer: bool,
    rounds: int,
) -> int:
    """Measures the sets, in their order, into one file.

    Args:
        sets: which.
        rows_file: is begun anew.
        commit: of the clean tree that is measured.
        time_limit: seconds after which no further contest begins.
        with_peer: DeepGEMM is timed beside (package ``sgl-deep-gemm``).
        rounds: timings of each contender, whose median counts.

    Returns:
        The number of results outside their error bounds.
    """
    deadline = time.monotonic() + time_limit
    place, machine = find_gpu(), this_machine(commit)
    say(f"{machine}")
    measured = {key: round(value, 1) for key, value in vars(ceilings.measure()).items()}
    say(f"ceilings: {measured}")
    work = [contest for name in sets for contest in contests(name)]
    if with_peer:
        warm_peer(work)
    write_rows(rows_file, [], append=False)
    num_wrong = num_rows = 0
    with torch_on_paddle_stream(place) as stream:
        bench = Bench(stream, say, with_peer=with_peer, rounds=rounds)
        for values in run_contests(bench, work, deadline=deadline):
            row = machine.row("gemm", {**measured, **values})
            write_rows(rows_file, [row], append=True)
            say(summary_line(row))
            num_rows += 1
            num_wrong += not row["error"] <= row["error_bound"]
    expected = sum(len(contest.cases) for contest in work)
    say(f"{num_rows} of {expected} rows in {rows_file}, {num_wrong} of them wrong")
    return num_wrong


def warm_peer(work: Sequence[Contest]) -> None:
    say(f"compiling {peer.NAME}")
    wanted = [(c.shape, c.tokens_per_expert) for c in work if c.reference is None]
    for line in peer.warm(list(dict.fromkeys(wanted))):
        say(f"{peer.NAME}: {line}")
