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
"""The MoE block in float64, and how far a right result may be from it.

A worst case carried through two products says nothing: 2^-4 for FP8 times sum |w a| is as large as
the result. Roundings of different elements are independent, so an error has two parts (`Error`):
`bounded`, of any sign, carried with absolute values; and one of mean zero, carried by its
`variance`, which the products multiply by squared weights and add. A rounding is uniform within
half a unit h: variance h^2 / 3, and no larger tail than a normal variable's of that variance. What
is of second order, an error of an error, is left out: it is at most 2^-4 of its own first order.
All is derived, nothing fitted; u = 2^-24 is float32's unit.

1. Activations to FP8: repeated here bit for bit (scale = absmax / 448 and x * (1 / scale) in
   float32), so it adds no error.
2. First product: the kernel's accumulation (`accumulation_error`: drift is bounded, variance is
   variance; MXFP4 folded into FP8 adds `folding_error`), 4 u for scales and bias, then rounding to
   the output type (`OUTPUT_UNIT`).
3. Activation function: Lipschitz constants max |silu'| = 1.0999 and max |gelu'| = 1.1290; gpt-oss's
   gate is silu(1.702 g) / 1.702 after clamping, so silu's constant holds. Its own evaluation in
   float32: 2^-20 (|gate| + |activated gate|) (|up| + 1) covers exp and erf to 8 units. Then
   rounding to the output type. The rotation's adds and its multiplication: log2(block) + 1 units of
   u of what they add.
4. To FP8: half a step is 2^-4 of the power of two below a normal value, or 2^-10 of the scale;
   2^-22 for x * (1 / scale).
5. Second product: as 2. An element of FP8 is in all outputs of its token: their covariance is kept.
6. Routing weights: 2^-20 relative covers exp, the sums and the divisions.
7. Weighted sum: (topk + 1) u sum |w y|, then rounding to the output type.

With C_t the covariance of token t, a right result is within two bounds, either missed by chance
with a probability of about exp(-LAMBDA^2 / 2), 1e-14:

- each element: bounded + LAMBDA sqrt(C_t[o, o]), which a wrong row, column or tile exceeds;
- all of them in the 2-norm: |bounded| + sqrt(sum_t trace C_t) + LAMBDA sqrt(max_t |C_t|), |C_t| the
  largest eigenvalue (D. Hsu, S. Kakade, T. Zhang, "A tail inequality for quadratic forms of
  subgaussian random vectors", 2012, with tr C^2 <= |C| tr C). A mistake that is small everywhere
  exceeds this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf

import numpy as np
from numpy.typing import NDArray

from w4afp8.quant import QuantizedWeight, dequantize
from w4afp8.testing import float8
from w4afp8.testing.compare import (
    FLOAT32_UNIT,
    LAMBDA,
    OUTPUT_UNIT,
    Accumulator,
    accumulation_error,
    assert_within,
    folding_error,
    summation,
)

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MoEWeights:
    """Experts: up_gate ``[E, up_gate, H]``, down ``[E, H, I]``, biases ``[E, ..]``."""

    up_gate: QuantizedWeight
    down: QuantizedWeight
    up_gate_bias: Float64
    down_bias: Float64


@dataclass(frozen=True, eq=False)
class Error:
    """Of each element: one of any sign, at most `bounded`, and one of mean zero."""

    bounded: Float64
    variance: Float64


@dataclass(frozen=True, eq=False)
class Expected:
    """The block's output ``[tokens, H]`` and its error: the variance as covariances of each token's
    elements ``[tokens, H, H]``.
    """

    out: Float64
    bounded: Float64
    covariance: Float64

    def element_bound(self) -> Float64:
        """Largest right distance of each element."""
        variance = np.diagonal(self.covariance, axis1=1, axis2=2)
        return self.bounded + LAMBDA * np.sqrt(variance)

    def norm_bound(self) -> float:
        """Largest right distance of all elements, in the 2-norm."""
        trace = np.trace(self.covariance, axis1=1, axis2=2).sum()
        largest = np.linalg.eigvalsh(self.covariance).max()
        return float(np.linalg.norm(self.bounded) + np.sqrt(trace) + LAMBDA * np.sqrt(largest))

    def assert_matches(self, actual: NDArray[np.float32]) -> None:
        """Raises AssertionError where `actual` is outside either bound."""
        assert_within(actual, self.out, self.element_bound())
        distance, bound = np.linalg.norm(actual - self.out), self.norm_bound()
        assert distance <= bound, f"the 2-norm of the error is {distance:.3g}, bound {bound:.3g}"


@dataclass(frozen=True)
class Routing:
    """What the layer's router was asked for."""

    topk: int
    scoring: str = "softmax"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1


