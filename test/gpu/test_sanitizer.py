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
"""Every kernel without Paddle: guard bytes around its outputs, and under compute-sanitizer."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

import setup_ops
from w4afp8.testing.gpu import gpu_place

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# The tool knows ordinary barriers only: it cannot follow the copy engine and mbarriers, of the GEMM
# and of mla_up_boxes.
RACECHECKED = (
    *("weight_pack", "quant_per_token", "activation_quant", "moe_route", "moe_dispatch"),
    "mla_up",
)


def newest_objects() -> list[str]:
    """Object files of gpu_ops from the last build in place.

    Raises:
        AssertionError: A source file has none.
    """
    objects = []
    for source in sorted((ROOT / "gpu_ops").glob("**/*.cu")):
        name = str(source.relative_to(ROOT)).removesuffix(".cu")
        built = [
            path
            for path in (ROOT / "build").glob(f"**/{source.stem}.*o")
            if str(path).endswith((f"/{name}.cu.o", f"/{name}.o"))
        ]
        assert built, f"no object of {source}: run 'python3 setup_ops.py build_ext --inplace'"
        objects.append(str(max(built, key=lambda path: path.stat().st_mtime)))
    return objects


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled test/gpu/driver.cu."""
    if gpu_place() is None:
        pytest.skip("Paddle sees no GPU")
    target = str(tmp_path_factory.mktemp("driver") / "driver")
    nvcc = str(setup_ops.find_toolkit().home / "bin" / "nvcc")
    source = str(ROOT / "test" / "gpu" / "driver.cu")
    command = [nvcc, *setup_ops.NVCC_FLAGS, "-I", str(ROOT / "gpu_ops"), source]
    subprocess.run([*command, *newest_objects(), "-o", target], check=True)
    return target


def run(*command: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not support this machine")
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def sanitizer() -> str:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not pathlib.Path(tool).is_file():
        pytest.skip("compute-sanitizer was not found")
    return tool


def test_nothing_is_written_outside_the_outputs(driver: str) -> None:
    output = run(driver)
    assert all(f"{name} done" in output for name in ("in_graph", "group_gemm", "in_new_thread"))


def test_memcheck(driver: str) -> None:
    output = run(sanitizer(), "--tool", "memcheck", "--error-exitcode", "9", driver, "--exact")
    assert "ERROR SUMMARY: 0 errors" in output


def test_racecheck(driver: str) -> None:
    output = run(sanitizer(), "--tool", "racecheck", "--error-exitcode", "9", driver, *RACECHECKED)
    assert "RACECHECK SUMMARY: 0 hazards" in output
