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
"""``w4afp8 bench mla``: ceilings, then every case beside torch.bmm, each row written at once."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import torch

from w4afp8.bench.mla_cases import PEER, MLACase, mla_cases, mla_verdict
from w4afp8.bench.on_gpu import ceilings, mla_data
from w4afp8.bench.on_gpu.device import find_gpu, say, this_machine
from w4afp8.bench.on_gpu.gemm import contender_of
from w4afp8.bench.rows import write_rows
from w4afp8.bench.turns import medians_in_turns
from w4afp8.testing.gpu import as_torch, torch_on_paddle_stream

# A launch in a graph takes that long at least: few tokens' floors are far below.
LAUNCH_US = 2.5


@dataclasses.dataclass
class Weights:
    """Weight sets of one product and number of heads, shared by all numbers of tokens."""

    ours: list[mla_data.WeightSet]
    peer: list[Any]  # torch.bfloat16 [heads, in, out]
    values: Any  # of the first of ours, torch.float32 [heads, out, in]

    @classmethod
    def of(cls, case: MLACase) -> Weights:
        shape = (case.heads, case.in_features, case.out_features)
        few = dataclasses.replace(case, tokens=1)  # rotates over most
        peer_bytes = 2 * case.heads * case.in_features * case.out_features
        ours = [
            mla_data.make_weights(case)
            for _ in range(mla_data.num_cold_sets(few, case.weight_bytes()))
        ]
        peer = [
            torch.randn(shape, device="cuda").to(torch.bfloat16)
            for _ in range(mla_data.num_cold_sets(few, peer_bytes))
        ]
        return cls(ours, peer, mla_data.dequantised(case, ours[0]))

    def for_case(self, case: MLACase) -> tuple[list[mla_data.WeightSet], list[Any]]:
        """As many sets of each as the case must rotate over."""
        peer_bytes = 2 * self.peer[0].numel()
        return (
            self.ours[: mla_data.num_cold_sets(case, case.weight_bytes())],
            self.peer[: mla_data.num_cold_sets(case, peer_bytes)],
        )


def run_contest(
    cases: Sequence[MLACase], weights: Weights, stream: Any, rounds: int
) -> list[dict[str, Any]]:
    """Checks the cases of one product, then times them and the peer in turns."""
    # Everything that a launch reads is made before the first capture: the outputs of a captured
    # graph are memory that is free to be allocated again.
    inputs = {case: mla_data.make_activations(case) for case in cases}
    operands = {case: mla_data.Operand.of(case, x) for case, x in inputs.items()}
    errors = {
        case: mla_data.relative_error(
            weights.values,
            inputs[case],
            as_torch(mla_data.checked_output(case, operands[case], weights.ours[0])),
        )
        for case in cases
    }
    first = cases[0]
    ours, peer = weights.for_case(first)
    beside = mla_data.peer_launches(first, inputs[first], peer)
    launches: dict[str, list[mla_data.Launch]] = {
        label_of(case): [_launch(case, operands[case], one) for one in ours] for case in cases
    }
    launches |= beside
    contenders = {
        name: contender_of(stream, its, max(LAUNCH_US, first.floor_us()))
        for name, its in launches.items()
    }
    medians = medians_in_turns(contenders, rounds)
    peer_us = min(medians[name] for name in beside)
    return [
        {
            **case.row_values(),
            "us": round(medians[label_of(case)], 3),
            "error": errors[case],
            "peer": PEER,
            "peer_us": round(peer_us, 3),
        }
        for case in cases
    ]


def label_of(case: MLACase) -> str:
    """What tells the cases of one contest apart."""
    return "float8" if case.is_float8 else case.out_dtype


def _launch(
    case: MLACase, operand: mla_data.Operand, weights: mla_data.WeightSet
) -> mla_data.Launch:
    return lambda: mla_data.mla_up(case, operand, weights)


def run(*, rows_file: pathlib.Path, commit: str, rounds: int) -> int:
    """Measures all cases into one file, begun anew.

    Args:
        rows_file: where to.
        commit: of the clean tree that is measured.
        rounds: timings of each contender, whose median counts.

    Returns:
        The number of results outside their error bounds.
    """
    place, machine = find_gpu(), this_machine(commit)
    say(f"{machine}")
    measured = measure_ceilings()
    say(f"ceilings: {measured}")
    write_rows(rows_file, [], append=False)
    num_wrong = num_rows = 0
    with torch_on_paddle_stream(place) as stream:
        weights, made_for = None, None
        for cases in mla_cases():
            if weights is None or made_for != (cases[0].op, cases[0].heads):
                weights = None  # freed before the next ones are made
                torch.cuda.empty_cache()
                weights, made_for = Weights.of(cases[0]), (cases[0].op, cases[0].heads)
            for values in run_contest(cases, weights, stream, rounds):
                row = machine.row("mla", {**measured, **values})
                write_rows(rows_file, [row], append=True)
                say(summary_line(row))
                num_rows += 1
                num_wrong += not row["error"] <= row["error_bound"]
    say(f"{num_rows} rows in {rows_file}, {num_wrong} of them wrong")
    return num_wrong


def measure_ceilings() -> dict[str, float]:
    """GB/s read, and dense BF16 TFLOP/s: the numbers that these products are made of."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        read = ceilings.measure_read(stream)
        products = ceilings.measure_bfloat16_products(stream)
    return {"hbm_gbs": round(read, 1), "tensor_tflops": round(products, 1)}


def summary_line(row: dict[str, Any]) -> str:
    """One line for a person who watches."""
    found, label = mla_verdict(row), label_of(MLACase.from_row(row))
    verdict = (
        "" if found is None else f", goal {found.goal_us:.1f} {'met' if found.met else 'MISSED'}"
    )
    return (
        f"{row['op']} {row['heads']} heads {row['tokens']} tokens {label}: "
        f"{row['us']:.2f} us, floor {row['floor_us']:.2f}, {PEER} {row['peer_us']:.2f}{verdict}, "
        f"error {row['error']:.1e} of {row['error_bound']:.1e}"
    )
