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
"""The GPU run: every GPU test, a quick benchmark, and rows of both.

    python3 benchmark/gpu_run.py --commit SHA --results FOLDER

Needs a Hopper GPU, the extension built in place, pytest and PyTorch. Exits with a failure where
there is no GPU, a test fails or is skipped for a reason that is not allowed, or a result is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
for _folder in (ROOT, ROOT / "python"):
    sys.path.insert(0, str(_folder))

from rows import Machine, driver_version, format_table, write_rows

TEST_SECONDS = 270  # limit of the tests; the whole run has to end inside 8 minutes
# A skip is allowed where its reason begins with one of these.
ALLOWED_SKIPS = (
    "compute-sanitizer does not support this machine",
    "needs two GPUs",
)
QUICK_TOKENS = (1, 16, 64, 128, 256, 1024)
SMALL_TOKENS = (64, 4096)


@dataclasses.dataclass(frozen=True)
class TestResult:
    """Counts of one pytest run; skips by reason."""

    passed: int
    failed: int
    skips: dict[str, int]
    seconds: float
    ended: bool  # pytest itself came to an end and collected something

    def complaints(self) -> list[str]:
        found = [] if self.ended else ["the tests did not run to their end"]
        if self.passed == 0:
            found.append("no test passed")
        if self.failed:
            found.append(f"{self.failed} tests failed")
        for reason, count in self.skips.items():
            if not reason.startswith(ALLOWED_SKIPS):
                found.append(f"{count} tests skipped that need not be: {reason}")
        return found


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def run_tests(arguments: Sequence[str]) -> TestResult:
    """Runs test/gpu in a process of its own: a crash there must not end this run."""
    environment = dict(os.environ)
    paths = [str(ROOT / "python"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-rs", f"--junit-xml={report}"]
        command += ["--durations=8", *arguments, str(ROOT / "test" / "gpu")]
        started = time.monotonic()
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, timeout=TEST_SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            say(f"the tests were stopped after {TEST_SECONDS} s")
            code = -1
        return read_report(report, time.monotonic() - started, code in (0, 1))


def read_report(report: pathlib.Path, seconds: float, ended: bool) -> TestResult:
    """Counts the test cases of a JUnit file; none where the file was not written."""
    passed, failed, skips = 0, 0, dict[str, int]()
    cases = xml.etree.ElementTree.parse(report).iter("testcase") if report.is_file() else []
    for case in cases:
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif skipped is not None:
            reason = skipped.get("message", "no reason given")
            skips[reason] = skips.get(reason, 0) + 1
        else:
            passed += 1
    return TestResult(passed, failed, skips, round(seconds, 1), ended)


def benchmark(place: Any) -> tuple[dict[str, float], list[dict[str, Any]], list[dict[str, Any]]]:
    """Ceilings, rows of the GEMM and rows of the small operators."""
    import ceilings
    from gemm import GemmCase, run_case
    from small_ops import run_small_op, small_ops
    from w4afp8.testing.gpu import torch_on_paddle_stream

    say("measuring the ceilings")
    measured = {key: round(value, 1) for key, value in vars(ceilings.measure()).items()}
    say(f"{measured}")
    gemm_rows, small_rows = [], []
    with torch_on_paddle_stream(place) as stream:
        for tokens in QUICK_TOKENS:
            gemm_rows.append(run_case(GemmCase(8, 7168, 8192, tokens), stream))
            say(f"group_gemm, {tokens} tokens per expert: {gemm_rows[-1]['us']} us")
        for op in small_ops(SMALL_TOKENS):
            small_rows.append(run_small_op(op, stream))
            say(f"{op.name}, {op.tokens} tokens: {small_rows[-1]['us']} us")
    return measured, gemm_rows, small_rows


def wrong_results(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows whose error is not within its bound (NaN never is)."""
    return [
        f"{row.get('op', 'group_gemm')}: error {row['error']:.3g}, bound {row['error_bound']:.3g}"
        for row in rows
        if not row["error"] <= row["error_bound"]
    ]


def print_tables(gemm_rows: Sequence[dict[str, Any]], small_rows: Sequence[dict[str, Any]]) -> None:
    columns = ("us", "floor_us", "error")

    def line(first: Sequence[Any], row: dict[str, Any]) -> list[Any]:
        ratio = f"{row['us'] / row['floor_us']:.2f}"
        return [*first, f"{row['us']:.1f}", f"{row['floor_us']:.1f}", f"{row['error']:.1e}", ratio]

    print("\ngroup_gemm, 8 experts, out 7168, in 8192, int4 per channel")
    lines = [line([row["tokens_per_expert"]], row) for row in gemm_rows]
    print(format_table(["tokens/expert", *columns, "of floor"], lines))
    print()
    lines = [line([row["op"], row["tokens"]], row) for row in small_rows]
    print(format_table(["op", "tokens", *columns, "of floor"], lines))


def find_gpu() -> Any | None:
    """Paddle's place of the GPU; None, after saying why, where the run is impossible."""
    import torch
    from w4afp8.testing.gpu import gpu_place

    if not torch.cuda.is_available():
        say("there is no GPU here: nothing was run")
        return None
    place = gpu_place()
    if place is None:
        say("Paddle sees no GPU here: nothing was run")
    return place


def machine_of(commit: str) -> Machine:
    import torch
    import w4afp8

    cuda = w4afp8.build_info()["cuda_version"]
    return Machine(torch.cuda.get_device_name(), driver_version(), cuda, commit)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--commit", required=True, help="of the clean tree that is measured")
    parser.add_argument("--results", required=True, type=pathlib.Path, help="folder for the rows")
    parser.add_argument("--no-benchmark", action="store_true", help="tests only")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()

    place = find_gpu()
    if place is None:
        return 2
    machine = machine_of(arguments.commit)
    say(f"{machine}")
    say("running the tests")
    tests = run_tests(arguments.pytest)
    test_values = {
        "passed": tests.passed,
        "failed": tests.failed,
        "skipped": sum(tests.skips.values()),
        "seconds": tests.seconds,
    }
    write_rows(arguments.results / "tests.jsonl", [machine.row("tests", test_values)], append=True)
    complaints = tests.complaints()

    if not arguments.no_benchmark:
        measured, gemm_rows, small_rows = benchmark(place)
        rows = [machine.row("gemm", {**measured, **row}) for row in gemm_rows]
        rows += [machine.row("moe", {**measured, **row}) for row in small_rows]
        write_rows(arguments.results / "quick.jsonl", rows, append=False)
        complaints += wrong_results([*gemm_rows, *small_rows])
        print_tables(gemm_rows, small_rows)
        print(f"\nceilings: {measured['hbm_gbs']} GB/s, {measured['tensor_tflops']} TFLOP/s")
    print(f"tests: {test_values}")
    for reason, count in tests.skips.items():
        print(f"  skipped {count}: {reason}")
    print("GPU RUN: " + ("; ".join(complaints) if complaints else "all is well"), flush=True)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
