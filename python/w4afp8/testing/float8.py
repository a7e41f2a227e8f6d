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
"""float8_e4m3fn by definition: a table of its values, and the nearest of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NAN = 0x7F
LARGEST = 448.0


def _make_values() -> NDArray[np.float64]:
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    magnitude = np.where(
        exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8.0 + mantissa, exponent - 10)
    )
    magnitude[NAN] = np.nan
    return np.concatenate([magnitude, -magnitude])


VALUES = _make_values()  # float64 of each of the 256 codes


def decode(bits: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Codes to the float64 numbers they stand for."""
    return VALUES[bits]


def encode(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Nearest code, ties to the even one; beyond 448 saturates, NaN becomes 0x7F."""
    magnitude = np.minimum(np.abs(values.astype(np.float64)), LARGEST)
    below = np.searchsorted(VALUES[:NAN], np.nan_to_num(magnitude), side="right") - 1
    above = np.minimum(below + 1, NAN - 1)
    to_below, to_above = magnitude - VALUES[below], VALUES[above] - magnitude
    up = (to_above < to_below) | ((to_above == to_below) & (below % 2 == 1))
    codes = np.where(up, above, below) + np.where(np.signbit(values), 128, 0)
    return np.where(np.isnan(values), NAN, codes).astype(np.uint8)
