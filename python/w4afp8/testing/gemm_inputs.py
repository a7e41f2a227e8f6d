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
"""Seeded inputs of the grouped GEMM, and the reference made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from w4afp8.quant.codes import join_nibbles
from w4afp8.quant.quantize import dequantize, quantize
from w4afp8.quant.weights import QuantizedWeight, ScaleDtype, WeightFormat
from w4afp8.testing import float8

ActivationScale = Literal["none", "tensor", "token"]
NAN_BYTE = 0x7F  # of float8_e4m3fn: what rows without a token are filled with

# Counts, out_features and in_features of which some tiles are in two parts on 132 multiprocessors
# (test_tile_plan.py): of 215 medium tiles, some one sub-block high, and of 136, whose last parts
# are taken soon after the first ones.
IN_PARTS = (
    ((300, 20, 130, 64, 1, 0, 257, 150) * 3 + (100, 90, 80, 70), 1088, 2080),
    ((300, 20, 130, 64, 1, 0, 257, 150) * 2 + (100,) * 8, 1024, 2048),
)
# The same of large tiles: of 70 of all widths, whose narrow ones have last parts that begin at even
# and at odd k blocks; of 96, of which narrow ones come before last parts; of 108 equal ones, that
# would leave some of the time idle. Some blocks have one sub-block (1216) or none (1408). They are
# large with LARGE_HINT.
LARGE_IN_PARTS = (
    ((480, 20, 513, 64, 0, 257, 300, 700), 1216, 4640),
    ((700, 700) + (20,) * 10, 1408, 4096),
    ((768,) * 6, 1408, 4096),
)
LARGE_HINT = 4096  # tokens: without a gate tiles are large wherever they fit (tile_choice.h)
# The same of which decode tiles are helped, of one sub-block: the last ones of three waves and a
# third, and all of less than one.
HELPED = (
    ((1, 3, 0, 2) * 27 + (40, 1, 2, 16), 1088, 1152),
    ((2, 0, 1) * 6, 1088, 4224),
)
EXACT_SPREAD = 2  # binades between the scales that an exact channel's products meet in one sum


@dataclass(frozen=True)
class GemmProblem:
    """What a grouped GEMM is asked to do.

    `counts` are the tokens of each expert. `token_padding` 0: rows of x follow each other;
    `spare_rows` rows behind the last token belong to no expert.
    """

    counts: Sequence[int]
    out_features: int
    in_features: int
    weight_format: WeightFormat = "int4"
    group_size: int = -1
    scale_dtype: ScaleDtype = "float32"
    token_padding: int = 0
    spare_rows: int = 0
    x_scale: ActivationScale = "none"
    has_bias: bool = False

    @property
    def experts(self) -> int:
        return len(self.counts)

    @property
    def num_rows(self) -> int:
        if self.token_padding:
            return self.experts * self.token_padding
        return int(sum(self.counts)) + self.spare_rows

    def rows_of(self, expert: int) -> slice:
        """Rows of x, seen as ``[num_rows, in_features]``, that hold the expert's tokens."""
        begin = expert * self.token_padding if self.token_padding else sum(self.counts[:expert])
        return slice(begin, begin + self.counts[expert])

    def tokens(self, *, leading_zero: bool = True) -> NDArray[np.int64]:
        """The `tokens` operand: counts, or prefix sums in either form."""
        if self.token_padding:
            return np.array(self.counts, np.int64)
        sums = np.cumsum(self.counts, dtype=np.int64)
        return np.concatenate([[0], sums]).astype(np.int64) if leading_zero else sums


@dataclass(frozen=True, eq=False)
class GemmInputs:
    """Operands on the host. Rows of x without a token are NaN."""

    problem: GemmProblem
    x: NDArray[np.uint8]  # float8_e4m3fn [num_rows, in_features]
    weight: QuantizedWeight
    x_scale: NDArray[np.float32] | None  # [1] or [num_rows]
    bias: NDArray[np.float32] | None  # [experts, out_features], exact in bfloat16 and float16


def exact_inputs(problem: GemmProblem, seed: int = 0) -> GemmInputs:
    """Small integers and powers of two: every partial sum is a number of the accumulator's, so that
    any order of summation gives the same bits. All 16 codes occur.
    """
    rng = np.random.default_rng(seed)
    p = problem
    shape = (p.experts, p.out_features, p.in_features)
    codes = rng.integers(0, 16, shape, dtype=np.uint8)
    weight = QuantizedWeight(
        codes=join_nibbles(codes),
        scale=_exact_scale(p, rng),
        weight_format=p.weight_format,
        group_size=p.group_size,
        scale_dtype=p.scale_dtype,
    )
    x = rng.choice([-1.0, 1.0], (p.num_rows, p.in_features))
    nonzeros = _exact_nonzeros(p)
    if p.in_features > nonzeros:  # exactly that many, at random places
        order = rng.random(x.shape).argsort(axis=1)
        x[order >= nonzeros] = 0.0
    return _assemble(p, x, weight, 2.0 ** rng.integers(-3, 3, p.num_rows), rng)


