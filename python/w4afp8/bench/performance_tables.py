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
"""The tables of docs/performance.md, from the rows of ``gemm.jsonl`` alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from w4afp8.bench.goals import MAIN_SHAPE, verdict
from w4afp8.bench.moe_tables import layer_parts
from w4afp8.bench.row_text import format_name, peer_ratio, rates
from w4afp8.bench.rows import machine_line, markdown_table

Row = Mapping[str, Any]

SKEW_LIMIT = 1.10  # times the even split
NOT_MEASURED = "Not measured yet: there are no rows."
FIGURES = ("gemm_time.svg", "gemm_roofline.svg")

_GOAL_HEADER = (
    *("experts, out, in", "tokens/expert", "format", "us", "GB/s", "TFLOP/s", "of floor"),
    *("goal", "met", "padded us", "met", "DeepGEMM us", "times faster"),
)
_FLOAT16_HEADER = ("tokens/expert", "format", "us", "of floor", "goal", "met")
_MODEL_HEADER = (
    *("model, rank, matrix", "experts, out, in", "tokens/expert", "int4 us", "of floor"),
    *("mxfp4 us", "of floor", "DeepGEMM us", "int4 times faster"),
)
_SKEW_HEADER = (
    *("experts, out, in", "format", "tokens/expert", "routing", "us", "even us", "ratio", "met"),
)


def performance_block(
    rows: Sequence[Row], host: Sequence[Row] = (), layer: Sequence[Row] = ()
) -> str:
    """What stands between the marks of docs/performance.md.

    Args:
        rows: of ``gemm.jsonl``.
        host: of ``host.jsonl``.
        layer: of ``moe.jsonl``.
    """
    parts = _gemm_parts(rows) if rows else [NOT_MEASURED]
    parts += layer_parts(layer)
    if host:
        parts += ["### Host", _host_line(host), _host_table(host)]
    return "\n\n".join(parts)


def _gemm_parts(rows: Sequence[Row]) -> list[str]:
    goals, models, skews = split_by_set(rows)
    parts = [machine_line(rows), _summary(rows)]
    parts += [f"![{name}](figures/{name})" for name in FIGURES if goals]
    if goals:
        parts += ["### Goals", _goal_table(goals), "### FP16, main shape", _float16_table(goals)]
    if models:
        parts += ["### Models", _model_table(models)]
    if skews:
        parts += ["### Skew", _skew_table(skews)]
    return parts


def split_by_set(rows: Iterable[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows of the goals, of the models and of skewed routing."""
    goals, models, skews = list[Row](), list[Row](), list[Row]()
    for row in rows:
        kind = skews if row["routing"] != "even" else goals if row["model"] is None else models
        kind.append(row)
    return goals, models, skews


def shape_of(row: Row) -> tuple[int, int, int]:
    return row["experts"], row["out_features"], row["in_features"]


def is_main_mode(row: Row) -> bool:
    """Prefix sums and BF16: what the goals are set for."""
    return bool(row["mode"] == "prefix" and row["out_dtype"] == "bfloat16")


def _summary(rows: Sequence[Row]) -> str:
    found = [v for row in rows if (v := verdict(row)) is not None]
    skews = [row for row in rows if row["routing"] != "even"]
    rivals = [row for row in rows if row["routing"] == "even" and row["peer_us"] is not None]
    alone = sum(row["routing"] == "even" and row["peer_us"] is None for row in rows)
    wrong = sum(not row["error"] <= row["error_bound"] for row in rows)
    lines = [
        f"- goals met: {sum(v.met for v in found)} of {len(found)}",
        f"- rows slower than DeepGEMM FP8: {sum(_ratio(row) < 1 for row in rivals)} "
        f"of {len(rivals)}; without it beside them: {alone}",
        f"- skews within {SKEW_LIMIT} times their even split: "
        f"{sum(_skew(row) <= SKEW_LIMIT for row in skews)} of {len(skews)}",
        f"- results outside their error bound: {wrong} of {len(rows)}",
    ]
    return "\n".join(lines)


