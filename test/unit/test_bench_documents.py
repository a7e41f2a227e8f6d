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
"""Tables and plots: the committed documents say what the committed rows say, and nothing else."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from w4afp8.bench.case_sets import goal_contests, model_contests, skew_contests
from w4afp8.bench.cases import GemmCase
from w4afp8.bench.command import RESULTS
from w4afp8.bench.errors import BenchError
from w4afp8.bench.numerics_table import numerics_block
from w4afp8.bench.performance_tables import FIGURES, NOT_MEASURED, performance_block
from w4afp8.bench.report import BEGIN, END, block_of, blocks, with_block, write_documents
from w4afp8.bench.rows import (
    HOST_KEYS,
    NUMERICS_KEYS,
    Machine,
    machine_line,
    read_rows,
    write_rows,
)

pytestmark = pytest.mark.cpu_only

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
MACHINE = Machine("a GPU", "1.2", "13.0", "abc1234")
CEILINGS = {"hbm_gbs": 3177.0, "tensor_tflops": 1500.0}


def gemm_row(case: GemmCase, us: float, **others: Any) -> dict[str, Any]:
    values = {"us": us, "peer": "DeepGEMM FP8 masked", "peer_us": 2 * us, "error": 5e-4, **others}
    return MACHINE.row("gemm", {**CEILINGS, **case.row_values(), **values})


def rows_of_all_sets(over_floor: float) -> list[dict[str, Any]]:
    """Every case of every set, each so many times slower than its floor."""
    found = goal_contests() + model_contests() + skew_contests()
    return [
        gemm_row(case, case.floor_us() * over_floor) for contest in found for case in contest.cases
    ]


def numerics_row(data: str, in_features: int, **values: Any) -> dict[str, Any]:
    known = {
        **{"format": "int4", "group_size": -1, "out_dtype": "bfloat16", "tiles_agree": True},
        **{"accumulation": "default", "rounding": 1e-3, "accumulator": 5e-4, "error": 1.2e-3},
        "error_bound": 2e-3 if data == "normal" else None,
    }
    values = {**known, "data": data, "in_features": in_features, **values}
    return MACHINE.row("numerics", values, extra_keys=NUMERICS_KEYS)


@pytest.mark.parametrize("name", ["performance.md", "numerics.md"])
def test_documents_say_what_the_rows_say(name: str) -> None:
    assert block_of((DOCS / name).read_text(encoding="utf-8")) == blocks(RESULTS)[name]


def test_figures_are_there_where_they_are_shown() -> None:
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    for name in FIGURES:
        assert (f"(figures/{name})" in text) == (DOCS / "figures" / name).is_file()


def test_committed_rows_are_of_the_gpu_of_their_folder() -> None:
    for name in ("gemm.jsonl", "host.jsonl", "numerics.jsonl"):
        for row in read_rows(RESULTS / name):
            assert "H100 80GB" in row["gpu"]


def test_no_rows_no_numbers() -> None:
    assert performance_block([]) == numerics_block([]) == NOT_MEASURED


def test_summary_counts() -> None:
    # Twice the floor misses every goal: they are between 1 and 1.25 times.
    text = performance_block(rows_of_all_sets(2.0))
    goals = sum(len(contest.cases) for contest in goal_contests())
    models = sum(len(contest.cases) for contest in model_contests())
    skews = sum(len(contest.cases) for contest in skew_contests())
    assert f"- goals met: 0 of {goals}\n" in text
    assert f"- rows slower than DeepGEMM FP8: 0 of {goals + models}; without it" in text
    assert f"- skews within 1.1 times their even split: {skews} of {skews}\n" in text
    assert "- results outside their error bound: 0 of" in text


def test_runs_are_named_with_their_ceilings() -> None:
    case = goal_contests()[0].cases[0]
    rows = [gemm_row(case, 100.0) for _ in range(3)]
    other = {"commit": "def5678", "time": "2026-02-03T04:05:06+00:00", "hbm_gbs": 3100.0}
    rows[1] |= other
    assert machine_line(rows) == (
        f"a GPU, driver 1.2, CUDA 13.0. 2 of 3 rows: commit `abc1234`, {rows[0]['time'][:10]}, "
        "ceilings 3177 GB/s and 1500 TFLOP/s; 1 of 3 rows: commit `def5678`, 2026-02-03, "
        "ceilings 3100 GB/s and 1500 TFLOP/s."
    )


def test_summary_counts_what_is_wrong() -> None:
    case = GemmCase(8, 7168, 8192, 16)
    rows = [
        gemm_row(case, 81.5, peer_us=81.4),
        gemm_row(case, 81.7, peer=None, peer_us=None),
        gemm_row(case, 81.5, error=float("nan")),
    ]
    text = performance_block(rows)
    assert "- goals met: 2 of 3\n" in text  # within 2% of 80: 81.6
    assert "- rows slower than DeepGEMM FP8: 1 of 2; without it beside them: 1\n" in text
    assert "- results outside their error bound: 1 of 3" in text


def test_lines_of_the_tables() -> None:
    case = GemmCase(8, 7168, 8192, 16)
    padded = GemmCase(8, 7168, 8192, 16, mode="padded")
    half = GemmCase(8, 7168, 8192, 16, out_dtype="float16")
    text = performance_block(
        [gemm_row(case, 80.0), gemm_row(padded, 90.0, peer_us=160.0), gemm_row(half, 82.0)]
    )
    # Floor 74.9: (8 * 7168 * (4096 + 4) + 128 * 22528) / 3177e3. 235 MB + 2.9 MB in 80 us is
    # 2975 GB/s, 128 tokens of 117.4 million operations are 188 TFLOP/s.
    assert "|8, 7168, 8192|16|int4|80.0|2975|188|94%|80.0|yes|90.0|**no**|160.0|2.00|" in text
    assert "|16|int4|82.0|91%|80.0|yes|" in text
    skewed = GemmCase(2, 64, 128, 8, routing="zipf", counts=(12, 4))
    assert "|2, 64, 128|int4|8|zipf|2.3|2.0|1.15|**no**|" in performance_block(
        [gemm_row(skewed, 2.3, peer="even split", peer_us=2.0)]
    )


def test_models_have_a_line_for_both_formats() -> None:
    int4, mxfp4 = model_contests()[0].cases
    text = performance_block([gemm_row(int4, 100.0), gemm_row(mxfp4, 110.0)])
    (line,) = [line for line in text.splitlines() if line.startswith("|Qwen3")]
    assert "|100.0|" in line
    assert "|110.0|" in line


def test_host_table() -> None:
    values = {"call": "pybind", "us": 6.254, "fastest_us": 6.0, "over_empty_us": 1.5}
    text = performance_block([], [MACHINE.row("host", values, extra_keys=HOST_KEYS)])
    assert text.startswith(NOT_MEASURED)
    assert "|pybind|6.25|6.00|1.50|" in text


def test_numerics_cells_and_summary() -> None:
    rows = [
        numerics_row("normal", 512),
        numerics_row("normal", 1024, error=2.5e-3),
        numerics_row("positive", 1024, error=0.1234, tiles_agree=False),
    ]
    text = numerics_block(rows)
    assert "|normal|int4|bfloat16|default|1.2 / 1 / 0.5|2.5 / 1 / 0.5|" in text
    assert "|positive|int4|bfloat16|default||123 / 1 / 0.5|" in text
    assert "bfloat16, normal data, default accumulation: 1 of 2 rows" in text
    assert "the largest is 2.50 times" in text
    assert "the same bits: 2 of 3 rows" in text


def test_report_writes_documents_and_plots(tmp_path: pathlib.Path) -> None:
    results, docs = tmp_path / "rows", tmp_path / "docs"
    docs.mkdir()
    for name in ("performance.md", "numerics.md"):
        (docs / name).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_rows(results / "gemm.jsonl", rows_of_all_sets(1.2), append=False)
    write_documents(results, docs)
    text = (docs / "performance.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert block_of(text) == blocks(results)["performance.md"]
    assert block_of((docs / "numerics.md").read_text()) == NOT_MEASURED
    pictures = [(docs / "figures" / name).read_bytes() for name in FIGURES]
    assert all(len(picture) < 150_000 for picture in pictures)
    write_documents(results, docs)
    assert pictures == [(docs / "figures" / name).read_bytes() for name in FIGURES]


@pytest.mark.parametrize("text", ["no marks", f"{BEGIN}\na\n{END}\n{BEGIN}\nb\n{END}\n"])
def test_marks_are_needed_once(text: str) -> None:
    with pytest.raises(BenchError, match="expected one block"):
        with_block(text, "new")
