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
"""4-bit weights times FP8 activations for PaddlePaddle on NVIDIA Hopper, and on the CPU.

Importing the package registers its operators with Paddle: do it before ``paddle.jit.load`` reads a
model that uses them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from w4afp8._extension import build_info

__version__ = "0.1.0"
__all__ = ["__version__", "build_info", "layers", "ops", "quant"]

_SUBMODULES = ("distributed", "fastdeploy", "incubate", "layers", "ops", "quant", "testing")


def __getattr__(name: str) -> ModuleType:
    if name not in _SUBMODULES:
        raise AttributeError(f"module 'w4afp8' has no attribute {name!r}")
    return importlib.import_module(f"w4afp8.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
