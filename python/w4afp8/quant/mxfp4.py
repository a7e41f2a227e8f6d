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
"""Rounding to MXFP4: E2M1 codes with one power of two for every 32 weights (OCP MX v1.0)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from w4afp8.quant.codes import E2M1_MAGNITUDES

E8M0_BIAS = 127
_E2M1_EXPONENT = 2  # of the largest magnitude, 6 = 1.5 * 2^2


def quantize_groups(
    groups: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Rounds each group of 32, the last axis.

    The group's exponent is ``floor(log2(absmax)) - 2``; codes round to nearest even and saturate at
    6. The sign of a weight that rounds to zero is kept (-0).

    Args:
        groups: finite float32 ``[..., 32]``.

    Returns:
        E2M1 codes 0..15 of the shape of `groups`, E8M0 bytes ``[...]``.
    """
    absmax = np.abs(groups).max(axis=-1)
    # frexp gives absmax = m * 2^e with m in [0.5, 1): floor(log2(absmax)) is e - 1, exactly.
    exponent = np.frexp(absmax)[1] - 1 - _E2M1_EXPONENT
    exponent = np.where(absmax > 0, exponent, -E8M0_BIAS).clip(-E8M0_BIAS, E8M0_BIAS)
    codes = round_to_e2m1(np.ldexp(groups, -exponent[..., None]))
    return codes, (exponent + E8M0_BIAS).astype(np.uint8)


def round_to_e2m1(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Nearest E2M1 code, ties to the even code, saturating at 6."""
    magnitude = np.abs(values)
    codes = np.signbit(values).astype(np.uint8) << np.uint8(3)
    for code in range(7):
        # A magnitude at the midpoint goes to the even one of its two neighbours.
        midpoint = (E2M1_MAGNITUDES[code] + E2M1_MAGNITUDES[code + 1]) / 2
        codes += magnitude > midpoint if code % 2 == 0 else magnitude >= midpoint
    return codes