def route_tokens(
    logits: Float64, routing: Routing, correction_bias: Float64 | None = None
) -> tuple[Float64, NDArray[np.int64]]:
    """Weights and experts of each token, both ``[tokens, topk]``."""
    if routing.scoring == "softmax":
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    else:
        scores = 1 / (1 + np.exp(-logits))
    choice = scores if correction_bias is None else scores + correction_bias
    if routing.n_group > 1:
        groups = choice.reshape(len(choice), routing.n_group, -1)
        best = np.sort(groups, axis=2)[:, :, -2:].sum(axis=2)
        kept = np.argsort(-best, axis=1, kind="stable")[:, : routing.topk_group]
        dropped = np.ones(best.shape, bool)
        np.put_along_axis(dropped, kept, False, axis=1)
        choice = np.where(dropped[:, :, None], -np.inf, groups).reshape(choice.shape)
    ids = np.argsort(-choice, axis=1, kind="stable")[:, : routing.topk]
    weights = np.take_along_axis(scores, ids, axis=1)
    if routing.norm_topk_prob:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return weights * routing.routed_scaling_factor, ids


def fp8_rows(x: NDArray[np.float32]) -> Float64:
    """Each row rounded to FP8 with its own scale, as the operators do (1)."""
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(448)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    codes = float8.encode(x * (np.float32(1) / scale))
    return float8.decode(codes) * scale.astype(np.float64)


def product(
    x: Float64,
    weight: QuantizedWeight,
    expert: int,
    bias: Float64,
    dtype: str,
    accumulator: Accumulator,
) -> tuple[Float64, Error]:
    """``x @ weight[expert].T + bias`` and its own error (2, 5), not that of x."""
    values = dequantize(weight)[expert].astype(np.float64)
    out = x @ values.T + bias
    how = summation(weight.weight_format, weight.group_size, dtype)
    accumulation = accumulation_error(x, values, how, accumulator)
    bounded = np.abs(accumulation.drift) + 4 * FLOAT32_UNIT * (np.abs(out) + np.abs(bias))
    if weight.weight_format == "mxfp4":
        bounded += folding_error(x, values, weight.scale[expert].max(axis=1), how, accumulator)
    return out, Error(bounded, accumulation.variance + output_variance(out, dtype))


def output_variance(out: Float64, dtype: str) -> Float64:
    """Of rounding to the output type."""
    relative, least = OUTPUT_UNIT[dtype]
    return np.maximum(relative * np.abs(out), least) ** 2 / 3


def activate(h: Float64, error: Error, activation: str, dtype: str) -> tuple[Float64, Error]:
    """The activation and its error (3)."""
    out, carried = exactly_activated(h, error, activation)
    return out, Error(carried.bounded, carried.variance + output_variance(out, dtype))


def exactly_activated(h: Float64, error: Error, activation: str) -> tuple[Float64, Error]:
    """The activation, not rounded, and its error (3)."""
    if activation == "gelu":
        out = 0.5 * h * (1 + np.vectorize(erf)(h / np.sqrt(2)))
        own = 2.0**-20 * (np.abs(h) + np.abs(out))
        return out, Error(1.1290 * error.bounded + own, 1.1290**2 * error.variance)
    gate, up = np.split(h, 2, axis=1)
    gate_bounded, up_bounded = np.split(error.bounded, 2, axis=1)
    gate_variance, up_variance = np.split(error.variance, 2, axis=1)
    if activation == "swiglu_oai":
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7) + 1
        gated = gate / (1 + np.exp(-1.702 * gate))
    else:
        gated = gate / (1 + np.exp(-gate))
    own = 2.0**-20 * (np.abs(gate) + np.abs(gated)) * (np.abs(up) + 1)
    carried = 1.0999 * gate_bounded * np.abs(up) + np.abs(gated) * up_bounded
    variance = 1.0999**2 * gate_variance * up**2 + gated**2 * up_variance
    return gated * up, Error(carried + own, variance)


