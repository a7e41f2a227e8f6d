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
"""Builds the one extension, ``w4afp8._ops``.

    python3 setup_ops.py build_ext --inplace

The CPU kernels are always built. The CUDA kernels are built (for sm_90a) where CUDA 12.4 or newer
is found through CUDA_HOME, CUDA_PATH, PATH, pip's ``nvidia`` packages or /usr/local/cuda.

Environment:
    W4AFP8_CUDA=0  no CUDA kernels, even where nvcc is found
    W4AFP8_CUDA=1  fail, and say why, where the CUDA kernels cannot be built
    CUTLASS_HOME   folder whose ``include`` holds the CUTLASS headers, if not the pip package's
    MAX_JOBS       number of files compiled at a time
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent
OLDEST_CUDA = (12, 4)
CXX_FLAGS = ["-std=c++17", "-O3"]
# No fused multiply-add where the processor has one: CPU and GPU give the same bits.
HOST_FLAGS = ["-g0", "-ffp-contract=off"]
# What comes from static libraries stays inside: CUDA's runtime, and libstdc++ where a compiler has
# only a static one. Mixed with the process's own copy its locales crash as an error is formatted.
LINK_FLAGS = ["-lpthread", "-Wl,--exclude-libs,ALL"]
NVCC_FLAGS = [
    *CXX_FLAGS,
    *("-gencode", "arch=compute_90a,code=sm_90a"),
    "--expt-relaxed-constexpr",
    "-lineinfo",
]


@dataclasses.dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that can build the kernels."""

    home: pathlib.Path
    version: str
    include_dirs: list[str]
    static_runtime: pathlib.Path


class NoToolkit(Exception):  # noqa: N818
    """Why the CUDA kernels cannot be built."""


def pip_nvidia_dirs() -> list[pathlib.Path]:
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else None
    return [path for root in roots or [] for path in sorted(pathlib.Path(root).iterdir())]


