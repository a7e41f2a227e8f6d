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
"""How far a right result may be from the float64 reference, and why.

A grouped GEMM's result differs from the float64 product of the same dequantised operands by

1. **The accumulation**, `accumulation_error`. Worst-case bounds grow with in_features and would
   hide real faults; these are probabilistic (N. Higham, T. Mary, "A new approach to probabilistic
   rounding error analysis", 2019): rounding errors are taken as independent around a mean that is
   known, so that their variances add, and an element exceeds LAMBDA standard deviations with a
   chance of 2 exp(-LAMBDA^2 / 2), 3e-14 for 8. |error| <= |drift| + LAMBDA sqrt(variance).

   *float32*: n additions, each rounding by at most u = 2^-24 of a partial sum, and a partial sum is
   at most S = sum |x w|: no drift, variance (n + 2) u^2 S^2, the 2 for dequantising the weight and
   for promoting a group.

   *Hopper's FP8 tensor cores*: each wgmma step aligns its 32 products and the accumulator to the
   largest of them and keeps 13 fraction bits, the rest is cut off. With M the largest magnitude of
   a step (a product, or the accumulator before or after), the cut unit is L = 2^-13 * 2^floor(log2
   M) <= 2^-13 M. A cut loses a part of L, L / 2 on average, towards zero, so a step drifts by
   -L / 2 * sum(sign of the addends), and each addend spreads around that by at most L / 2: variance
   33 (L / 2)^2. The drift is what all-positive data shows; an addend that is a multiple of L loses
   nothing, which the variance covers. The kernel adds such sums up elsewhere, every 128
   in_features, int4 with shorter groups after every group, and the accumulator starts anew:

   *In float32*: the parts' drifts and variances add up, and float32's.

   *In halves*: the accumulator is rounded to half precision after each step, by at most u = 2^-11
   of it. The sum of 128 is multiplied by its group's scale, rounded to half precision too, and
   added to the others with one rounding of the new sum: u^2 (sum of 128)^2 and u^2 (new sum)^2 of
   variance. What is too small for halves, 2^-25 of units near the largest product, does not show
   beside that.

   *Carried*: float16's sums stay in the accumulator for longer (`CARRIED_EVERY`). Then the E5M2
   number next to the sum, three significant bits, is carried elsewhere, which leaves 1/8 of all so
   far in the accumulator at most; the next steps begin with that. (More is left beyond E5M2's
   range: of int4's codes times FP8 values, sums above 57344 * 256.)

   *Folded MXFP4*: the kernel rounds a weight that is far below the channel's largest group to the
   E5M2 grid. `folding_error` repeats that, bit for bit.

2. **The epilogue**: scales, bias and rounding in float32, at most four roundings: 4 u |value|.

3. **The output**: half a unit in the last place of bfloat16 (2^-8 of the value, or 2^-134) or
   float16 (2^-11, or 2^-25 among subnormals).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from w4afp8.quant.quantize import dequantize
from w4afp8.testing import float8
from w4afp8.testing.gemm_inputs import GemmInputs, row_scales

LAMBDA = 8.0
FLOAT32_UNIT = 2.0**-24
TENSOR_CORE_BITS = 13
TENSOR_CORE_STEP = 32  # in_features of one wgmma
HALF_UNIT = 2.0**-11
K_BLOCK = 128
CARRIED_EVERY = {"int4": 22 * 128, "mxfp4": 13 * 128}  # in_features
CARRIED_REST = 2.0**-3  # what carrying leaves of a sum, at most
E5M2_GRID = 16  # binades from 1 to its smallest number
# Half a unit in the last place: of the value, and at least.
OUTPUT_UNIT = {"bfloat16": (2.0**-8, 2.0**-134), "float16": (2.0**-11, 2.0**-25)}

Float64 = NDArray[np.float64]
# An int: in float32, after every so many in_features; above K_BLOCK carried.
Summation = Literal["halves"] | int


@dataclass(frozen=True)
class Accumulator:
    """How a kernel sums."""

    is_tensor_core: bool


CPU_ACCUMULATOR = Accumulator(is_tensor_core=False)
HOPPER_ACCUMULATOR = Accumulator(is_tensor_core=True)


@dataclass(frozen=True, eq=False)
class AccumulationError:
    """The mean of each element's error, and the variance around it, ``[rows, out]`` both."""

    drift: Float64
    variance: Float64

    def bound(self) -> Float64:
        """Largest right distance of each element."""
        return np.abs(self.drift) + LAMBDA * np.sqrt(self.variance)


def gemm_bound(
    inputs: GemmInputs,
    reference: Float64,
    out_dtype: str,
    accumulator: Accumulator,
    accumulation: str = "default",
) -> Float64:
    """Largest right distance of each element from `reference`, ``[num_rows, out_features]``."""
    p = inputs.problem
    how = summation(p.weight_format, p.group_size, out_dtype, accumulation)
    weight = dequantize(inputs.weight).astype(np.float64)
    error = np.zeros_like(reference)
    for expert in range(p.experts):
        rows = p.rows_of(expert)
        x = float8.decode(inputs.x[rows])
        error[rows] = accumulation_error(x, weight[expert], how, accumulator).bound()
        if p.weight_format == "mxfp4":
            largest = inputs.weight.scale[expert].max(axis=1)
            error[rows] += folding_error(x, weight[expert], largest, how, accumulator)
    error *= row_scales(inputs)[:, None]
    bias = 0.0 if inputs.bias is None else np.abs(inputs.bias).max()
    error += 4 * FLOAT32_UNIT * (np.abs(reference) + bias)
    relative, least = OUTPUT_UNIT[out_dtype]
    return error + np.maximum(relative * (np.abs(reference) + error), least)


