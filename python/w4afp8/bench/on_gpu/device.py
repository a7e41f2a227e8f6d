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
"""The GPU of a run, and what its rows say of it."""

from __future__ import annotations

import time
from typing import Any

import torch

import w4afp8
from w4afp8.bench.errors import BenchError
from w4afp8.bench.rows import Machine, driver_version
from w4afp8.testing.gpu import gpu_place


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def find_gpu() -> Any:
    """Paddle's place of the GPU.

    Raises:
        BenchError: PyTorch or Paddle sees none.
    """
    if not torch.cuda.is_available():
        raise BenchError("there is no GPU here")
    place = gpu_place()
    if place is None:
        raise BenchError("Paddle sees no GPU here")
    return place


def this_machine(commit: str) -> Machine:
    """The machine as every row says it."""
    cuda = w4afp8.build_info()["cuda_version"]
    return Machine(torch.cuda.get_device_name(), driver_version(), cuda, commit)
