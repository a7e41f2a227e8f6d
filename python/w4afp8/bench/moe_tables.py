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
"""The section on the MoE layer in docs/performance.md, from the rows of ``moe.jsonl`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from w4afp8.bench.moe_cases import KERNELS
from w4afp8.bench.moe_goals import layer_verdict, outside_us
from w4afp8.bench.rows import machine_line, markdown_table

Row = Mapping[str, Any]

FIGURE = "moe_time.svg"
_HEADER = (
    *("model, rank", "tokens", "copies", "tokens/expert", "format", "layer us", "GEMMs us"),
    *("outside us", "share", "at most", "met", "floors us", "of them"),
)
_PEER_HEADER = ("model, rank", "tokens", "int4 us", "its GEMMs us", "mxfp4 us", "its GEMMs us")
_HADAMARD_HEADER = ("model, rank", "tokens", "block", "us", "without us", "floor us")
_KERNEL_HEADER = ("model, rank", "tokens", "format", *KERNELS)


def layer_parts(rows: Sequence[Row]) -> list[str]:
    """Paragraphs of the section; none where there are no rows.

    Args:
        rows: of ``moe.jsonl``.
    """
    if not rows:
        return []
    return [
        "### Layer",
        machine_line(rows),
        _summary(rows),
        f"![{FIGURE}](figures/{FIGURE})",
        _layer_table(rows),
        "### Layer: each launch alone, and its floor",
        _kernel_table(rows),
        *_hadamard_parts(rows),
        "### Layer: beside others",
        _peer_table(rows),
    ]


def peer_names(rows: Sequence[Row]) -> list[str]:
    """Everything that was timed beside the layer, in the rows' order."""
    return list(dict.fromkeys(name for row in rows for name in row["peers_us"]))


def _summary(rows: Sequence[Row]) -> str:
    found = [v for row in rows if (v := layer_verdict(row)) is not None]
    rivals = [row for row in rows if row["peer_us"] is not None]
    wrong = sum(not row["error"] <= row["error_bound"] for row in rows)
    return "\n".join(
        [
            f"- goals met: {sum(v.met for v in found)} of {len(found)}",
            f"- rows slower than the best layer beside them: "
            f"{sum(row['peer_us'] < row['us'] for row in rivals)} of {len(rivals)}; "
            f"without one: {len(rows) - len(rivals)}",
            f"- results outside their error bound: {wrong} of {len(rows)}",
        ]
    )


def _layer_table(rows: Sequence[Row]) -> str:
    return markdown_table(_HEADER, (_layer_line(row) for row in rows))


def _layer_line(row: Row) -> list[str]:
    outside, found = outside_us(row), layer_verdict(row)
    goal = ["", ""] if found is None else [f"{found.goal_us:.1f}", "yes" if found.met else "**no**"]
    return [
        *(str(row["model"]), str(row["tokens"]), str(row["slots"])),
        *(f"{row['tokens_per_expert']:.3g}", str(row["format"])),
        *(f"{row['us']:.1f}", f"{row['gemm_us']:.1f}", f"{outside:.1f}"),
        f"{100 * outside / row['us']:.0f}%",
        *goal,
        *(f"{row['floor_us']:.1f}", f"{100 * row['floor_us'] / row['us']:.0f}%"),
    ]


def _kernel_table(rows: Sequence[Row]) -> str:
    lines = (
        [
            *(str(row["model"]), str(row["tokens"]), str(row["format"])),
            *(f"{row['kernels_us'][name]:.1f} / {row['floors_us'][name]:.1f}" for name in KERNELS),
        ]
        for row in rows
    )
    return markdown_table(_KERNEL_HEADER, lines)


def _hadamard_parts(rows: Sequence[Row]) -> list[str]:
    """The activation with a Hadamard transform: the same for both formats."""
    lines = {
        (row["model"], row["tokens"]): [
            *(str(row["model"]), str(row["tokens"]), str(row["hadamard_block_size"])),
            *(f"{us:.1f}" for us in (row["hadamard_us"], row["kernels_us"]["activation"])),
            f"{row['floors_us']['activation']:.1f}",
        ]
        for row in rows
        if row.get("hadamard_us") is not None
    }
    if not lines:
        return []
    return [
        "### Layer: the activation with a Hadamard transform",
        markdown_table(_HADAMARD_HEADER, lines.values()),
    ]


def _peer_table(rows: Sequence[Row]) -> str:
    names = peer_names(rows)
    by_case: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        by_case.setdefault((row["model"], row["tokens"]), {})[row["format"]] = row
    lines = []
    for (model, tokens), found in by_case.items():
        ours = [
            f"{found[form][key]:.1f}" if form in found else ""
            for form in ("int4", "mxfp4")
            for key in ("us", "gemm_us")
        ]
        beside = next(iter(found.values()))["peers_us"]
        others = [f"{beside[name]:.1f}" if name in beside else "" for name in names]
        lines.append([model, str(tokens), *ours, *others])
    return markdown_table((*_PEER_HEADER, *(f"{name} us" for name in names)), lines)
