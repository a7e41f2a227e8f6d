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
"""Runs the tests on the GPU and says what became of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIME_LIMIT = 270  # seconds; the whole GPU run has to end inside 8 minutes
# A skip is allowed where its reason begins with one of these.
ALLOWED_SKIPS = ("compute-sanitizer does not support this machine",)
PROCESSES = 6  # that share the GPU, where pytest-xdist is installed


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


def parallel() -> list[str]:
    """Arguments that spread the tests over several processes."""
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(PROCESSES), "--dist", "load"]


def run_tests(arguments: Sequence[str]) -> TestResult:
    """Runs test/gpu in a process of its own: a crash there must not end this run."""
    environment = dict(os.environ)
    paths = [str(ROOT / "python"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment.setdefault("OMP_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}"]
        command += ["--durations=8", *parallel(), *arguments, str(ROOT / "test" / "gpu")]
        started = time.monotonic()
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, timeout=TIME_LIMIT, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            print(f"the tests were stopped after {TIME_LIMIT} s", flush=True)
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