def rotation_of(features: int, block_size: int) -> Float64:
    """Orthonormal Walsh-Hadamard in blocks ``[features, features]``; -1: the identity."""
    block = np.ones((1, 1))
    while len(block) < block_size:
        block = np.block([[block, block], [block, -block]]) / np.sqrt(2)
    return np.kron(np.eye(features // len(block)), block)


def rotate(a: Float64, error: Error, rotation: Float64) -> tuple[Float64, Error]:
    """`a` rotated, and what is bounded of its error (3); the variance is carried by `reference`."""
    entries = np.count_nonzero(rotation[0])
    adds = np.log2(entries) + 1 if entries > 1 else 0
    bounded = (error.bounded + adds * FLOAT32_UNIT * np.abs(a)) @ np.abs(rotation)
    return a @ rotation, Error(bounded, np.zeros(a.shape))


def to_fp8(a: Float64, error: Error) -> Error:
    """Error of `a` after rounding to FP8 (4)."""
    magnitude = np.abs(a)
    scale = np.maximum(magnitude.max(axis=1, keepdims=True) / 448, np.finfo(np.float32).tiny)
    exponent = np.frexp(magnitude / scale)[1] - 1
    half_step = scale * np.exp2(np.maximum(exponent, -6) - 4)
    return Error(error.bounded + 2.0**-22 * magnitude, error.variance + half_step**2 / 3)


def reference(
    x: NDArray[np.float32],
    weights: MoEWeights,
    topk_weights: Float64,
    topk_ids: NDArray[np.int64],
    *,
    activation: str,
    dtype: str,
    accumulator: Accumulator,
    hadamard_block_size: int = -1,
    shared_output: Float64 | None = None,
) -> Expected:
    """The block's output and its error."""
    rotation = rotation_of(dequantize(weights.down).shape[2], hadamard_block_size)
    quantized = fp8_rows(x)
    tokens, hidden = x.shape
    out, bounded, magnitude = (np.zeros(x.shape) for _ in range(3))
    covariance = np.zeros((tokens, hidden, hidden))
    diagonal = np.arange(hidden)
    for expert, down in enumerate(dequantize(weights.down).astype(np.float64)):
        token, slot = np.nonzero(topk_ids == expert)
        kernel = (dtype, accumulator)
        bias = weights.up_gate_bias[expert]
        h, error = product(quantized[token], weights.up_gate, expert, bias, *kernel)
        a, gated_error = activate(h, error, activation, dtype)
        a, error = rotate(a, gated_error, rotation)
        a_error = to_fp8(a, error)
        y, y_error = product(a, weights.down, expert, weights.down_bias[expert], *kernel)

        weight = topk_weights[token, slot][:, None]
        out[token] += weight * y
        magnitude[token] += weight * np.abs(y)
        bounded[token] += weight * (y_error.bounded + a_error.bounded @ np.abs(down).T)
        unrotated = down @ rotation  # which is symmetric
        for matrix, variance in ((down, a_error.variance), (unrotated, gated_error.variance)):
            covariance[token] += weight[..., None] ** 2 * ((matrix * variance[:, None]) @ matrix.T)
        covariance[token[:, None], diagonal, diagonal] += weight**2 * y_error.variance
    bounded += (2.0**-20 + (topk_ids.shape[1] + 1) * FLOAT32_UNIT) * magnitude
    if shared_output is not None:
        out += shared_output
        bounded += FLOAT32_UNIT * np.abs(out)
    covariance[:, diagonal, diagonal] += output_variance(out, dtype)
    return Expected(out, bounded, covariance)
