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
"""``w4afp8 bench moe``: ceilings, then every model's layer, each row written at once.

The routings are drawn: ``zipf 0.5``, where an expert's popularity falls with the square root of its
place, is a model of the skew of real routers, not a trace of one.
"""

from __future__ import annotations

import pathlib
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from w4afp8.bench.moe_cases import FORMATS, MoEModel, models_named
from w4afp8.bench.moe_goals import layer_verdict, outside_us
from w4afp8.bench.on_gpu import ceilings, moe_peer
from w4afp8.bench.on_gpu.device import find_gpu, say, this_machine
from w4afp8.bench.on_gpu.moe import LayerBench, Values
from w4afp8.bench.rows import MOE_KEYS, write_rows
from w4afp8.testing.gpu import torch_on_paddle_stream


def run(
    names: Sequence[str],
    *,
    rows_file: pathlib.Path,
    commit: str,
    time_limit: float,
    with_peer: bool,
    rounds: int,
) -> int:
    """Measures the models' layers into one file.

    Args:
        names: of the models.
        rows_file: is begun anew.
        commit: of the clean tree that is measured.
        time_limit: seconds after which no further number of tokens begins.
        with_peer: other libraries are timed beside.
        rounds: timings of each contender, whose median counts.

    Returns:
        The number of results outside their error bounds.
    """
    deadline = time.monotonic() + time_limit
    place, machine = find_gpu(), this_machine(commit)
    say(f"{machine}")
    measured = {key: round(value, 1) for key, value in vars(ceilings.measure()).items()}
    say(f"ceilings: {measured}")
    models = models_named(names)
    if with_peer:
        say(f"compiling {moe_peer.DEEP_GEMM}")
        for line in moe_peer.warm(models):
            say(f"{moe_peer.DEEP_GEMM}: {line}")
    write_rows(rows_file, [], append=False)
    num_wrong = num_rows = 0
    with torch_on_paddle_stream(place) as stream:
        for model in models:
            bench = LayerBench(model, stream, say, with_peer, rounds)
            for values in run_model(bench, deadline):
                row = machine.row("moe", {**measured, **values}, extra_keys=MOE_KEYS)
                write_rows(rows_file, [row], append=True)
                say(summary_line(row))
                num_rows += 1
                num_wrong += not row["error"] <= row["error_bound"]
            bench.close()
    expected = len(FORMATS) * sum(len(model.tokens()) for model in models)
    say(f"{num_rows} of {expected} rows in {rows_file}, {num_wrong} of them wrong")
    return num_wrong


def run_model(bench: LayerBench, deadline: float) -> Iterator[Values]:
    """The values of a model's rows. A number of tokens that fails is said and left out."""
    model: MoEModel = bench.model
    for tokens in model.tokens():
        if time.monotonic() > deadline:
            bench.say("the time is up: the remaining cases are left out")
            return
        try:
            yield from bench.run(tokens)
        except Exception:  # one broken case must not lose the others
            bench.say(f"{model.label}, {tokens} tokens: left out")
            traceback.print_exc()


def summary_line(row: dict[str, Any]) -> str:
    """One line for a person who watches."""
    found = layer_verdict(row)
    parts = " ".join(f"{name} {us:.1f}" for name, us in row["kernels_us"].items())
    peers = " ".join(f"{name} {us:.1f}" for name, us in row["peers_us"].items())
    goal = "" if found is None else f" ({'met' if found.met else 'MISSED'}: {found.goal_us:.1f})"
    return (
        f"{row['model']} {row['format']}, {row['tokens']} tokens, {row['slots']} copies: "
        f"{row['us']:.1f} us, GEMMs {row['gemm_us']:.1f}, outside {outside_us(row):.1f}{goal}; "
        f"{parts}; floors {row['floor_us']:.1f}; error {row['error']:.1e} of "
        f"{row['error_bound']:.1e}; {peers}"
    )
