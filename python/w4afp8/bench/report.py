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
"""``w4afp8 bench report``: puts tables and plots, made from rows alone, into the documents."""

from __future__ import annotations

import pathlib
import re

from w4afp8.bench.errors import BenchError
from w4afp8.bench.mla_tables import MLA_ROWS, mla_section
from w4afp8.bench.numerics_table import numerics_block
from w4afp8.bench.performance_tables import performance_block, split_by_set
from w4afp8.bench.rows import read_rows

BEGIN, END = "<!-- made by w4afp8 bench report -->", "<!-- end -->"
GEMM_ROWS, HOST_ROWS, NUMERICS_ROWS = "gemm.jsonl", "host.jsonl", "numerics.jsonl"
LAYER_ROWS = "moe.jsonl"


def blocks(results: pathlib.Path) -> dict[str, str]:
    """What belongs between the marks of each document, by the document's name.

    Args:
        results: folder of one GPU's rows.
    """
    found = {
        "performance.md": performance_block(
            read_rows(results / GEMM_ROWS),
            read_rows(results / HOST_ROWS),
            read_rows(results / LAYER_ROWS),
        ),
        "numerics.md": numerics_block(read_rows(results / NUMERICS_ROWS)),
    }
    section = mla_section(read_rows(results / MLA_ROWS))
    if section:
        found["performance.md"] += f"\n\n{section}"
    return found


def block_of(text: str) -> str:
    """What stands between the marks of a document.

    Raises:
        BenchError: It has none, or several.
    """
    found = re.findall(f"{re.escape(BEGIN)}\n(.*?)\n{re.escape(END)}", text, re.DOTALL)
    if len(found) != 1:
        raise BenchError(f"expected one block between {BEGIN} and {END}, got {len(found)}")
    return str(found[0])


def with_block(text: str, block: str) -> str:
    """The document with another block between its marks."""
    before, after = block_of(text), block
    return text.replace(f"{BEGIN}\n{before}\n{END}", f"{BEGIN}\n{after}\n{END}")


def write_documents(results: pathlib.Path, docs: pathlib.Path) -> None:
    """Writes the tables of every document, and the plots where there is something to plot.

    Raises:
        BenchError: A document is missing, or has no marks.
        ImportError: matplotlib is not installed.
    """
    for name, block in blocks(results).items():
        path = docs / name
        if not path.is_file():
            raise BenchError(f"there is no {path}")
        path.write_text(with_block(path.read_text(encoding="utf-8"), block), encoding="utf-8")
    mla = read_rows(results / MLA_ROWS)
    if mla:
        from w4afp8.bench.mla_plot import write_mla_plot

        write_mla_plot(mla, docs / "figures")
    goals, _, _ = split_by_set(read_rows(results / GEMM_ROWS))
    if goals:
        from w4afp8.bench.plots import write_plots

        write_plots(goals, docs / "figures")
    layer = read_rows(results / LAYER_ROWS)
    if layer:
        from w4afp8.bench.moe_plot import write_layer_plot

        write_layer_plot(layer, docs / "figures")
