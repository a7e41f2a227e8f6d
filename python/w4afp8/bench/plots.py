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
"""The plots of docs/performance.md, from the rows of the goals alone."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from w4afp8.bench.cases import GemmCase
from w4afp8.bench.goals import MAIN_SHAPE, goal_us
from w4afp8.bench.performance_tables import FIGURES, is_main_mode, shape_of
from w4afp8.bench.row_text import format_name, rates

Row = Mapping[str, Any]

# The same rows give the same bytes.
_SETTINGS: dict[Any, Any] = {"svg.hashsalt": "w4afp8", "svg.fonttype": "none", "font.size": 9}
_COLOURS = {"int4": "tab:blue", "int4 g128": "tab:orange", "mxfp4": "tab:green"}


@contextlib.contextmanager
def drawing() -> Iterator[Any]:
    """matplotlib.pyplot, set so that the same rows give the same bytes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # Building the font list is worth no line of output.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context(_SETTINGS):
        yield pyplot


def write_plots(goals: Sequence[Row], folder: pathlib.Path) -> None:
    """Writes ``FIGURES`` into ``folder``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in goals if is_main_mode(row)]
    with drawing() as pyplot:
        for name, draw in zip(FIGURES, (_draw_times, _draw_roofline), strict=True):
            figure = draw(pyplot, rows)
            figure.savefig(folder / name, metadata={"Date": None})
            pyplot.close(figure)


def _by_format(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(format_name(row), []).append(row)
    return found


def _draw_times(pyplot: Any, rows: Sequence[Row]) -> Any:
    """Microseconds over tokens per expert at the main shape: floor, goal, ours, the peer."""
    groups = _by_format([row for row in rows if shape_of(row) == MAIN_SHAPE])
    figure, axes = pyplot.subplots(
        1, len(groups), figsize=(4 * len(groups), 3.6), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (name, mine) in zip(axes[0], groups.items(), strict=True):
        tokens = [row["tokens_per_expert"] for row in mine]
        axis.loglog(tokens, [row["floor_us"] for row in mine], ":", color="gray", label="floor")
        goals = [goal_us(GemmCase.from_row(dict(row))) or float("nan") for row in mine]
        axis.loglog(tokens, goals, "_", color="black", label="goal")
        beside = [row["peer_us"] or float("nan") for row in mine]
        axis.loglog(tokens, beside, "x--", color="tab:red", label="DeepGEMM FP8")
        axis.loglog(tokens, [row["us"] for row in mine], "o-", color=_COLOURS[name], label=name)
        axis.set_xlabel("tokens per expert")
        axis.set_title("{}: {} experts, out {}, in {}".format(name, *MAIN_SHAPE))
        axis.legend()
    axes[0][0].set_ylabel("us")
    return figure


def _draw_roofline(pyplot: Any, rows: Sequence[Row]) -> Any:
    """TFLOP/s over operations per byte, under the run's own ceilings."""
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    bandwidth, peak = rows[0]["hbm_gbs"] / 1e3, rows[0]["tensor_tflops"]  # TB/s, TFLOP/s
    corner = peak / bandwidth
    axis.loglog([1, corner, 1e5], [bandwidth, peak, peak], "-", color="gray", label="ceilings")
    for name, mine in _by_format(rows).items():
        cases = [GemmCase.from_row(dict(row)) for row in mine]
        intensity = [case.operations() / case.moved_bytes() for case in cases]
        achieved = [rates(row).tflops for row in mine]
        axis.loglog(intensity, achieved, "o", ms=4, color=_COLOURS[name], label=name)
    axis.set_xlabel("operations per byte that must be moved")
    axis.set_ylabel("TFLOP/s")
    axis.legend()
    return figure
