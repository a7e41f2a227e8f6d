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
"""Inputs, reference and bound of the up projections of multi-head latent attention (MLA).

A result differs from the float64 product of the activations and the exactly dequantised weights by

1. **The accumulation.** The product of a bfloat16 (8 bits) or float16 (11 bits) number and an E2M1
   number (2 bits) is exact in float32; n of them are added. With S = sum |x w|:
   *float32* (CPU): as `w4afp8.testing.compare` has it, LAMBDA sqrt(n + 2) u S with u = 2^-24.
   *Tensor cores*, 16 products a step: products and accumulator are aligned to the largest of them
   and cut, with at least float32's 23 fraction bits, so that each of the 17 addends of a step loses
   at most 2^-23 S. The worst case: 17 (n / 16) 2^-23 S.
2. **The output**: half a unit in the last place of bfloat16 or float16 (`compare.OUTPUT_UNIT`). The
   power of two that FP16 leaves out of the weights rounds nothing before that.

FP8 activations: `float8_weights` are the weights that count, the accumulation is as
`w4afp8.testing.compare` has it of float32 or of FP8 tensor cores, and the product with the token's
scale rounds once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from w4afp8.quant.quantize import dequantize
from w4afp8.quant.weights import QuantizedWeight
from w4afp8.testing import float8
from w4afp8.testing.compare import (
    FLOAT32_UNIT,
    LAMBDA,
    OUTPUT_UNIT,
    Accumulator,
    accumulation_error,
)
from w4afp8.testing.tensors import bits_of, values_of

Op = Literal["k_up", "v_up"]
Float64 = NDArray[np.float64]
FLOAT8_SHIFT = 6  # E4M3 weights: the largest scale of an output becomes 2^6
WGMMA_DEPTH = 16  # products of one step of bfloat16 or float16 tensor cores


@dataclass(frozen=True)
class MLAProblem:
    """Sizes of the two products."""

    tokens: int
    heads: int
    nope: int = 128
    lora: int = 512
    v: int = 128

    @property
    def rows(self) -> int:
        """Rows of ``kv_b_proj``."""
        return self.heads * (self.nope + self.v)

    def in_features(self, op: Op) -> int:
        return self.nope if op == "k_up" else self.lora

    def out_features(self, op: Op) -> int:
        return self.lora if op == "k_up" else self.v


def random_kv_b_proj(
    p: MLAProblem, seed: int = 0, *, scales: tuple[int, int] = (118, 128)
) -> QuantizedWeight:
    """Random codes, and E8M0 bytes of the range ``scales`` (both ends occur)."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (1, p.rows, p.lora // 2), dtype=np.uint8)
    scale = rng.integers(scales[0], scales[1] + 1, (1, p.rows, p.lora // 32)).astype(np.uint8)
    return QuantizedWeight(codes, scale, "mxfp4")


def up_weights(p: MLAProblem, kv_b_proj: QuantizedWeight) -> dict[Op, Float64]:
    """W_K as ``[heads, lora, nope]`` and W_V as ``[heads, v, lora]``: outputs by inputs."""
    values = dequantize(kv_b_proj)[0].astype(np.float64)
    by_head = values.reshape(p.heads, p.nope + p.v, p.lora)
    return {"k_up": by_head[:, : p.nope].transpose(0, 2, 1), "v_up": by_head[:, p.nope :]}


def random_activations(p: MLAProblem, op: Op, dtype: str, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers of a 16-bit type ``[tokens, heads, in]``."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((p.tokens, p.heads, p.in_features(op)), np.float32)
    return np.asarray(values_of(bits_of(drawn, dtype), dtype), np.float32)


def reference(x: NDArray[Any], weight: Float64) -> Float64:
    """``[tokens, heads, in]`` by ``[heads, out, in]``."""
    by_head = x.astype(np.float64).transpose(1, 0, 2) @ weight.transpose(0, 2, 1)
    return by_head.transpose(1, 0, 2)


def up_bound(x: NDArray[Any], weight: Float64, out_dtype: str, accumulator: Accumulator) -> Float64:
    """Largest right distance of each element from `reference`, by the module's derivation."""
    n = x.shape[-1]
    magnitudes = reference(np.abs(x), np.abs(weight))
    if accumulator.is_tensor_core:
        error = (WGMMA_DEPTH + 1) * (n / WGMMA_DEPTH) * 2 * FLOAT32_UNIT * magnitudes
    else:
        error = LAMBDA * np.sqrt(n + 2) * FLOAT32_UNIT * magnitudes
    relative, least = OUTPUT_UNIT[out_dtype]
    return error + np.maximum(relative * (np.abs(reference(x, weight)) + error), least)


def float8_activations(
    p: MLAProblem, op: Op, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes of normal numbers ``[tokens, heads, in]`` and scales ``[tokens, heads]``."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((p.tokens, p.heads, p.in_features(op)), np.float32)
    scale = rng.uniform(0.25, 4.0, (p.tokens, p.heads)).astype(np.float32)
    return float8.encode(drawn), scale


def float8_weights(p: MLAProblem, kv_b_proj: QuantizedWeight) -> dict[Op, Float64]:
    """As `up_weights`, rounded to E4M3 relative to the largest scale of each output.

    Of W_K that is the largest of all inputs in the output's group of 32, of W_V that of the
    output's groups.
    """
    scale = kv_b_proj.scale[0].astype(np.int64).reshape(p.heads, p.nope + p.v, p.lora // 32)
    of_k = np.repeat(scale[:, : p.nope].max(axis=1), 32, axis=1)
    of_v = scale[:, p.nope :].max(axis=2)
    weights = up_weights(p, kv_b_proj)
    largest: dict[Op, NDArray[np.int64]] = {"k_up": of_k, "v_up": of_v}
    rounded: dict[Op, Float64] = {}
    for op, weight in weights.items():
        unit = np.exp2(largest[op] - 127.0 - FLOAT8_SHIFT)[:, :, None]
        rounded[op] = float8.decode(float8.encode(weight / unit)) * unit
    return rounded


def float8_bound(
    x: Float64, x_scale: NDArray[Any], weight: Float64, out_dtype: str, accumulator: Accumulator
) -> Float64:
    """Largest right distance of ``reference(x * x_scale, weight)``, by the module's derivation.

    Args:
        x: decoded activations ``[tokens, heads, in]``.
        x_scale: ``[tokens, heads]``.
        weight: of `float8_weights`, ``[heads, out, in]``.
        out_dtype: of the outputs.
        accumulator: that of the kernel.
    """
    by_head = [
        accumulation_error(x[:, head], weight[head], x.shape[2], accumulator).bound()
        for head in range(x.shape[1])
    ]
    expected = np.abs(reference(x * x_scale[..., None], weight))
    error = np.stack(by_head, axis=1) * x_scale[..., None] + FLOAT32_UNIT * expected
    relative, least = OUTPUT_UNIT[out_dtype]
    return error + np.maximum(relative * (expected + error), least)
