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
"""The plot of the layer in docs/performance.md, from the rows of ``moe.jsonl`` alone."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from w4afp8.bench.moe_cases import KERNELS
from w4afp8.bench.moe_tables import FIGURE
from w4afp8.bench.plots import drawing

Row = Mapping[str, Any]

_COLOURS = {
    **{"route": "tab:purple", "dispatch": "tab:orange", "gemm_1": "tab:blue"},
    **{"activation": "tab:red", "gemm_2": "tab:cyan", "combine": "tab:green"},
}


def write_layer_plot(rows: Sequence[Row], folder: pathlib.Path) -> None:
    """Writes ``FIGURE`` into ``folder``: int4's launches as parts of their sum, model by model.

    Raises:
        ImportError: matplotlib is not installed.
    """
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        if row["format"] == "int4":
            by_model.setdefault(row["model"], []).append(row)
    with drawing() as pyplot:
        figure, axes = pyplot.subplots(
            1, len(by_model), figsize=(3 * len(by_model), 3.6), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axis, (model, mine) in zip(axes[0], by_model.items(), strict=True):
            _draw_model(axis, model, mine)
        axes[0][0].set_ylabel("part of the launches' sum; numbers: us")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / FIGURE, metadata={"Date": None})
        pyplot.close(figure)


def _draw_model(axis: Any, model: str, rows: Sequence[Row]) -> None:
    """The launches' parts over tokens, and how long the whole layer takes beside their sum."""
    places = range(len(rows))
    sums = [sum(row["kernels_us"].values()) for row in rows]
    parts = [
        [row["kernels_us"][name] / total for row, total in zip(rows, sums, strict=True)]
        for name in KERNELS
    ]
    axis.stackplot(places, *parts, labels=KERNELS, colors=[_COLOURS[name] for name in KERNELS])
    layer = [row["us"] / total for row, total in zip(rows, sums, strict=True)]
    axis.plot(places, layer, "ko-", ms=3, label="the layer")
    for place, row, height in zip(places, rows, layer, strict=True):
        above = (place, max(1.0, height) + 0.02)
        axis.annotate(f"{row['us']:.0f}", above, ha="center", fontsize=7)
    axis.set_xticks(places, [str(row["tokens"]) for row in rows], rotation=45)
    axis.set_xlabel("tokens")
    axis.set_title(model)
