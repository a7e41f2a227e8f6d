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
"""The demonstration's table and plot."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from w4afp8.demo.measure import Result

_HEADER = (
    "feed-forward weights",
    "cosine to float32: mean",
    "worst",
    "weights alone",
    "nearest neighbour kept",
    "MB",
    "of float32",
    "of BF16",
    "time",
)


def format_table(results: Sequence[Result]) -> str:
    """A Markdown table, columns aligned; the first result is the float model's."""
    rows = [_HEADER, *(_cells(r, results[0].weight_bytes) for r in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(
        "-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)
    )
    return "\n".join([line(rows[0]), rule + "|", *(line(row) for row in rows[1:])])


def _cells(result: Result, float32_bytes: int) -> tuple[str, ...]:
    share = result.weight_bytes / float32_bytes
    return (
        result.title,
        f"{result.cosine.mean():.4f}",
        f"{result.cosine.min():.4f}",
        f"{result.weights_only_cosine.mean():.4f}",
        f"{result.neighbours_kept}/{result.num_sentences}",
        f"{result.weight_bytes / 1e6:.2f}",
        f"{100 * share:.1f}%",
        f"{100 * 2 * share:.1f}%",
        f"{1e3 * result.seconds:.0f} ms",
    )


def write_plot(results: Sequence[Result], path: Path) -> None:
    """Draws what each format costs in similarity and saves in bytes, as a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # Building the font list is worth no line of output.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    quantized = results[1:]
    for position, result in enumerate(quantized):
        errors = 1 - result.cosine
        left.scatter([position] * len(errors), errors, alpha=0.5)
        left.hlines(errors.mean(), position - 0.2, position + 0.2, color="black")
        alone = 1 - result.weights_only_cosine.mean()
        left.hlines(alone, position - 0.2, position + 0.2, color="black", linestyle="dotted")
    left.set_xticks(range(len(quantized)), [r.title for r in quantized])
    left.set_xlim(-0.5, len(quantized) - 0.5)
    left.set_ylim(bottom=0)
    left.set_ylabel("1 - cosine similarity to the float model")
    left.set_title("Dot: a sentence. Line: mean. Dotted: mean, weights alone")
    bars = right.bar([r.title for r in results], [r.weight_bytes / 1e6 for r in results])
    right.bar_label(bars, fmt="%.1f")
    right.set_ylabel("MB")
    right.set_title("Feed-forward weights with their scales")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
