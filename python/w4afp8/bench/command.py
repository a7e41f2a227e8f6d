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
"""The command ``w4afp8 bench``: its options, and which benchmark they start."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from w4afp8.bench.case_sets import SETS
from w4afp8.bench.errors import BenchError
from w4afp8.bench.moe_cases import MODELS, ROUTING

ROOT = Path(__file__).resolve().parents[3]  # of the checkout
RESULTS = ROOT / "benchmark" / "results" / "h100_80gb"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds ``bench`` to the commands of ``w4afp8``."""
    bench = commands.add_parser("bench", help="measure speed and error; make the documents' tables")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="BENCHMARK")
    _add_gemm(kinds)
    _add_moe(kinds)
    numerics = kinds.add_parser("numerics", help="error of the grouped GEMM against float64")
    _add_rows(numerics, "numerics.jsonl")
    numerics.add_argument("--device", choices=("cpu", "gpu"), default="gpu", help="(%(default)s)")
    _add_rows(kinds.add_parser("host", help="host time of a call"), "host.jsonl")
    _add_mla(kinds)
    report = kinds.add_parser("report", help="tables and plots of docs/ from the rows alone")
    report.add_argument("--results", type=Path, default=RESULTS, help="folder (%(default)s)")
    report.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder (%(default)s)")


def _add_gemm(kinds: argparse._SubParsersAction) -> None:
    gemm = kinds.add_parser("gemm", help="speed of the grouped GEMM, beside DeepGEMM FP8")
    gemm.add_argument("--set", dest="sets", nargs="+", choices=SETS, default=["goals"])
    _add_rows(gemm, "gemm.jsonl")
    _add_limits(gemm, rounds=5)
    gemm.add_argument("--no-peer", action="store_true", help="without DeepGEMM beside")


def _add_moe(kinds: argparse._SubParsersAction) -> None:
    what = "speed of the MoE layer and of its launches, beside others"
    skew = f"routings are drawn ({ROUTING!r}): a model of the skew of real routers, not a trace"
    moe = kinds.add_parser("moe", help=what, description=f"{what}; {skew}")
    names = [model.name for model in MODELS]
    moe.add_argument("--models", nargs="+", choices=names, default=names, help="(%(default)s)")
    _add_rows(moe, "moe.jsonl")
    _add_limits(moe, rounds=3)
    moe.add_argument("--no-peer", action="store_true", help="without other libraries beside")


def _add_limits(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    parser.add_argument(
        "--time-limit",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="begin nothing further after so long",
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="timings of each case (%(default)s)"
    )


def _add_mla(kinds: argparse._SubParsersAction) -> None:
    mla = kinds.add_parser("mla", help="speed of the MLA up projections, beside torch.bmm in BF16")
    _add_rows(mla, "mla.jsonl")
    mla.add_argument("--rounds", type=int, default=3, help="timings of each case (%(default)s)")


def _add_rows(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--rows", type=Path, default=Path(name), help="file, begun anew (%(default)s)"
    )
    parser.add_argument("--commit", help="of the clean tree that is measured; default: git's HEAD")


def run(options: argparse.Namespace) -> int:
    """Runs what :func:`add_parser` read.

    Returns:
        0, or 1 where a result was wrong, or nothing could be measured (said on standard error).

    Raises:
        ImportError: A library that the benchmark needs is missing.
    """
    try:
        return _run_kind(options)
    except BenchError as error:
        print(f"w4afp8 bench {options.kind}: {error}", file=sys.stderr)
        return 1


def _run_kind(options: argparse.Namespace) -> int:
    if options.kind == "gemm":
        return _run_gemm(options)
    if options.kind == "moe":
        return _run_moe(options)
    if options.kind == "numerics":
        _order_copies()
        from w4afp8.bench.numerics import run as run_numerics

        commit = options.commit or clean_commit()
        return min(1, run_numerics(options.device, rows_file=options.rows, commit=commit))
    if options.kind == "host":
        from w4afp8.bench.on_gpu.host import run as run_host

        run_host(rows_file=options.rows, commit=options.commit or clean_commit())
        return 0
    if options.kind == "mla":
        from w4afp8.bench.on_gpu.mla import run as run_mla

        commit = options.commit or clean_commit()
        return min(1, run_mla(rows_file=options.rows, commit=commit, rounds=options.rounds))
    from w4afp8.bench.report import write_documents

    write_documents(options.results, options.docs)
    return 0


def _run_gemm(options: argparse.Namespace) -> int:
    from w4afp8.bench.on_gpu.run_gemm import run as run_gemm

    num_wrong = run_gemm(
        options.sets,
        rows_file=options.rows,
        commit=options.commit or clean_commit(),
        time_limit=options.time_limit,
        with_peer=not options.no_peer,
        rounds=options.rounds,
    )
    return min(1, num_wrong)


def _order_copies() -> None:
    """Copies from the host to a custom device are ordered before its operators on blocking streams
    only, and Paddle has made none yet.
    """
    os.environ.setdefault("HOPPER_STREAM_BLOCKING", "1")


def _run_moe(options: argparse.Namespace) -> int:
    _order_copies()
    from w4afp8.bench.on_gpu.run_moe import run as run_moe

    num_wrong = run_moe(
        options.models,
        rows_file=options.rows,
        commit=options.commit or clean_commit(),
        time_limit=options.time_limit,
        with_peer=not options.no_peer,
        rounds=options.rounds,
    )
    return min(1, num_wrong)


def clean_commit(root: Path = ROOT) -> str:
    """Short name of git's HEAD.

    Raises:
        BenchError: There is none, or files differ from it.
    """
    try:
        status, head = (
            subprocess.run(
                ["git", *words], cwd=root, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (["status", "--porcelain", "-uno"], ["rev-parse", "--short", "HEAD"])
        )
    except (OSError, subprocess.SubprocessError):
        raise BenchError("no commit is known here; say it with --commit") from None
    if status:
        raise BenchError("files differ from the commit; commit them, or say it with --commit")
    return head
