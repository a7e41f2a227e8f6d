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
"""Rows of results: one JSON object a line, with the same keys in every file of one kind."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What every row has, null where it does not apply. docs/performance.md says what they mean.
KEYS = (
    *("bench", "gpu", "driver", "cuda", "commit", "time", "hbm_gbs", "tensor_tflops"),
    *("experts", "out_features", "in_features", "tokens_per_expert", "routing", "mode", "format"),
    *("group_size", "act_scale", "out_dtype", "us", "floor_us", "peer", "peer_us"),
    *("error", "error_bound"),
    *("op", "heads", "tokens", "nope", "lora", "v"),
    *("model", "topk", "gemm_us", "kernels_us"),
    *("passed", "failed", "skipped", "seconds"),
)
# Besides, in the quick benchmark, in numerics.jsonl, in host.jsonl and in moe.jsonl.
QUICK_KEYS = ("scale_binades",)
NUMERICS_KEYS = ("data", "accumulation", "rounding", "accumulator", "tiles_agree")
HOST_KEYS = ("call", "fastest_us", "over_empty_us")
MOE_KEYS = (
    *("router_experts", "slots", "hidden", "intermediate", "floors_us", "peers_us"),
    *("hadamard_block_size", "hadamard_us"),
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What every row of one run says of where it was measured."""

    gpu: str
    driver: str | None
    cuda: str | None
    commit: str

    def row(
        self, bench: str, values: Mapping[str, Any], *, extra_keys: Sequence[str] = ()
    ) -> dict[str, Any]:
        """A whole row: the machine, the time, ``values``, and null for the rest.

        Raises:
            ValueError: A key of ``values`` is neither in KEYS nor in ``extra_keys``.
        """
        keys = (*KEYS, *extra_keys)
        unknown = set(values) - set(keys)
        if unknown:
            raise ValueError(f"values: expected keys of {keys}, got also {sorted(unknown)}")
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        known = {**dataclasses.asdict(self), "bench": bench, "time": now, **values}
        return {key: known.get(key) for key in keys}


def driver_version() -> str | None:
    """Version of the NVIDIA driver, None where nvidia-smi does not say."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip()


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]], *, append: bool) -> None:
    """Writes rows; flushed and closed, so that a later crash loses nothing of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def format_table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Columns of text, aligned to the right but for the first."""
    table = [[str(cell) for cell in line] for line in (header, *lines)]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def machine_line(rows: Sequence[Mapping[str, Any]], *, products: str = "TFLOP/s") -> str:
    """The GPU, and each run that the rows are of: its commit, day and ceilings.

    Args:
        rows: at least one.
        products: unit of the ceiling of the tensor cores.
    """
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["commit"], []).append(row)
    lines = [
        f"{len(run)} of {len(rows)} rows: commit `{commit}`, {run[0]['time'][:10]}, ceilings "
        f"{run[0]['hbm_gbs']:.0f} GB/s and {run[0]['tensor_tflops']:.0f} {products}"
        for commit, run in runs.items()
    ]
    first = rows[0]
    return f"{first['gpu']}, driver {first['driver']}, CUDA {first['cuda']}. {'; '.join(lines)}."


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """The same as Markdown: the first column to the left, the others to the right."""
    rule = ["-", *("-:" for _ in header[1:])]
    table = [header, rule, *lines]
    return "\n".join("|" + "|".join(str(cell) for cell in line) + "|" for line in table)
