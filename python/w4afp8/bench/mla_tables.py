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
"""The section on the MLA up projections in docs/performance.md, from ``mla.jsonl`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from w4afp8.bench.mla_cases import MLACase, mla_verdict
from w4afp8.bench.rows import machine_line, markdown_table

Row = Mapping[str, Any]

MLA_ROWS = "mla.jsonl"
FIGURE = "mla_time.svg"
_HEADER = (
    *("op, heads", "tokens", "us", "GB/s", "floor", "of floor", "goal", "met"),
    *("torch.bmm us", "times faster", "FP16 us", "met"),
)
_FLOAT8_HEADER = (
    *("op, heads", "tokens", "us", "floor", "BF16 us", "times faster"),
    *("error", "error of BF16"),
)


def mla_section(rows: Sequence[Row]) -> str:
    """The section, with its heading; empty where there are no rows."""
    if not rows:
        return ""
    parts = ["### MLA up projections", machine_line(rows, products="BF16 TFLOP/s"), _summary(rows)]
    parts += [f"![{FIGURE}](figures/{FIGURE})", _table(rows)]
    if any(row["act_scale"] == "token" for row in rows):
        parts += ["#### FP8 activations", _float8_table(rows)]
    return "\n\n".join(parts)


def main_rows(rows: Sequence[Row]) -> list[Row]:
    """Those of BF16 activations."""
    return [r for r in rows if r["out_dtype"] == "bfloat16" and r["act_scale"] == "none"]


def _summary(rows: Sequence[Row]) -> str:
    found = [v for row in rows if (v := mla_verdict(row)) is not None]
    rivals = [r for r in rows if r["peer_us"] is not None and r["act_scale"] == "none"]
    wrong = sum(not row["error"] <= row["error_bound"] for row in rows)
    lines = [
        f"- goals met: {sum(v.met for v in found)} of {len(found)}",
        f"- rows slower than torch.bmm in BF16: {sum(r['us'] > r['peer_us'] for r in rivals)} "
        f"of {len(rivals)}",
        f"- results outside their error bound: {wrong} of {len(rows)}",
    ]
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> str:
    halves = {_place(row): row for row in rows if row["out_dtype"] == "float16"}
    lines = (_line(row, halves.get(_place(row))) for row in main_rows(rows))
    return markdown_table(_HEADER, lines)


def _float8_table(rows: Sequence[Row]) -> str:
    main = {_place(row): row for row in main_rows(rows)}
    float8 = [row for row in rows if row["act_scale"] == "token"]
    return markdown_table(_FLOAT8_HEADER, (_float8_line(row, main[_place(row)]) for row in float8))


def _float8_line(row: Row, beside: Row) -> list[str]:
    return [
        f"{row['op']}, {row['heads']}",
        str(row["tokens"]),
        f"{row['us']:.1f}",
        f"{row['floor_us']:.1f}",
        f"{beside['us']:.1f}",
        f"{beside['us'] / row['us']:.2f}",
        f"{row['error']:.1e}",
        f"{beside['error']:.1e}",
    ]


def _place(row: Row) -> tuple[object, ...]:
    return tuple(row[key] for key in ("op", "heads", "tokens", "nope", "lora", "v"))


def _line(row: Row, half: Row | None) -> list[str]:
    us, peer_us = row["us"], row["peer_us"]
    peer = ["", ""] if peer_us is None else [f"{peer_us:.1f}", f"{peer_us / us:.2f}"]
    goal, met = _verdict_cells(row)
    other = ["", ""] if half is None else [f"{half['us']:.1f}", _verdict_cells(half)[1]]
    return [
        f"{row['op']}, {row['heads']}",
        str(row["tokens"]),
        f"{us:.1f}",
        f"{MLACase.from_row(row).moved_bytes() / us / 1e3:.0f}",
        f"{row['floor_us']:.1f}",
        f"{100 * row['floor_us'] / us:.0f}%",
        *(goal, met),
        *peer,
        *other,
    ]


def _verdict_cells(row: Row) -> tuple[str, str]:
    found = mla_verdict(row)
    if found is None:
        return "", ""
    return f"{found.goal_us:.1f}", "yes" if found.met else "**no**"
