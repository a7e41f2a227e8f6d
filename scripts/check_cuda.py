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
"""Compiles every CUDA file once for sm_90a, with warnings as errors, and reads what ptxas says.

    python3 scripts/check_cuda.py [--jobs 2] [file.cu ...]

Paddle's own build silences the compiler. Fails on a warning, on spilled registers, on local memory
(a stack frame) and on ptxas's advisories of lost speed, such as serialised wgmma instructions.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import setup_ops  # noqa: E402

WARNING_FLAGS = ["-Xptxas", "-v", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"]
# "(C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ..." and
# its kin, among them a setmaxnreg that is ignored (C7508).
ADVISORY = re.compile(r"\(C\d{4}\)|Potential Performance Loss|serialized|setmaxnreg ignored")
ENTRY = re.compile(r"Compiling entry function '(\S+)'")
FUNCTION = re.compile(r"Function properties for (\S+)")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclasses.dataclass
class Function:
    """What ptxas says of one kernel, or of a device function that it did not inline."""

    name: str
    registers: int = 0
    shared: int = 0  # static shared memory, bytes
    spills: int = 0  # bytes stored and loaded
    stack: int = 0  # bytes

    def is_clean(self) -> bool:
        return self.spills == 0 and self.stack == 0


@dataclasses.dataclass(frozen=True)
class Compilation:
    """One compiled file."""

    path: pathlib.Path
    returncode: int
    output: str

    def advisories(self) -> list[str]:
        return [line.strip() for line in self.output.splitlines() if ADVISORY.search(line)]

    def functions(self) -> list[Function]:
        found: dict[str, Function] = {}
        entry = current = Function("")
        for line in self.output.splitlines():
            if match := ENTRY.search(line):
                entry = found.setdefault(match[1], Function(match[1]))
            elif match := FUNCTION.search(line):
                current = found.setdefault(match[1], Function(match[1]))
            elif match := STACK.search(line):
                current.stack, current.spills = int(match[1]), int(match[2]) + int(match[3])
            elif match := USED.search(line):
                entry.registers = int(match[1])
                shared = SHARED.search(line)
                entry.shared = int(shared[1]) if shared else 0
        return list(found.values())


def compile_command(toolkit: setup_ops.Toolkit, cutlass: pathlib.Path) -> list[str]:
    """The build's own flags with warnings on; headers of others are system headers."""
    systems = [str(cutlass), *toolkit.include_dirs]
    return [
        str(toolkit.home / "bin" / "nvcc"),
        *setup_ops.NVCC_FLAGS,
        *WARNING_FLAGS,
        *("-I", str(ROOT / "gpu_ops")),
        *(word for path in systems for word in ("-isystem", path)),
    ]


def compile_file(command: Sequence[str], path: pathlib.Path, folder: str) -> Compilation:
    target = pathlib.Path(folder) / (str(path.relative_to(ROOT)).replace("/", "_") + ".o")
    done = subprocess.run(
        [*command, "-c", str(path), "-o", str(target)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Compilation(path, done.returncode, done.stdout)


def demangle(names: Sequence[str]) -> list[str]:
    """Readable names without namespaces and parameters; as they are where no c++filt is found."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return list(names)
    text = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    noise = r"w4afp8::|\(anonymous namespace\)::|^void |\([A-Za-z0-9_, ]*\)$"
    return [re.sub(noise, "", re.sub(noise, "", name)) for name in text.split("\n")]


def report(compilation: Compilation) -> list[str]:
    """Prints one file's table and returns its complaints."""
    path = compilation.path.relative_to(ROOT)
    if compilation.returncode != 0:
        print(compilation.output)
        return [f"{path} does not compile without warnings"]
    functions = compilation.functions()
    print(f"\n{path}\n  registers shared spills stack  kernel")
    complaints = [f"{path}: {line}" for line in compilation.advisories()]
    for function, name in zip(functions, demangle([f.name for f in functions]), strict=False):
        print(
            f"  {function.registers:9} {function.shared:6} {function.spills:6} "
            f"{function.stack:5}  {name}"
        )
        if not function.is_clean():
            complaints.append(f"{path}: {name} spills or uses local memory")
    return complaints


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="default: every .cu file")
    parser.add_argument("--jobs", type=int, default=2, help="files compiled at a time")
    arguments = parser.parse_args()
    try:
        command = compile_command(setup_ops.find_toolkit(), setup_ops.find_cutlass()[0])
    except setup_ops.NoToolkit as reason:
        print(f"check_cuda: {reason}")
        return 1
    patterns = ("gpu_ops/**/*.cu", "test/gpu/*.cu", "benchmark/*.cu")
    everything = [path for pattern in patterns for path in ROOT.glob(pattern)]
    files = [path.resolve() for path in arguments.files] or sorted(everything)

    complaints: list[str] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        for compilation in pool.map(lambda path: compile_file(command, path, folder), files):
            complaints += report(compilation)
    print(f"\ncheck_cuda: {len(files)} files, {len(complaints)} complaints")
    for complaint in complaints:
        print(f"  {complaint}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
