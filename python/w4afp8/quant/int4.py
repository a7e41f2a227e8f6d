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
"""Rounding to signed 4-bit integers with one scale per group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from w4afp8.quant.bfloat16 import round_to_bfloat16
from w4afp8.quant.weights import ScaleDtype

Float32 = NDArray[np.float32]

# absmax/7: symmetric, -8 never occurs. absmax/7.5: as compressed-tensors, the largest negative
# weight may become -8. mse: the candidate scale with the least sum of squared errors.
Rounding = Literal["absmax/7", "absmax/7.5", "mse"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)

# Clipping pays for long groups: on normal data the best scale of a group of 128 to 8192 weights is
# 0.6 to 0.95 times absmax/7. 1 and 7/7.5 make "mse" never worse than the other two rules.
_MSE_FRACTIONS = (*np.arange(0.5, 1.0001, 0.025), 7 / 7.5)


def quantize_groups(
    groups: Float32, rounding: Rounding, scale_dtype: ScaleDtype
) -> tuple[NDArray[np.uint8], Float32]:
    """Rounds each group, the last axis, with a scale of its own.

    Args:
        groups: finite float32 ``[..., group_size]``.
        rounding: the rule for the scale.
        scale_dtype: the scales are numbers of this type, and the codes are chosen for them.

    Returns:
        Codes 0..15 (two's complement) of the shape of `groups`, scales float32 ``[...]``. A group
        of zeros has the scale 1.
    """
    settle: Callable[[Float32], Float32] = (
        round_to_bfloat16 if scale_dtype == "bfloat16" else lambda scale: scale
    )
    absmax = np.abs(groups).max(axis=-1)
    if rounding == "mse":
        scale = _least_squares_scale(groups, absmax, settle)
    else:
        scale = settle(_nonzero(absmax / np.float32(7 if rounding == "absmax/7" else 7.5)))
    return (_round(groups, scale).astype(np.int8).view(np.uint8) & np.uint8(15)), scale


def _nonzero(scale: Float32) -> Float32:
    # A scale below bfloat16's smallest normal number would lose bits when settled; such a group is
    # rounded to zeros.
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)


def _round(groups: Float32, scale: Float32) -> Float32:
    return np.clip(np.rint(groups / scale[..., None]), -8, 7)


def _least_squares_scale(
    groups: Float32, absmax: Float32, settle: Callable[[Float32], Float32]
) -> Float32:
    best_scale = np.zeros_like(absmax)
    best_error = np.full(absmax.shape, np.inf)
    for fraction in _MSE_FRACTIONS:
        scale = settle(_nonzero(absmax * np.float32(fraction / 7)))
        difference = _round(groups, scale) * scale[..., None] - groups
        error = np.einsum("...i,...i->...", difference, difference, dtype=np.float64)
        better = error < best_error
        best_scale = np.where(better, scale, best_scale)
        best_error = np.where(better, error, best_error)
    return best_scale
