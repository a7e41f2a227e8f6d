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
"""The quick benchmark: both ceilings, the GEMM at one shape, the small operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from small_ops import run_small_op, small_ops

from w4afp8.bench.case_sets import Contest
from w4afp8.bench.cases import GemmCase
from w4afp8.bench.on_gpu import ceilings
from w4afp8.bench.on_gpu.device import say
from w4afp8.bench.on_gpu.gemm import Bench, run_contest
from w4afp8.bench.rows import format_table
from w4afp8.testing.gpu import torch_on_paddle_stream

SHAPE = (8, 7168, 8192)  # experts, out_features, in_features
QUICK_CASES = (
    *(GemmCase(*SHAPE, tokens) for tokens in (1, 16, 64, 128, 256, 1024)),
    *(GemmCase(*SHAPE, tokens, group_size=128) for tokens in (16, 256)),
    *(GemmCase(*SHAPE, tokens, weight_format="mxfp4", group_size=32) for tokens in (16, 256)),
    # Wider than checkpoints are: what the tables of the kernel cost.
    GemmCase(*SHAPE, 16, weight_format="mxfp4", group_size=32, scale_binades=12),
)
SMALL_TOKENS = (64, 4096)

Row = dict[str, Any]


def run_benchmark(place: Any) -> tuple[dict[str, float], list[Row], list[Row]]:
    """Ceilings, rows of the GEMM and rows of the small operators."""
    say("measuring the ceilings")
    measured = {key: round(value, 1) for key, value in vars(ceilings.measure()).items()}
    say(f"{measured}")
    gemm_rows, small_rows = [], []
    with torch_on_paddle_stream(place) as stream:
        bench = Bench(stream, say)
        for case in QUICK_CASES:
            (values,) = run_contest(bench, Contest((case,)))
            is_mxfp4 = case.weight_format == "mxfp4"
            values["scale_binades"] = case.scale_binades if is_mxfp4 else None
            gemm_rows.append(values)
            say(f"{case}: {gemm_rows[-1]['us']} us, error {gemm_rows[-1]['error']:.1e}")
        for op in small_ops(SMALL_TOKENS):
            small_rows.append(run_small_op(op, stream))
            say(f"{op.name}, {op.tokens} tokens: {small_rows[-1]['us']} us")
    return measured, gemm_rows, small_rows


def wrong_results(rows: Sequence[Row]) -> list[str]:
    """Rows whose error is not within its bound (NaN never is)."""
    return [
        f"{row.get('op', 'group_gemm')}: error {row['error']:.3g}, bound {row['error_bound']:.3g}"
        for row in rows
        if not row["error"] <= row["error_bound"]
    ]


def print_tables(gemm_rows: Sequence[Row], small_rows: Sequence[Row]) -> None:
    columns = ("us", "floor_us", "error")

    def line(first: Sequence[Any], row: Row) -> list[Any]:
        ratio = f"{row['us'] / row['floor_us']:.2f}"
        return [*first, f"{row['us']:.1f}", f"{row['floor_us']:.1f}", f"{row['error']:.1e}", ratio]

    print("\ngroup_gemm, {} experts, out {}, in {}".format(*SHAPE))
    first = ("format", "group_size", "scale_binades", "tokens_per_expert")
    lines = [
        line(["" if row[key] is None else row[key] for key in first], row) for row in gemm_rows
    ]
    print(format_table([*first, *columns, "of floor"], lines))
    print()
    lines = [line([row["op"], row["tokens"]], row) for row in small_rows]
    print(format_table(["op", "tokens", *columns, "of floor"], lines))
