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
"""Loads ``w4afp8._ops``, the compiled operators, where they were built."""

from __future__ import annotations

import types
import warnings
from typing import TypedDict

BUILD_COMMAND = "python3 setup_ops.py build_ext --inplace"


class BuildInfo(TypedDict):
    """What was built into the extension."""

    version: str
    paddle_version: str  # of the Paddle it was built with
    cuda: bool  # whether the CUDA kernels are in it
    cuda_version: str | None
    cutlass_version: str | None
    arch: str | None  # of the CUDA kernels


def _load() -> types.ModuleType | Exception:
    try:
        with warnings.catch_warnings():
            # Paddle's tools for building advise ccache when it is first imported; nothing is built.
            warnings.filterwarnings("ignore", message="No ccache found")
            from w4afp8 import _ops
    except (ImportError, AssertionError) as error:  # not built, or no Paddle
        return error
    return _ops


_LOADED = _load()


def extension() -> types.ModuleType:
    """The compiled operators.

    Raises:
        ImportError: They were not built, or cannot be loaded.
    """
    if isinstance(_LOADED, Exception):
        raise ImportError(
            f"the operators of w4afp8 are missing ({_LOADED}); build them with '{BUILD_COMMAND}'"
        ) from _LOADED
    return _LOADED


def build_info() -> BuildInfo:
    """What was built into the extension: CPU kernels always, CUDA kernels where nvcc was found.

    Returns:
        The versions of w4afp8, Paddle, CUDA and CUTLASS at build time, and the GPU architecture.

    Raises:
        ImportError: The extension was not built.

    Examples:
        >>> import w4afp8
        >>> sorted(w4afp8.build_info())
        ['arch', 'cuda', 'cuda_version', 'cutlass_version', 'paddle_version', 'version']
    """
    info: BuildInfo = extension().build_info()
    return info
