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
"""Runs contests of the grouped GEMM: makes data, checks every result, then times all in turns."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from w4afp8.bench.case_sets import Contest
from w4afp8.bench.cases import GemmCase
from w4afp8.bench.goals import Shape
from w4afp8.bench.on_gpu import gemm_data, peer
from w4afp8.bench.on_gpu.graphs import captured, replay_us
from w4afp8.bench.turns import medians_in_turns

ROUNDS = 5
EVEN_SPLIT = "even split of the same total over as many experts"

Values = dict[str, Any]
Contender = Callable[[], float]


@dataclasses.dataclass
class Bench:
    """What the contests of one run share. ``say`` prints a line of progress."""

    stream: Any
    say: Callable[[str], None]
    with_peer: bool = False
    rounds: int = ROUNDS
    weights: gemm_data.WeightSets = dataclasses.field(default_factory=gemm_data.WeightSets)
    _peer_shape: Shape | None = None
    _peer_sets: list[peer.Blocks] = dataclasses.field(default_factory=list)

    def peer_sets(self, shape: Shape) -> list[peer.Blocks]:
        if shape != self._peer_shape:
            self._peer_sets.clear()
            self._peer_shape, self._peer_sets = shape, peer.make_sets(shape)
        return self._peer_sets


def run_contests(
    bench: Bench, contests: Iterable[Contest], *, deadline: float = float("inf")
) -> Iterator[Values]:
    """The values of one row after another, as they are measured.

    To be called inside ``torch_on_paddle_stream``. A contest that fails is said and left out.

    Args:
        bench: what the contests share.
        contests: those of one shape together, so that they share their weights.
        deadline: of ``time.monotonic()``, after which no further contest begins.
    """
    for contest in contests:
        if time.monotonic() > deadline:
            bench.say("the time is up: the remaining contests are left out")
            return
        try:
            yield from run_contest(bench, contest)
        except Exception:  # one broken case must not lose the others
            bench.say(f"{contest.shape}, {contest.tokens_per_expert} tokens: left out")
            traceback.print_exc()


def run_contest(bench: Bench, contest: Contest) -> list[Values]:
    """Checks and times the cases of one contest, and what they are compared with."""
    cases = [*contest.cases, *([contest.reference] if contest.reference else [])]
    prepared = list(prepare(bench, cases))
    contenders: dict[str, Contender] = {
        str(i): contender_of(bench.stream, launches, case.floor_us())
        for i, (case, (launches, _)) in enumerate(zip(cases, prepared, strict=True))
    }
    if bench.with_peer and contest.reference is None:
        contenders |= peer_contenders(bench, contest)
    medians = medians_in_turns(contenders, bench.rounds)
    name, peer_us = compared_with(contest, medians)
    return [
        {
            **case.row_values(),
            "us": round(medians[str(i)], 3),
            "error": prepared[i][1],
            "peer": name,
            "peer_us": peer_us,
        }
        for i, case in enumerate(contest.cases)
    ]


def prepare(
    bench: Bench, cases: Sequence[GemmCase]
) -> Iterator[tuple[list[Callable[[], object]], float]]:
    """For each case its launches, one a weight set, and the error of its result.

    Everything that a launch reads is allocated before the first capture: the outputs of a captured
    graph are memory that is free to be allocated again.
    """
    rows = gemm_data.make_rows(cases[0])
    inputs: dict[object, gemm_data.Activations] = {}
    for case in cases:
        operands = inputs.get((case.mode, case.token_counts))
        if operands is None:
            operands = gemm_data.make_activations(case, rows)
            inputs[case.mode, case.token_counts] = operands
        sets = bench.weights.of(case)
        out = gemm_data.checked_output(case, sets[0], operands)
        error = gemm_data.relative_error(case, sets[0], rows, out)
        del out
        yield [_launch(case, one, operands) for one in sets], error


def _launch(
    case: GemmCase, weights: gemm_data.WeightSet, inputs: gemm_data.Activations
) -> Callable[[], object]:
    return lambda: gemm_data.group_gemm(case, weights, inputs)


def contender_of(
    stream: Any, launches: Sequence[Callable[[], object]], floor_us: float
) -> Contender:
    graph, repeats = captured(launches, floor_us, stream)
    return lambda: replay_us(graph, repeats)


def peer_contenders(bench: Bench, contest: Contest) -> dict[str, Contender]:
    """The peer's layouts by name; none, after saying why, where it does not run."""
    shape, tokens = contest.shape, contest.tokens_per_expert
    try:
        runs = peer.checked_runs(shape, tokens, bench.peer_sets(shape))
    except Exception as error:  # whatever another library throws
        bench.say(f"{peer.NAME} does not run {shape} with {tokens} tokens: {error}")
        return {}
    # It reads 8 bits a weight for our 4.
    floor = 2 * contest.cases[0].floor_us()
    return {
        f"{peer.NAME} {run.layout}": contender_of(bench.stream, run.launches, floor) for run in runs
    }


def compared_with(contest: Contest, medians: dict[str, float]) -> tuple[str | None, float | None]:
    """Name and time of what the contest's cases are compared with: the best of the peer's."""
    if contest.reference is not None:
        return EVEN_SPLIT, round(medians[str(len(contest.cases))], 3)
    found = {name: us for name, us in medians.items() if name.startswith(peer.NAME)}
    if not found:
        return None, None
    best = min(found, key=lambda name: found[name])
    return best, round(found[best], 3)