def summation(
    weight_format: str, group_size: int, out_dtype: str, accumulation: str = "default"
) -> Summation:
    """How the GPU kernel sums products; `accumulation`: see `w4afp8.ops.group_gemm`."""
    if weight_format == "int4" and group_size in (32, 64):
        return group_size
    if accumulation == "default":
        if out_dtype == "float16" and (weight_format == "mxfp4" or group_size == -1):
            return CARRIED_EVERY[weight_format]
        accumulation = "half" if out_dtype == "bfloat16" else "float32"
    return "halves" if accumulation == "half" else K_BLOCK


def accumulation_error(
    x: Float64, weight: Float64, how: Summation, accumulator: Accumulator
) -> AccumulationError:
    """Part 1 of the module's bound for ``x [rows, n] @ weight [out, n].T``.

    `how`: see `summation`; the CPU kernel has one way.
    """
    n = x.shape[1]
    magnitudes = np.abs(x) @ np.abs(weight).T
    float32 = AccumulationError(0 * magnitudes, (n + 2) * (FLOAT32_UNIT * magnitudes) ** 2)
    if not accumulator.is_tensor_core:
        return float32
    if how == "halves":
        return _halves_error(x, weight)
    parts, total = [], np.zeros_like(magnitudes)
    for k in range(0, n, how):
        x_part, w_part = x[:, k : k + how], weight[:, k : k + how]
        rest = CARRIED_REST * total if how > K_BLOCK else np.zeros_like(total)
        parts.append(_tensor_core_error(x_part, w_part, before=rest))
        total += x_part @ w_part.T
    return AccumulationError(
        sum((part.drift for part in parts), float32.drift),
        sum((part.variance for part in parts), float32.variance),
    )


def _halves_error(x: Float64, weight: Float64) -> AccumulationError:
    drift = np.zeros((x.shape[0], weight.shape[0]))
    variance, total = np.zeros_like(drift), np.zeros_like(drift)
    for k in range(0, x.shape[1], K_BLOCK):
        x_block, w_block = x[:, k : k + K_BLOCK], weight[:, k : k + K_BLOCK]
        block = _tensor_core_error(
            x_block, w_block, before=np.zeros_like(total), rounding=HALF_UNIT
        )
        part = x_block @ w_block.T
        total += part
        drift += block.drift
        variance += block.variance + HALF_UNIT**2 * (part**2 + total**2)
    return AccumulationError(drift, variance)


def _tensor_core_error(
    x: Float64, weight: Float64, *, before: Float64, rounding: float = 0.0
) -> AccumulationError:
    """`before`: what the accumulator holds; `rounding`: of it after each step, in terms of it."""
    steps = x.shape[1] // TENSOR_CORE_STEP
    x_steps = x.reshape(-1, steps, TENSOR_CORE_STEP).transpose(1, 0, 2)
    w_steps = weight.reshape(-1, steps, TENSOR_CORE_STEP).transpose(1, 2, 0)
    drift = np.zeros((x.shape[0], weight.shape[0]))
    variance = np.zeros_like(drift)
    for x_step, w_step in zip(x_steps, w_steps, strict=True):
        after = before + x_step @ w_step
        product = np.abs(x_step).max(axis=1)[:, None] * np.abs(w_step).max(axis=0)
        largest = np.maximum(np.maximum(np.abs(before), np.abs(after)), product)
        half_unit = largest * 2.0 ** -(TENSOR_CORE_BITS + 1)
        drift -= half_unit * (np.sign(x_step) @ np.sign(w_step) + np.sign(before))
        variance += (TENSOR_CORE_STEP + 1) * half_unit**2 + (rounding * after) ** 2
        before = after
    return AccumulationError(drift, variance)


def folded(weight: Float64, largest: NDArray[np.uint8], how: Summation) -> Float64:
    """MXFP4 weights ``[out, n]`` as the kernel multiplies with them: E5M2 numbers.

    `largest`: E8M0 byte of each output's largest group, 2^-3 in halves and 2^12 in float32.
    """
    top = -3 if how == "halves" else 12
    unit = np.exp2(largest.astype(np.float64) - 127 - top - E5M2_GRID)[:, None]
    # E2M1 has two significant bits: above the grid of the subnormal numbers all are E5M2's.
    return np.round(weight / unit) * unit


def folding_error(
    x: Float64,
    weight: Float64,
    largest: NDArray[np.uint8],
    how: Summation,
    accumulator: Accumulator,
) -> Float64:
    """What rounding folded weights costs, ``[rows, out]``; see `folded`."""
    if not accumulator.is_tensor_core:
        return np.zeros((len(x), len(weight)))
    return np.abs(x) @ np.abs(folded(weight, largest, how) - weight).T


def assert_within(actual: NDArray[Any], expected: Float64, bound: Float64, what: str = "") -> None:
    """Raises AssertionError where an element is further than its bound, or NaN differs."""
    actual = actual.astype(np.float64)
    wrong = np.isnan(actual) != np.isnan(expected)
    wrong |= np.abs(actual - expected) > bound
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.size} elements are outside the bound, first at "
            f"{place}: {actual[place]} for {expected[place]} +- {bound[place]:.3g}"
        )


def assert_bits_equal(actual: NDArray[Any], expected: NDArray[Any], what: str = "") -> None:
    """Raises AssertionError where two arrays of bits differ."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {actual.shape}, expected {expected.shape}")
    wrong = actual != expected
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.size} bit patterns differ, first at {place}: "
            f"{int(actual[place]):#x} for {int(expected[place]):#x}"
        )
