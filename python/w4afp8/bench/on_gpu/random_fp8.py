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
"""Random FP8 numbers on the GPU."""

from __future__ import annotations

import math
from typing import Any

import torch

DEVIATION = 16.0  # most numbers use several of E4M3's binades, next to none is beyond 448
PIECE = 1 << 26  # numbers made at a time: their float32 takes 256 MB


def random_fp8(*shape: int) -> Any:
    """Normal numbers as torch.float8_e4m3fn."""
    flat = torch.empty(math.prod(shape), dtype=torch.float8_e4m3fn, device="cuda")
    for piece in flat.split(PIECE):
        piece.copy_(DEVIATION * torch.randn(piece.shape, device="cuda"))
    return flat.view(shape)
