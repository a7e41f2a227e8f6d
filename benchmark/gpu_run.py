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
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "python")]

try:
    import torch  # noqa: F401
except ImportError:
    sys.exit("the GPU run needs PyTorch, which was not found: nothing was run")

from gpu_tests import run_tests  # noqa: E402
from quick import print_tables, run_benchmark, wrong_results  # noqa: E402

from w4afp8.bench.errors import BenchError  # noqa: E402
from w4afp8.bench.on_gpu.device import find_gpu, say, this_machine  # noqa: E402
from w4afp8.bench.rows import QUICK_KEYS, write_rows  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--commit", required=True, help="of the clean tree that is measured")
    parser.add_argument("--results", required=True, type=pathlib.Path, help="folder for the rows")
    parser.add_argument("--no-benchmark", action="store_true", help="tests only")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()

    try:
        place = find_gpu()
    except BenchError as error:
        say(f"{error}: nothing was run")
        return 2
    machine = this_machine(arguments.commit)
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
        measured, gemm_rows, small_rows = run_benchmark(place)
        rows = [
            machine.row("gemm", {**measured, **row}, extra_keys=QUICK_KEYS) for row in gemm_rows
        ]
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
