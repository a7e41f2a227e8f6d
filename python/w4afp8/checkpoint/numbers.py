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
"""The number types of checkpoints that numpy lacks, and what scales may not be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.quant.bfloat16 import bfloat16_values
from w4afp8.quant.weights import E8M0_NAN

FLOATS = ("F32", "BF16", "F16")


def _make_e4m3_values() -> NDArray[np.float32]:
    """float32 of each of the 256 codes of float8_e4m3fn: bias 7, no infinity, NaN at 0x7F."""
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    values = np.ldexp(np.where(exponent == 0, mantissa, 8 + mantissa), np.maximum(exponent, 1) - 10)
    values[0x7F] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


E4M3_VALUES = _make_e4m3_values()


def read_floats(files: SafetensorsFiles, name: str) -> NDArray[np.float32]:
    """A tensor of float32, bfloat16, float16 or E4M3 as finite float32, exactly.

    Raises:
        CheckpointError: it is of another type, or holds NaN or infinity.
    """
    return _as_floats(files, name, files.view(name))


def read_floats_of(files: SafetensorsFiles, name: str, expert: int) -> NDArray[np.float32]:
    """As `read_floats`, of one expert: ``tensor[expert]``."""
    return _as_floats(files, name, files.view(name)[expert])


def _as_floats(files: SafetensorsFiles, name: str, bits: NDArray[Any]) -> NDArray[np.float32]:
    dtype = files.info(name).dtype
    if dtype == "BF16":
        values = bfloat16_values(np.ascontiguousarray(bits))
    elif dtype == "F8_E4M3":
        values = E4M3_VALUES[bits]
    elif dtype in FLOATS:
        values = bits.astype(np.float32)
    else:
        raise files.error(name, f"expected floats, got {dtype}")
    _refuse(files, name, ~np.isfinite(values), "finite numbers", values)
    return values


def read_scales(files: SafetensorsFiles, name: str) -> NDArray[np.float32]:
    """Scales as `read_floats` reads them, none of them negative.

    Raises:
        CheckpointError: one is NaN, infinite or below zero, or the type is no float.
    """
    values = read_floats(files, name)
    _refuse(files, name, values < 0, "scales of at least 0", values)
    return values


def read_e8m0(files: SafetensorsFiles, name: str) -> NDArray[np.uint8]:
    """E8M0 bytes: the value of byte b is ``2^(b - 127)``.

    Raises:
        CheckpointError: one is 0xFF, which is NaN.
    """
    return _as_e8m0(files, name, files.view(name))


def read_e8m0_of(files: SafetensorsFiles, name: str, expert: int) -> NDArray[np.uint8]:
    """As `read_e8m0`, of one expert: ``tensor[expert]``."""
    return _as_e8m0(files, name, files.view(name)[expert])


def _as_e8m0(files: SafetensorsFiles, name: str, view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = np.array(view)
    _refuse(files, name, scale == E8M0_NAN, "E8M0 bytes of 0..254", scale)
    return scale


def read_input_scale(files: SafetensorsFiles, name: str) -> float:
    """A single positive multiplier of FP8 activations.

    Raises:
        CheckpointError: it has more than one element, or is not finite and positive.
    """
    if files.info(name).shape not in ((), (1,)):
        raise files.error(name, f"expected shape [1] or [], got {list(files.info(name).shape)}")
    value = float(read_scales(files, name).reshape(-1)[0])
    if value == 0:
        raise files.error(name, "expected a positive scale, got 0")
    return value


def _refuse(
    files: SafetensorsFiles, name: str, wrong: NDArray[np.bool_], expected: str, values: Any
) -> None:
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise files.error(name, f"expected {expected}, got {values[place]} at {list(place)}")