def random_inputs(problem: GemmProblem, seed: int = 0) -> GemmInputs:
    """Normal activations and weights, quantised as a user would; every expert another size."""
    rng = np.random.default_rng(seed)
    p = problem
    shape = (p.experts, p.out_features, p.in_features)
    size = np.exp2(rng.uniform(-6, -4, (p.experts, p.out_features, 1)))
    weight = quantize(
        (rng.standard_normal(shape, np.float32) * size).astype(np.float32),
        weight_format=p.weight_format,
        group_size=p.group_size,
        rounding="absmax/7.5" if p.weight_format == "int4" else "absmax/7",
        scale_dtype=p.scale_dtype,
    )
    x = rng.standard_normal((p.num_rows, p.in_features), np.float32) * 16
    return _assemble(p, x, weight, rng.uniform(0.005, 0.02, p.num_rows), rng)


def _exact_nonzeros(p: GemmProblem) -> int:
    """Activations other than zero, so few that the accumulator holds every partial sum.

    The magnitudes of all products of one output sum up to 2^11 units of the finest one at most, so
    that halves hold them (compare.py); groups that float32 adds up to 2^13, the tensor cores' own.
    """
    if p.weight_format == "mxfp4":
        return 42  # products of 1 * 6, the finest unit 0.5 * 2^-2
    if p.group_size == -1:
        return 256  # 1 * 8
    return 64 if p.group_size % 128 == 0 else 512  # 1 * 8 * 2^2; 1 * 8 within a group


def _exact_scale(p: GemmProblem, rng: np.random.Generator) -> NDArray[Any]:
    channels = (p.experts, p.out_features, 1)
    if p.weight_format == "mxfp4":
        groups = (p.experts, p.out_features, p.in_features // 32)
        relative = rng.integers(-EXACT_SPREAD, 1, groups)
        return (127 + rng.integers(-4, 3, channels) + relative).astype(np.uint8)
    if p.group_size == -1:
        return np.exp2(rng.integers(-4, 3, channels[:2])).astype(np.float32)
    groups = (p.experts, p.out_features, p.in_features // p.group_size)
    if p.group_size % 128 == 0:
        relative = rng.integers(-EXACT_SPREAD, 1, groups)
        return np.exp2(rng.integers(-4, 3, channels) + relative).astype(np.float32)
    return np.exp2(rng.integers(-4, 3, groups)).astype(np.float32)


def _assemble(
    p: GemmProblem,
    x: NDArray[Any],
    weight: QuantizedWeight,
    row_scale: NDArray[Any],
    rng: np.random.Generator,
) -> GemmInputs:
    bits = np.full((p.num_rows, p.in_features), NAN_BYTE, np.uint8)
    scale: NDArray[np.float32] = np.full(p.num_rows, np.nan, np.float32)
    for expert in range(p.experts):
        rows = p.rows_of(expert)
        bits[rows] = float8.encode(x[rows])
        scale[rows] = row_scale[rows]
    bias = rng.integers(-32, 33, (p.experts, p.out_features)).astype(np.float32) * np.float32(0.25)
    if p.x_scale == "tensor":
        scale = np.full(1, 0.25, np.float32)
    x_scale = None if p.x_scale == "none" else scale
    return GemmInputs(p, bits, weight, x_scale, bias if p.has_bias else None)


def reference(inputs: GemmInputs) -> NDArray[np.float64]:
    """float64 product of the dequantised operands ``[num_rows, out_features]``; rows without a
    token are NaN.
    """
    p = inputs.problem
    weight = dequantize(inputs.weight).astype(np.float64)
    out = np.full((p.num_rows, p.out_features), np.nan)
    for expert in range(p.experts):
        rows = p.rows_of(expert)
        out[rows] = float8.decode(inputs.x[rows]) @ weight[expert].T
        out[rows] *= row_scales(inputs)[rows, None]
        if inputs.bias is not None:
            out[rows] += inputs.bias[expert]
    return out


def row_scales(inputs: GemmInputs) -> NDArray[np.float64]:
    """The activation's scale of each row, 1 where there is none."""
    if inputs.x_scale is None:
        return np.ones(inputs.problem.num_rows)
    return np.broadcast_to(inputs.x_scale.astype(np.float64), inputs.problem.num_rows)
