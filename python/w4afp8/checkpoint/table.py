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
"""A checkpoint's summary as a table."""

from __future__ import annotations

from typing import TextIO

from w4afp8.checkpoint.inspect import CheckpointSummary, LayerSummary

_LEAST_WIDTH = 160  # where the output is no terminal

_COLUMNS = (
    "layer",
    "experts",
    "hidden",
    "intermediate",
    "format",
    "activation",
    "scales",
    "share of -8",
    "exponent spread",
    "packed MB",
    "error",
)


def print_summary(summary: CheckpointSummary, *, file: TextIO | None = None) -> None:
    """Prints one row a layer, and the sums.

    Args:
        summary: of `w4afp8.checkpoint.inspect`.
        file: where to; None for standard output.

    Raises:
        ImportError: rich is missing.
    """
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError as error:
        message = "the table needs rich: run 'pip install rich', or ask for --json"
        raise ImportError(message) from error

    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _LEAST_WIDTH)
    table = Table()
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("format", "activation") else "right")
    for layer in summary.layers:
        table.add_row(*_cells(layer))
    packed = sum(layer.packed_bytes for layer in summary.layers)
    experts = sum(layer.experts for layer in summary.layers)
    print(
        f"{summary.path}: {summary.format}, {len(summary.layers)} layers, {experts} experts, "
        f"{packed / 1e6:.2f} MB packed, {summary.file_bytes / 1e6:.2f} MB of files",
        file=file,
    )
    console.print(table)


def _activation(layer: LayerSummary) -> str:
    biases = ", biases" if layer.has_bias else ""
    block = layer.hadamard_block_size
    return layer.activation + biases + (f", rotated by {block}" if block != -1 else "")


def _cells(layer: LayerSummary) -> tuple[str, ...]:
    groups = "channel" if layer.group_size == -1 else str(layer.group_size)
    scales = "all zeros"
    if layer.smallest_scale is not None:
        scales = f"{layer.smallest_scale:.3g} to {layer.largest_scale:.3g}"
    return (
        str(layer.layer),
        str(layer.experts),
        str(layer.hidden_size),
        str(layer.intermediate_size),
        f"{layer.weight_format}, {groups}",
        _activation(layer),
        scales,
        "" if layer.share_of_minus_8 is None else f"{layer.share_of_minus_8:.2%}",
        str(layer.exponent_spread),
        f"{layer.packed_bytes / 1e6:.2f}",
        f"{layer.error:.4f}" if layer.error else "exact",
    )
