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
"""What the FP8 tensor cores of Hopper do to a sum, executed."""

from __future__ import annotations

import numpy as np

from w4afp8.testing.compare import (
    K_BLOCK,
    TENSOR_CORE_BITS,
    TENSOR_CORE_STEP,
    Float64,
    Summation,
)


def truncating_sum(x: Float64, weight: Float64, how: Summation) -> Float64:
    """``x [rows, n] @ weight [out, n].T`` by the accumulators of `w4afp8.testing.compare`.

    Args:
        x: ``[rows, n]``, n a multiple of 32.
        weight: ``[out, n]``.
        how: see `w4afp8.testing.compare.summation`; what is promoted or carried is added in float64
            here.

    Returns:
        ``[rows, out]``.
    """
    length = K_BLOCK if how == "halves" else how
    total = np.zeros((len(x), len(weight)))
    rest = np.zeros_like(total)
    for k in range(0, x.shape[1], length):
        part = (x[:, k : k + length], weight[:, k : k + length])
        sums = _sum_of_steps(*part, rest, in_halves=how == "halves")
        total = total - rest + sums
        if how == "halves":
            total = _as_half(total)
        elif how > K_BLOCK:
            rest = total - _three_bits(total)
    return total


def _three_bits(x: Float64) -> Float64:
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 8), exponent - 3)


def _as_half(x: Float64) -> Float64:
    return x.astype(np.float16).astype(np.float64)


def _sum_of_steps(x: Float64, weight: Float64, total: Float64, *, in_halves: bool) -> Float64:
    for k in range(0, x.shape[1], TENSOR_CORE_STEP):
        step = slice(k, k + TENSOR_CORE_STEP)
        products = x[:, None, step] * weight[None, :, step]
        addends = np.concatenate([products, total[..., None]], axis=-1)
        exponent = np.frexp(np.abs(addends).max(axis=-1, keepdims=True))[1] - 1
        unit = np.ldexp(1.0, exponent - TENSOR_CORE_BITS)
        total = (np.trunc(addends / unit) * unit).sum(axis=-1)
        if in_halves:
            total = _as_half(total)
    return total
