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
"""``w4afp8 bench host``: what a call of the grouped GEMM costs the host.

Beside it stands the least that a call through pybind can cost: an output of the same size allocated
by Paddle, and the launch of an empty kernel. The difference is our own.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import importlib.util
import pathlib
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from typing import Any

import paddle
import torch

from w4afp8 import ops
from w4afp8._extension import extension
from w4afp8.bench.cases import GemmCase
from w4afp8.bench.on_gpu import gemm_data
from w4afp8.bench.on_gpu.ceilings import ROOT, import_setup_ops
from w4afp8.bench.on_gpu.device import find_gpu, say, this_machine
from w4afp8.bench.rows import HOST_KEYS, write_rows
from w4afp8.bench.turns import medians_in_turns
from w4afp8.testing.gpu import torch_on_paddle_stream

# Small enough that the GPU keeps up, so that the host never waits for it.
CASE = GemmCase(8, 256, 512, 4)
CALLS = 200  # of one timing; a stream's queue holds about a thousand launches
ROUNDS = 50
EMPTY = "empty"

Call = Callable[[], object]


def build_empty_call(folder: pathlib.Path) -> tuple[Any, int]:
    """Compiles benchmark/empty_call.cc and empty_launch.cu.

    Returns:
        ``empty_call(x, features, launch, stream)`` and the address that it launches through.
    """
    module, library = folder / "empty_call.so", folder / "libempty_launch.so"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        commands = [_host_command(module), _cuda_command(library)]
        for done in pool.map(lambda words: subprocess.run(words, check=True), commands):
            done.check_returncode()
    spec = importlib.util.spec_from_file_location("empty_call", module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    launch = ctypes.CDLL(str(library)).empty_launch
    return loaded.empty_call, ctypes.cast(launch, ctypes.c_void_p).value or 0


def _host_command(target: pathlib.Path) -> list[str]:
    include = paddle.sysconfig.get_include()
    base = pathlib.Path(paddle.__file__).parent / "base"
    folders = [include, f"{include}/third_party", sysconfig.get_paths()["include"]]
    folders.append(str(ROOT / "custom_ops"))
    return [
        *("g++", "-std=c++17", "-O3", "-w", "-fPIC", "-shared"),
        *(word for folder in folders for word in ("-I", folder)),
        *(str(ROOT / "benchmark" / "empty_call.cc"), "-o", str(target)),
        *("-L", str(base), "-l:libpaddle.so", f"-Wl,-rpath,{base}"),
    ]


def _cuda_command(target: pathlib.Path) -> list[str]:
    setup_ops = import_setup_ops()
    nvcc = str(setup_ops.find_toolkit().home / "bin" / "nvcc")
    source = str(ROOT / "benchmark" / "empty_launch.cu")
    flags = [*setup_ops.NVCC_FLAGS, "-shared", "-Xcompiler", "-fPIC"]
    return [nvcc, *flags, source, "-o", str(target)]


def gemm_calls(inputs: gemm_data.Activations, weights: gemm_data.WeightSet) -> dict[str, Call]:
    """The ways to call the operator, by name."""
    operands = (inputs.x, weights.packed, weights.weight_scale, inputs.tokens)
    hint = CASE.max_tokens

    def through_ops() -> object:
        return ops.group_gemm(*operands, max_tokens=hint)

    def registered() -> object:
        with ops.force_route("registered"):
            return through_ops()

    direct = extension().group_gemm
    nothing = (None, None, None)

    def through_pybind() -> object:
        return direct(*operands, *nothing, "int4", -1, 0, hint, "bfloat16", "default", "none")

    return {"pybind": through_pybind, "w4afp8.ops": through_ops, "registered": registered}


def block_us(call: Call, stream: Any) -> float:
    """Microseconds of host time a call takes, over ``CALLS`` of them into an empty queue."""
    stream.synchronize()
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - begin) / CALLS * 1e6


def measure(place: Any, folder: pathlib.Path) -> dict[str, tuple[float, float]]:
    """Median and least microseconds of each way to call."""
    empty_call, launch = build_empty_call(folder)
    with torch_on_paddle_stream(place) as stream:
        inputs = gemm_data.make_activations(CASE, gemm_data.make_rows(CASE))
        weights = gemm_data.make_weights(CASE, keep_codes=False)
        handle = int(stream.cuda_stream)
        calls: dict[str, Call] = {
            EMPTY: lambda: empty_call(inputs.x, CASE.out_features, launch, handle),
            **gemm_calls(inputs, weights),
        }
        least = dict.fromkeys(calls, float("inf"))

        def timed(name: str) -> Callable[[], float]:
            def measure_once() -> float:
                us = block_us(calls[name], stream)
                least[name] = min(least[name], us)
                return us

            return measure_once

        contenders = {name: timed(name) for name in calls}
        for contender in contenders.values():  # warms up
            contender()
        medians = medians_in_turns(contenders, ROUNDS, rest=lambda: None)
        torch.cuda.synchronize()
    return {name: (medians[name], least[name]) for name in calls}


def run(*, rows_file: pathlib.Path, commit: str) -> None:
    """Measures, prints, and writes a row for each way to call into a file, begun anew."""
    place, machine = find_gpu(), this_machine(commit)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(place, pathlib.Path(folder))
    rows = []
    for name, (us, fastest) in found.items():
        over = us - found[EMPTY][0]
        values = {"call": name, "us": us, "fastest_us": fastest, "over_empty_us": over}
        rows.append(machine.row("host", values, extra_keys=HOST_KEYS))
        say(f"{name}: {us:.2f} us a call, the fastest {fastest:.2f}, over an empty one {over:.2f}")
    write_rows(rows_file, rows, append=False)
