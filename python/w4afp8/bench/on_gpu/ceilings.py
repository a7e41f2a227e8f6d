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
"""The two ceilings of a GPU, measured: reading device memory, and FP8 matrix products."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from w4afp8.testing.timing import time_launches

ROOT = pathlib.Path(__file__).resolve().parents[4]  # of the checkout
READ_BYTES = 4 << 30
MATRIX = 8192  # m = n = k of the matrix product


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """GB/s read from device memory by bulk copies, and dense FP8 TFLOP/s of cuBLASLt, in bursts."""

    hbm_gbs: float
    tensor_tflops: float


def import_setup_ops() -> Any:
    """The build script of the checkout, which knows how to find nvcc.

    Raises:
        ImportError: The package is not used from a checkout.
    """
    if not (ROOT / "setup_ops.py").is_file():
        raise ImportError("the ceilings are measured from a checkout only: no setup_ops.py found")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module("setup_ops")


def build_bulk_read(folder: str) -> Callable[..., int]:
    """Compiles bulk_read.cu into ``folder``: f(data, bytes, stream) -> cudaError_t."""
    library = str(pathlib.Path(folder) / "libbulk_read.so")
    source = str(ROOT / "benchmark" / "bulk_read.cu")
    setup_ops = import_setup_ops()
    nvcc = str(setup_ops.find_toolkit().home / "bin" / "nvcc")
    flags = [*setup_ops.NVCC_FLAGS, "-shared", "-Xcompiler", "-fPIC"]
    for include in (ROOT / "gpu_ops", setup_ops.find_cutlass()[0]):
        flags += ["-I", str(include)]
    subprocess.run([nvcc, *flags, source, "-o", library], check=True)
    function = ctypes.CDLL(library).bulk_read
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    return function  # type: ignore[no-any-return]


def measure_read(stream: Any) -> float:
    """GB/s of one pass over 4 GiB."""
    data = torch.randint(0, 256, (READ_BYTES,), dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        bulk_read = build_bulk_read(folder)

        def launch() -> None:
            error = bulk_read(data.data_ptr(), READ_BYTES, stream.cuda_stream)
            if error != 0:
                raise RuntimeError(f"bulk_read: CUDA error {error}")

        return READ_BYTES / time_launches([launch], stream=stream).us / 1e3


def measure_matrix_products(stream: Any) -> float:
    """TFLOP/s of E4M3 x E4M3 with fast accumulation, random data, BF16 results."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda")
    torch.cuda.synchronize()

    def launch() -> None:
        torch._scaled_mm(
            a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return 2 * MATRIX**3 / time_launches([launch], stream=stream).us / 1e6


def measure_bfloat16_products(stream: Any) -> float:
    """TFLOP/s of BF16 x BF16, random data."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda").to(torch.bfloat16) for _ in range(2))
    torch.cuda.synchronize()
    us = time_launches([lambda: torch.mm(a, b)], stream=stream).us
    return 2 * MATRIX**3 / us / 1e6


def measure() -> Ceilings:
    """Both ceilings of the current GPU."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        return Ceilings(measure_read(stream), measure_matrix_products(stream))