def _ratio(row: Row) -> float:
    return peer_ratio(row) or 0.0


def _skew(row: Row) -> float:
    return float(row["us"] / row["peer_us"])


def _goal_table(goals: Sequence[Row]) -> str:
    padded = {_place(row): row for row in goals if row["mode"] == "padded"}
    main = [row for row in goals if is_main_mode(row)]
    return markdown_table(_GOAL_HEADER, (_goal_line(row, padded.get(_place(row))) for row in main))


def _place(row: Row) -> tuple[object, ...]:
    return *shape_of(row), row["tokens_per_expert"], row["format"], row["group_size"]


def _goal_line(row: Row, padded: Row | None) -> list[str]:
    derived = rates(row)
    other = ["", ""] if padded is None else [f"{padded['us']:.1f}", _verdict_cells(padded)[1]]
    return [
        _shape_cell(row),
        str(row["tokens_per_expert"]),
        format_name(row),
        f"{row['us']:.1f}",
        f"{derived.gbs:.0f}",
        f"{derived.tflops:.0f}",
        f"{derived.floor_percent:.0f}%",
        *_verdict_cells(row),
        *other,
        *_peer_cells(row),
    ]


def _float16_table(goals: Sequence[Row]) -> str:
    rows = [row for row in goals if row["out_dtype"] == "float16" and shape_of(row) == MAIN_SHAPE]
    lines = (
        [
            str(row["tokens_per_expert"]),
            format_name(row),
            f"{row['us']:.1f}",
            f"{rates(row).floor_percent:.0f}%",
            *_verdict_cells(row),
        ]
        for row in rows
    )
    return markdown_table(_FLOAT16_HEADER, lines)


def _model_table(models: Sequence[Row]) -> str:
    by_case: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in models:
        key = (row["model"], row["tokens_per_expert"])
        by_case.setdefault(key, {})[row["format"]] = row
    lines = []
    for (model, tokens), found in by_case.items():
        one = next(iter(found.values()))
        cells = [str(model), _shape_cell(one), str(tokens)]
        for form in ("int4", "mxfp4"):
            cells += _time_cells(found[form]) if form in found else ["", ""]
        lines.append([*cells, *_peer_cells(found.get("int4", one))])
    return markdown_table(_MODEL_HEADER, lines)


def _skew_table(skews: Sequence[Row]) -> str:
    lines = (
        [
            _shape_cell(row),
            format_name(row),
            str(row["tokens_per_expert"]),
            row["routing"],
            f"{row['us']:.1f}",
            f"{row['peer_us']:.1f}",
            f"{_skew(row):.2f}",
            _yes(_skew(row) <= SKEW_LIMIT),
        ]
        for row in skews
    )
    return markdown_table(_SKEW_HEADER, lines)


def _host_line(host: Sequence[Row]) -> str:
    first = host[0]
    return f"{first['gpu']}, commit `{first['commit']}`, {first['time'][:10]}."


def _host_table(host: Sequence[Row]) -> str:
    columns = ("us", "fastest_us", "over_empty_us")
    lines = ([row["call"], *(f"{row[key]:.2f}" for key in columns)] for row in host)
    return markdown_table(("call", "us", "the fastest", "over the empty call"), lines)


def _shape_cell(row: Row) -> str:
    return ", ".join(map(str, shape_of(row)))


def _time_cells(row: Row) -> list[str]:
    return [f"{row['us']:.1f}", f"{rates(row).floor_percent:.0f}%"]


def _verdict_cells(row: Row) -> list[str]:
    found = verdict(row)
    return ["", ""] if found is None else [f"{found.goal_us:.1f}", _yes(found.met)]


def _peer_cells(row: Row) -> list[str]:
    ratio = peer_ratio(row)
    return ["", ""] if ratio is None else [f"{row['peer_us']:.1f}", f"{ratio:.2f}"]


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"
