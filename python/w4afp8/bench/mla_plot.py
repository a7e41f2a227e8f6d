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
"""The plot of the MLA up projections, from the rows of ``mla.jsonl`` alone."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from w4afp8.bench.mla_cases import mla_verdict
from w4afp8.bench.mla_tables import FIGURE, main_rows
from w4afp8.bench.plots import drawing

Row = Mapping[str, Any]


def write_mla_plot(rows: Sequence[Row], folder: pathlib.Path) -> None:
    """Writes ``FIGURE`` into ``folder``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    main = main_rows(rows)
    folder.mkdir(parents=True, exist_ok=True)
    with drawing() as pyplot:
        figure = _draw(pyplot, main)
        figure.savefig(folder / FIGURE, metadata={"Date": None})
        pyplot.close(figure)


def _draw(pyplot: Any, rows: Sequence[Row]) -> Any:
    """Microseconds over tokens: floor, goal, torch.bmm and ours, for the fewest and most heads."""
    heads = sorted({row["heads"] for row in rows})
    chosen = sorted({heads[0], heads[-1]})
    panels = [(op, count) for op in ("k_up", "v_up") for count in chosen]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(3.2 * len(panels), 3.2), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (op, count) in zip(axes[0], panels, strict=True):
        mine = [row for row in rows if row["op"] == op and row["heads"] == count]
        tokens = [row["tokens"] for row in mine]
        verdicts = [mla_verdict(row) for row in mine]
        goals = [float("nan") if v is None else v.goal_us for v in verdicts]
        axis.loglog(tokens, [row["floor_us"] for row in mine], ":", color="gray", label="floor")
        axis.loglog(tokens, goals, "_", color="black", label="goal")
        beside = [row["peer_us"] or float("nan") for row in mine]
        axis.loglog(tokens, beside, "x--", color="tab:red", label="torch.bmm, BF16")
        axis.loglog(tokens, [row["us"] for row in mine], "o-", color="tab:blue", label="mxfp4")
        axis.set_xlabel("tokens")
        axis.set_title(f"{op}, {count} heads")
        axis.legend()
    axes[0][0].set_ylabel("us")
    return figure
