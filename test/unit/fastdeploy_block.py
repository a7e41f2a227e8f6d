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
"""An MoE block as FastDeploy's operators take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from fastdeploy_flow import converted, operator_scale
from moe_reference import (
    Error,
    Expected,
    Float64,
    MoEWeights,
    activate,
    output_variance,
    product,
    rotate,
    rotation_of,
)

from w4afp8.quant import QuantizedWeight, dequantize
from w4afp8.testing import float8
from w4afp8.testing.compare import FLOAT32_UNIT, Accumulator
from w4afp8.testing.tensors import float_tensor

EXPERTS, TOPK = 4, 2


@dataclass(frozen=True)
class Case:
    """A block and its tokens. `unit`: what a static FP8 1 of expert 0 stands for; None dynamic."""

    tokens: int = 9
    hidden: int = 128
    intermediate: int = 128
    group_size: int = -1
    activation: str = "swiglu"
    unit: float | None = None
    has_correction_bias: bool = False
    hadamard_block_size: int = -1
    dtype: str = "bfloat16"

    def weight(self, rng: np.random.Generator, out: int, features: int) -> QuantizedWeight:
        codes = rng.integers(0, 256, (EXPERTS, out, features // 2), dtype=np.uint8)
        groups = () if self.group_size == -1 else (features // self.group_size,)
        # About as large as makes outputs of the size of inputs: codes are near 5, 440 * 36 / 5 is
        # 2^11.6 times 2^-19 / sqrt(128) near 1.
        numbers = rng.integers(24, 48, (EXPERTS, out, *groups)) * 440.0 * 2.0**-19
        return QuantizedWeight(codes, numbers.astype(np.float32), "int4", self.group_size)

    def weights(self) -> MoEWeights:
        rng = np.random.default_rng(0)
        up_gate = self.weight(rng, 2 * self.intermediate, self.hidden)
        down = self.weight(rng, self.hidden, self.intermediate)
        return MoEWeights(up_gate, down, np.zeros((EXPERTS, 1)), np.zeros((EXPERTS, 1)))

    def units(self) -> Float64:
        """Of each expert: they must not be taken for one another."""
        assert self.unit is not None
        return self.unit * np.exp2(np.arange(EXPERTS) % 3)

    def operand_scale(self, weight: QuantizedWeight, place: Any) -> paddle.Tensor:
        folded = np.full(EXPERTS, 1 / 440) if self.unit is None else self.units()
        folded = folded.reshape(-1, *[1] * (weight.scale.ndim - 1))
        return operator_scale((weight.scale * folded).astype(np.float32), place)


def interleaved(weight: QuantizedWeight) -> QuantizedWeight:
    """Gate and up in turns along the outputs, as FastDeploy has them for "swigluoai"."""
    out = weight.codes.shape[1]
    order = np.arange(out).reshape(2, -1).T.ravel()
    scale = np.ascontiguousarray(weight.scale[:, order])
    codes = np.ascontiguousarray(weight.codes[:, order])
    return QuantizedWeight(codes, scale, "int4", weight.group_size)


def in_scale(case: Case, place: Any) -> paddle.Tensor | None:
    if case.unit is None:
        return None
    return float_tensor(1 / (448 * case.units()), "float32", place)


def expert_operands(case: Case, weights: MoEWeights, place: Any) -> tuple[Any, ...]:
    """The four tensors of weights: bytes and scales of both projections."""
    up_gate = interleaved(weights.up_gate) if "oai" in case.activation else weights.up_gate
    stored = [converted(w, "int8", place) for w in (up_gate, weights.down)]
    return *stored, *(case.operand_scale(w, place) for w in (up_gate, weights.down))


def static_fp8(x: Float64, unit: float) -> Float64:
    """FP8 values times what they stand for; in_scale and its products are rounded in float32."""
    multiplier = np.float32(1 / (448 * unit)) * np.float32(448)
    return float8.decode(float8.encode(x.astype(np.float32) * multiplier)) * unit


def static_error(a: Float64, error: Error, unit: float) -> Error:
    """Of the activation after rounding to FP8's steps of `unit`.

    Half a step is 2^-4 of the power of two below, or 2^-10 of the unit. The multiplier is off by
    less than 2^-22.
    """
    exponent = np.frexp(a / unit)[1] - 1
    half_step = unit * np.exp2(np.maximum(exponent, -6) - 4)
    return Error(error.bounded + 2.0**-22 * np.abs(a), error.variance + half_step**2 / 3)


def static_reference(
    case: Case, x: Any, topk_weights: Float64, topk_ids: Any, accumulator: Accumulator
) -> Expected:
    """As moe_reference.reference, with one step of FP8 for all of an expert's tokens."""
    weights, activation = case.weights(), case.activation.replace("swigluoai", "swiglu_oai")
    out, bounded, magnitude = (np.zeros(x.shape) for _ in range(3))
    covariance = np.zeros((*x.shape, x.shape[1]))
    diagonal = np.arange(x.shape[1])
    kernel = (case.dtype, accumulator)
    rotation = rotation_of(case.intermediate, case.hadamard_block_size)
    for expert, down in enumerate(dequantize(weights.down).astype(np.float64)):
        token, slot = np.nonzero(topk_ids == expert)
        unit = case.units()[expert]
        x_rows = static_fp8(x[token], unit)
        h, error = product(x_rows, weights.up_gate, expert, np.zeros(1), *kernel)
        a, gated_error = activate(h, error, activation, case.dtype)
        a, error = rotate(a, gated_error, rotation)
        assert np.abs(a).max(initial=0) < 440 * unit, "the case must not saturate"
        a_error = static_error(a, error, unit)
        y, y_error = product(a, weights.down, expert, np.zeros(1), *kernel)
        weight = topk_weights[token, slot][:, None]
        out[token] += weight * y
        magnitude[token] += weight * np.abs(y)
        bounded[token] += weight * (y_error.bounded + a_error.bounded @ np.abs(down).T)
        unrotated = down @ rotation  # which is symmetric
        for matrix, variance in ((down, a_error.variance), (unrotated, gated_error.variance)):
            covariance[token] += weight[..., None] ** 2 * ((matrix * variance[:, None]) @ matrix.T)
        covariance[token[:, None], diagonal, diagonal] += weight**2 * y_error.variance
    bounded += (2.0**-20 + (TOPK + 1) * FLOAT32_UNIT) * magnitude
    covariance[:, diagonal, diagonal] += output_variance(out, case.dtype)
    return Expected(out, bounded, covariance)
