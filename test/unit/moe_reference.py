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

The layer rounds in seven places. Each is bounded here and carried through what follows; all bounds
are derived, none is fitted. u = 2^-24 is float32's unit.

1. Activations to FP8: repeated here bit for bit (scale = absmax / 448 and x * (1 / scale) in
   float32), so it adds no error.
2. First product: the kernel's accumulation (`accumulation_error`; MXFP4 folded into FP8 adds
   `weight_error` times the channel's largest scale for each weight), 4 u for scales and bias, then
   rounding to the output type (`OUTPUT_UNIT`).
3. Activation function: Lipschitz constants max |silu'| = 1.0999 and max |gelu'| = 1.1290; gpt-oss's
   gate is silu(1.702 g) / 1.702 after clamping, so silu's constant holds. Its own evaluation in
   float32: 2^-20 (|gate| + |activated gate|) (|up| + 1) covers exp and erf to 8 units.
4. To FP8: half a step, 2^-4 of a normal value or 2^-10 of the scale; 2^-22 for x * (1 / scale).
5. Second product: as 2.
6. Routing weights: 2^-20 relative covers exp, the sums and the divisions.
7. Weighted sum: (topk + 1) u sum |w y|, then rounding to the output type.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf

import numpy as np
from numpy.typing import NDArray

from w4afp8.quant import QuantizedWeight, dequantize
from w4afp8.testing import float8
from w4afp8.testing.compare import FLOAT32_UNIT, OUTPUT_UNIT, Accumulator, accumulation_error

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MoEWeights:
    """Experts: up_gate ``[E, up_gate, H]``, down ``[E, H, I]``, biases ``[E, ..]``."""

    up_gate: QuantizedWeight
    down: QuantizedWeight
    up_gate_bias: Float64
    down_bias: Float64


@dataclass(frozen=True)
class Routing:
    """What the layer's router was asked for."""

    topk: int
    scoring: str = "softmax"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0


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
    x_error: Float64,
    weight: QuantizedWeight,
    expert: int,
    bias: Float64,
    dtype: str,
    accumulator: Accumulator,
) -> tuple[Float64, Float64]:
    """``x @ weight[expert].T + bias`` and its error (2, 5)."""
    values = dequantize(weight)[expert].astype(np.float64)
    out = x @ values.T + bias
    group = (
        None if weight.weight_format == "mxfp4" or weight.group_size == -1 else weight.group_size
    )
    error = x_error @ np.abs(values).T
    error += accumulation_error(np.abs(x) + x_error, np.abs(values), group, accumulator)
    if weight.weight_format == "mxfp4":
        largest = np.exp2(weight.scale[expert].max(axis=1).astype(np.float64) - 127)
        error += accumulator.weight_error * np.abs(x).sum(axis=1)[:, None] * largest
    error += 4 * FLOAT32_UNIT * (np.abs(out) + error + np.abs(bias))
    return out, error + output_error(np.abs(out) + error, dtype)


def output_error(magnitude: Float64, dtype: str) -> Float64:
    """Half a unit in the last place."""
    relative, least = OUTPUT_UNIT[dtype]
    return np.maximum(relative * magnitude, least)


def activate(h: Float64, error: Float64, activation: str) -> tuple[Float64, Float64]:
    """The activation and its error (3)."""
    if activation == "gelu":
        out = 0.5 * h * (1 + np.vectorize(erf)(h / np.sqrt(2)))
        return out, 1.1290 * error + 2.0**-20 * (np.abs(h) + np.abs(out))
    gate, up = np.split(h, 2, axis=1)
    gate_error, up_error = np.split(error, 2, axis=1)
    if activation == "swiglu_oai":
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7) + 1
        gated = gate / (1 + np.exp(-1.702 * gate))
    else:
        gated = gate / (1 + np.exp(-gate))
    own = 2.0**-20 * (np.abs(gate) + np.abs(gated)) * (np.abs(up) + 1)
    carried = 1.0999 * gate_error * (np.abs(up) + up_error) + np.abs(gated) * up_error
    return gated * up, carried + own


def fp8_error(a: Float64, error: Float64) -> Float64:
    """Error of `a` after rounding to FP8 (4)."""
    largest = np.abs(a) + error
    scale = largest.max(axis=1, keepdims=True) / 448
    return error + (2.0**-4 + 2.0**-22) * largest + 2.0**-10 * scale


def reference(
    x: NDArray[np.float32],
    weights: MoEWeights,
    topk_weights: Float64,
    topk_ids: NDArray[np.int64],
    *,
    activation: str,
    dtype: str,
    accumulator: Accumulator,
) -> tuple[Float64, Float64]:
    """The block's output ``[tokens, H]`` and the largest right distance from it."""
    quantized = fp8_rows(x)
    out = np.zeros(x.shape)
    error = np.zeros(x.shape)
    magnitude = np.zeros(x.shape)
    topk = topk_ids.shape[1]
    for expert in range(weights.down.experts):
        token, slot = np.nonzero(topk_ids == expert)
        rows = quantized[token]
        h, h_error = product(
            rows,
            0 * rows,
            weights.up_gate,
            expert,
            weights.up_gate_bias[expert],
            dtype,
            accumulator,
        )
        a, a_error = activate(h, h_error, activation)
        a_error = fp8_error(a, a_error)
        y, y_error = product(
            a, a_error, weights.down, expert, weights.down_bias[expert], dtype, accumulator
        )
        weight = topk_weights[token, slot][:, None]
        out[token] += weight * y
        magnitude[token] += weight * (np.abs(y) + y_error)
        error[token] += weight * y_error
    error += (2.0**-20 + (topk + 1) * FLOAT32_UNIT) * magnitude
    return out, error + output_error(np.abs(out) + error, dtype)
