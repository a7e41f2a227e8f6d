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
"""What a row of the grouped GEMM says, in derived figures and as a line of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from w4afp8.bench.cases import GemmCase
from w4afp8.bench.goals import verdict


@dataclasses.dataclass(frozen=True)
class Rates:
    """Achieved rates by what a call must move and multiply, and their part of the floor's."""

    gbs: float
    tflops: float
    floor_percent: float
    binding: str  # "memory" or "tensor cores"


def rates(row: Mapping[str, Any]) -> Rates:
    """What a row achieves.

    Raises:
        ValueError: Its routing is not even: what it moves depends on counts that no row holds.
    """
    if row["routing"] != "even":
        raise ValueError(f"routing: expected 'even', got {row['routing']!r}")
    case = GemmCase.from_row(dict(row))
    us = row["us"]
    return Rates(
        gbs=case.moved_bytes() / us / 1e3,
        tflops=case.operations() / us / 1e6,
        floor_percent=100 * row["floor_us"] / us,
        binding="memory" if case.memory_binds() else "tensor cores",
    )


def format_name(row: Mapping[str, Any]) -> str:
    """``int4``, ``int4 g128`` or ``mxfp4``."""
    has_groups = row["format"] == "int4" and row["group_size"] > 0
    return f"int4 g{row['group_size']}" if has_groups else str(row["format"])


def peer_ratio(row: Mapping[str, Any]) -> float | None:
    """How many times faster than the peer; None where none was timed."""
    return None if row["peer_us"] is None else row["peer_us"] / row["us"]


def summary_line(row: Mapping[str, Any]) -> str:
    """One line for a person who watches."""
    found, ratio = verdict(row), peer_ratio(row)
    words = [
        "{experts} x {out_features} x {in_features}".format(**row),
        f"{row['tokens_per_expert']} tokens {row['routing']}",
        f"{format_name(row)} {row['mode']} {row['out_dtype']}:",
        f"{row['us']:.1f} us,",
        _rates_text(row),
        f"error {row['error']:.1e} of {row['error_bound']:.1e}",
    ]
    if ratio is not None:
        words.append(f", {ratio:.2f} x {row['peer']}")
    if found is not None:
        words.append(f", goal {found.goal_us:.1f} {'met' if found.met else 'MISSED'}")
    return " ".join(words).replace(" ,", ",")


def _rates_text(row: Mapping[str, Any]) -> str:
    if row["routing"] != "even":
        return f"{100 * row['floor_us'] / row['us']:.0f}% of the floor,"
    derived = rates(row)
    return (
        f"{derived.gbs:.0f} GB/s, {derived.tflops:.0f} TFLOP/s, "
        f"{derived.floor_percent:.0f}% of the floor ({derived.binding}),"
    )
