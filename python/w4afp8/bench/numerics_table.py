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
"""The table of docs/numerics.md, from the rows of ``numerics.jsonl`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from w4afp8.bench.performance_tables import NOT_MEASURED
from w4afp8.bench.row_text import format_name
from w4afp8.bench.rows import markdown_table

Row = Mapping[str, Any]

UNIT = 1e-3  # of the cells


def numerics_block(rows: Sequence[Row]) -> str:
    """What stands between the marks of docs/numerics.md."""
    if not rows:
        return NOT_MEASURED
    first = rows[0]
    machine = (
        f"{first['gpu']}, driver {first['driver']}, CUDA {first['cuda']}, "
        f"commit `{first['commit']}`, {first['time'][:10]}."
    )
    return "\n\n".join([machine, _summary(rows), _table(rows)])


def _summary(rows: Sequence[Row]) -> str:
    promised = [row for row in rows if row["error_bound"] is not None]
    lines = []
    for dtype in dict.fromkeys(row["out_dtype"] for row in promised):
        mine = [row for row in promised if row["out_dtype"] == dtype]
        within = sum(row["error"] <= row["error_bound"] for row in mine)
        lines.append(
            f"- {dtype}, normal data, default accumulation: {within} of {len(mine)} rows within "
            f"twice the rounding; the largest is {max(map(_times_rounding, mine)):.2f} times"
        )
    agree = sum(row["tiles_agree"] for row in rows)
    lines.append(f"- decode and prefill tile give the same bits: {agree} of {len(rows)} rows")
    return "\n".join(lines)


def _times_rounding(row: Row) -> float:
    return float(row["error"] / row["rounding"])


def _table(rows: Sequence[Row]) -> str:
    lengths = sorted({row["in_features"] for row in rows})
    by_line: dict[tuple[str, ...], dict[int, Row]] = {}
    for row in rows:
        key = (row["data"], format_name(row), row["out_dtype"], row["accumulation"])
        by_line.setdefault(key, {})[row["in_features"]] = row
    header = ["data", "format", "out", "accumulation", *map(str, lengths)]
    lines = (
        [*key, *(_cell(found[n]) if n in found else "" for n in lengths)]
        for key, found in by_line.items()
    )
    return markdown_table(header, lines)


def _cell(row: Row) -> str:
    parts = (row["error"], row["rounding"], row["accumulator"])
    return " / ".join(f"{part / UNIT:.3g}" for part in parts)