def toolkit_homes() -> Iterator[pathlib.Path]:
    """Folders that may hold bin/nvcc, best first."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield pathlib.Path(os.environ[variable])
    nvcc = shutil.which("nvcc")
    if nvcc:
        yield pathlib.Path(nvcc).resolve().parent.parent
    yield from pip_nvidia_dirs()
    yield pathlib.Path("/usr/local/cuda")


def nvcc_version(nvcc: pathlib.Path) -> str:
    try:
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoToolkit(f"{nvcc} does not run: {error}") from None
    found = re.search(r"release (\d+\.\d+)", done.stdout)
    if found is None:
        raise NoToolkit(f"{nvcc} --version names no release")
    return found.group(1)


def toolkit_at(home: pathlib.Path) -> Toolkit:
    """The toolkit in ``home``. Raises NoToolkit where it is too old or not complete."""
    version = nvcc_version(home / "bin" / "nvcc")
    if tuple(map(int, version.split("."))) < OLDEST_CUDA:
        raise NoToolkit(f"nvcc {version} in {home} is older than {OLDEST_CUDA[0]}.{OLDEST_CUDA[1]}")
    roots = [home, *(pip_nvidia_dirs() if "site-packages" in home.parts else [])]
    includes = [root / "include" for root in roots]
    includes += [include / "cccl" for include in includes]
    includes = [include for include in includes if include.is_dir()]
    if not any((include / "cuda_runtime_api.h").is_file() for include in includes):
        raise NoToolkit(f"{home} has no cuda_runtime_api.h")
    folders = ("lib64", "lib", "targets/x86_64-linux/lib")
    runtimes = [root / folder / "libcudart_static.a" for root in roots for folder in folders]
    runtimes = [path for path in runtimes if path.is_file()]
    if not runtimes:
        raise NoToolkit(f"{home} has no libcudart_static.a")
    return Toolkit(home, version, [str(include) for include in includes], runtimes[0])


def find_toolkit() -> Toolkit:
    """The first toolkit that is new enough and complete. Raises NoToolkit."""
    reasons = []
    for home in toolkit_homes():
        if not (home / "bin" / "nvcc").is_file():
            continue
        try:
            return toolkit_at(home)
        except NoToolkit as reason:
            reasons.append(str(reason))
    raise NoToolkit("; ".join(reasons) or "no nvcc was found; set CUDA_HOME")


def find_cutlass() -> tuple[pathlib.Path, str]:
    """Include folder and version of the CUTLASS headers. Raises NoToolkit."""
    if os.environ.get("CUTLASS_HOME"):
        include = pathlib.Path(os.environ["CUTLASS_HOME"]) / "include"
    else:
        spec = importlib.util.find_spec("cutlass_library")
        if spec is None or not spec.submodule_search_locations:
            raise NoToolkit(
                "no CUTLASS headers were found; run 'pip install --no-deps nvidia-cutlass' "
                "or set CUTLASS_HOME"
            )
        include = pathlib.Path(spec.submodule_search_locations[0]) / "source" / "include"
    header = include / "cutlass" / "version.h"
    if not header.is_file():
        raise NoToolkit(f"no CUTLASS headers in {include}")
    numbers = re.findall(r"#define CUTLASS_(?:MAJOR|MINOR|PATCH) (\d+)", header.read_text())
    return include, ".".join(numbers)


def choose_cuda() -> tuple[Toolkit, pathlib.Path, str] | None:
    """Toolkit, CUTLASS include folder and CUTLASS version, or None for a build without CUDA."""
    wanted = os.environ.get("W4AFP8_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"W4AFP8_CUDA: expected 0, 1 or nothing, got {wanted!r}")
    if wanted == "0":
        print("CUDA kernels: left out (W4AFP8_CUDA=0)")
        return None
    try:
        toolkit, (cutlass, cutlass_version) = find_toolkit(), find_cutlass()
    except NoToolkit as reason:
        if wanted == "1":
            raise SystemExit(f"W4AFP8_CUDA=1, but {reason}") from None
        print(f"CUDA kernels: left out, {reason}")
        return None
    print(f"CUDA kernels: nvcc {toolkit.version} of {toolkit.home}, CUTLASS {cutlass_version}")
    return toolkit, cutlass, cutlass_version


class SkipUnchanged:
    """Stands in for the compiler's ``spawn``: skips compilations whose inputs are unchanged.

    Paddle compiles every file in every build. Beside each object lie the list of the files it was
    made from (``.d``, written by the compiler) and a hash of its command (``.cmd``).
    """

    def __init__(self, spawn: Callable[[list[str]], None]) -> None:
        self._spawn = spawn
        self._failed: list[str] = []

    def __call__(self, command: list[str]) -> None:
        command = [str(word) for word in command]
        if "-c" not in command:
            if self._failed:
                raise SystemExit(f"could not compile {', '.join(self._failed)}")
            return self._spawn(command)
        target = pathlib.Path(command[command.index("-o") + 1])
        depfile, stamp = target.with_suffix(".d"), target.with_suffix(".cmd")
        digest = hashlib.sha256("\0".join(command).encode()).hexdigest()
        if self._is_fresh(target, depfile, stamp, digest):
            return None
        target.unlink(missing_ok=True)
        try:
            self._spawn([*command, "-MMD", "-MF", str(depfile)])
        except BaseException:
            self._failed.append(command[command.index("-c") + 1])
            raise
        stamp.write_text(digest)
        return None

    @staticmethod
    def _is_fresh(
        target: pathlib.Path, depfile: pathlib.Path, stamp: pathlib.Path, digest: str
    ) -> bool:
        if not (target.is_file() and depfile.is_file() and stamp.is_file()):
            return False
        if stamp.read_text() != digest:
            return False
        inputs = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        built = target.stat().st_mtime
        return all(os.path.isfile(path) and os.path.getmtime(path) <= built for path in inputs)


def version() -> str:
    text = (ROOT / "python" / "w4afp8" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found, "python/w4afp8/__init__.py has no __version__"
    return found.group(1)


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def main() -> None:
    os.chdir(ROOT)
    cuda = choose_cuda()
    os.environ.pop("PADDLE_CUDA_ARCH_LIST", None)  # Paddle would compile for those too
    if cuda:  # Paddle reads it when cpp_extension is imported
        os.environ["CUDA_HOME"] = str(cuda[0].home)

    import paddle
    from paddle.utils import cpp_extension

    class BuildOps(cpp_extension.BuildExtension):  # type: ignore[misc]
        build_temp: str

        def finalize_options(self) -> None:
            super().finalize_options()
            # Paddle joins it to build_lib, from where objects would go into a wheel.
            self.build_temp = str(pathlib.Path(self.build_temp).resolve())

        def build_extensions(self) -> None:
            self.compiler.spawn = SkipUnchanged(self.compiler.spawn)
            super().build_extensions()
            # Paddle's record of the flags, of no use beside SkipUnchanged.
            folder = pathlib.Path(self.get_ext_fullpath(self.extensions[0].name)).parent
            (folder / "version.txt").unlink(missing_ok=True)

    facts = {"VERSION": version(), "PADDLE_VERSION": paddle.__version__}
    include_dirs = [str(ROOT / "custom_ops"), str(ROOT / "gpu_ops")]
    files = [*sources("custom_ops/*.cc"), *sources("custom_ops/cpu/*.cc")]
    cxx_flags, link_flags = [*CXX_FLAGS, *HOST_FLAGS], LINK_FLAGS.copy()
    if cuda:
        toolkit, cutlass, cutlass_version = cuda
        facts |= {"CUDA_VERSION": toolkit.version, "CUTLASS_VERSION": cutlass_version}
        files += sources("gpu_ops/**/*.cu")
        include_dirs += [str(cutlass), *toolkit.include_dirs]
        cxx_flags.append("-DW4AFP8_WITH_CUDA")
        # Static: the import must need neither a driver nor a runtime.
        link_flags += [str(toolkit.static_runtime), "-lrt", "-ldl"]
    cxx_flags += [f'-DW4AFP8_{name}="{value}"' for name, value in facts.items()]

    cpp_extension.setup(
        name="w4afp8._ops",
        package_dir={"": "python"},
        packages=sorted(
            ".".join(path.parent.relative_to(ROOT / "python").parts)
            for path in ROOT.glob("python/w4afp8/**/__init__.py")
        ),
        package_data={"w4afp8": ["py.typed", "*.pyi"]},
        # CppExtension for CUDA too: CUDAExtension adds nothing but the shared runtime.
        ext_modules=cpp_extension.CppExtension(
            sources=files,
            include_dirs=include_dirs,
            depends=[*sources("custom_ops/**/*.h"), *sources("gpu_ops/**/*.*h")],
            extra_compile_args={"cxx": cxx_flags, "nvcc": list(NVCC_FLAGS)},
            extra_link_args=link_flags,
        ),
        cmdclass={"build_ext": BuildOps},
    )


if __name__ == "__main__":
    main()
