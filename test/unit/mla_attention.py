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
"""One step of multi-head latent attention in float64, and how far the absorbed form may be off.

Unabsorbed, keys and values are expanded from the latent cache c [cached, lora]:

    scores = (q_nope . (c W_K^T) + q_rotary . k_rotary) / sqrt(nope + rotary)
    out = softmax(scores) . (c W_V^T)

Absorbed, the same is ``((q_nope W_K) . c + ..)`` and ``(softmax(scores) . c) W_V^T``. In exact
arithmetic both are equal. Three roundings differ. As in `w4afp8.testing.compare`, rounding errors
are taken as independent with mean 0; then by Hoeffding's inequality a sum of errors within +-h_i is
beyond LAMBDA sqrt(sum h_i^2) with a chance of 3e-14.

1. ``q_latent = q_nope W_K`` is off by up to h (`w4afp8.testing.mla.up_bound`) in each feature, so a
   score by ``d = c . e / sqrt(nope + rotary)``, at most D. A probability becomes
   ``p exp(d) / sum(p exp(d))``; to first order it changes by ``p (d - mean of d under p)``, so what
   is attended to by ``Cov_p(c) e / sqrt(..)``, and the output by W_V times that. The rest of the
   change of a probability is within ``(exp(2 D) - 1 - 2 D + D^2 / 2) p``: the exponent is at most
   2 D, and ``log sum(p exp(d))`` lies within D^2 / 2 above the mean of d (Hoeffding's lemma).
2. What is attended to is rounded to the activations' type: half a unit of each feature.
3. The product with W_V has its own bound.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from w4afp8.quant import QuantizedWeight
from w4afp8.testing.compare import LAMBDA, OUTPUT_UNIT, Accumulator
from w4afp8.testing.mla import MLAProblem, reference, up_bound, up_weights
from w4afp8.testing.tensors import bits_of, values_of

ROTARY = 64

Float64 = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Queries of some tokens, and the cache of others."""

    q_nope: Float64  # [tokens, heads, nope], of the activations' type
    q_rotary: Float64  # [tokens, heads, ROTARY]
    cache: Float64  # [cached, lora]
    k_rotary: Float64  # [cached, ROTARY]

    def scale(self) -> float:
        return float(1 / np.sqrt(self.q_nope.shape[2] + ROTARY))

    def rotary_scores(self) -> Float64:
        return np.einsum("thr,sr->ths", self.q_rotary, self.k_rotary)

    def softmax(self, scores: Float64) -> Float64:
        shifted = np.exp((scores - scores.max(axis=-1, keepdims=True)) * self.scale())
        return shifted / shifted.sum(axis=-1, keepdims=True)


def inputs_of(p: MLAProblem, dtype: str, *, cached: int) -> Step:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Float64:
        bits = bits_of(rng.standard_normal(shape), dtype)
        return np.asarray(values_of(bits, dtype), np.float64)

    return Step(
        normal(p.tokens, p.heads, p.nope),
        normal(p.tokens, p.heads, ROTARY),
        normal(cached, p.lora),
        normal(cached, ROTARY),
    )


def probabilities(step: Step, p: MLAProblem, kv_b_proj: QuantizedWeight) -> Float64:
    keys = np.einsum("sl,hli->shi", step.cache, up_weights(p, kv_b_proj)["k_up"])
    return step.softmax(np.einsum("thi,shi->ths", step.q_nope, keys) + step.rotary_scores())


def unabsorbed(step: Step, p: MLAProblem, kv_b_proj: QuantizedWeight) -> Float64:
    """``[tokens, heads, v]``, from expanded keys and values."""
    values = np.einsum("sl,hvl->shv", step.cache, up_weights(p, kv_b_proj)["v_up"])
    return np.einsum("ths,shv->thv", probabilities(step, p, kv_b_proj), values)


def attention_bound(
    step: Step, p: MLAProblem, kv_b_proj: QuantizedWeight, dtype: str, accumulator: Accumulator
) -> Float64:
    """The module's bound, ``[tokens, heads, v]``."""
    weight = up_weights(p, kv_b_proj)
    w_v = weight["v_up"]
    query_error = up_bound(step.q_nope, weight["k_up"], dtype, accumulator)
    shares = probabilities(step, p, kv_b_proj)
    attended = np.einsum("ths,sl->thl", shares, step.cache)
    # 1. to first order, and the rest
    spread = np.einsum("ths,sl,sk->thlk", shares, step.cache, step.cache, optimize=True)
    spread -= attended[..., :, None] * attended[..., None, :]
    attended_error = step.scale() * _spread(spread, query_error)
    error = step.scale() * _spread(np.einsum("hvl,thlk->thvk", w_v, spread), query_error)
    scores = LAMBDA * np.sqrt(np.einsum("thl,sl->ths", query_error**2, step.cache**2))
    most = step.scale() * scores.max(axis=-1)
    rest = np.expm1(2 * most) - 2 * most + most**2 / 2
    rest = rest[..., None] * np.einsum("ths,sl->thl", shares, np.abs(step.cache))
    attended_error += rest
    error += reference(rest, np.abs(w_v))
    # 2. and 3.
    relative, least = OUTPUT_UNIT[dtype]
    half_units = np.maximum(relative * (np.abs(attended) + attended_error), least)
    error += _spread(np.broadcast_to(w_v, (*half_units.shape[:1], *w_v.shape)), half_units)
    return error * (1 + relative) + up_bound(attended, w_v, dtype, accumulator)


def _spread(factors: Float64, most: Float64) -> Float64:
    """Bound of sums ``factors [.., n, k] @ errors [.., k]``, each error within +-``most``."""
    return LAMBDA * np.sqrt(np.einsum("...nk,...k->...n", factors**2, most**2))
