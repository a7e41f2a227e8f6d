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
"""Activations to FP8 with FastDeploy's scales.

Static: ``q = 448 * in_scale * x``, in_scale the reciprocal of the largest magnitude of an expert's
input; the way back is folded into the weight's scales.
Dynamic: FastDeploy's weight scales expect ``x = q * dequant_scale / 440``. The operators here use
the whole range, ``scale = absmax / 448``; times 440 that is a dequant_scale, and q is one step of
FP8 finer than FastDeploy's own.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from w4afp8.layers.operands import on_place_of

DYNAMIC_RANGE = 440.0
_LARGEST = 448.0  # of E4M3
_NAN = 0x7F


def dequant_scale(scale: Tensor) -> Tensor:
    """A multiplier of FP8 values as FastDeploy's dequant_scale."""
    return times(scale, DYNAMIC_RANGE)


def times(scale: Tensor, factor: float) -> Tensor:
    """Scales times a number, where the scales are."""
    return on_place_of(scale, scale * factor)


def to_fp8(x: Tensor, in_scale: Tensor) -> Tensor:
    """Quantises with a given scale; beyond 448 saturates, NaN stays.

    Args:
        x: floats ``[.., features]``.
        in_scale: float32 of the shape of x, or one that is broadcast to it.

    Returns:
        float8_e4m3fn of x's shape.
    """
    scaled = x.astype("float32") * (in_scale * _LARGEST)
    # Paddle's cast makes NaN a number on the CPU, and need not saturate elsewhere.
    bits = scaled.clip(-_LARGEST, _LARGEST).astype("float8_e4m3fn").view("uint8")
    nan = (paddle.isnan(scaled).astype("int32") * _NAN).astype("uint8")
    return on_place_of(x, paddle.bitwise_or(bits, nan).view("float8_e4m3fn"))


def activate(h: Tensor, activation: str, hadamard_block_size: int = -1) -> Tensor:
    """SwiGLU as `w4afp8.ops.activation_quant` has it, rotated or not, unquantised.

    Args:
        h: ``[.., 2 * features]``, the gate's half first.
        activation: "swiglu" or "swiglu_oai".
        hadamard_block_size: of the blocks that the result is rotated in, or -1.

    Returns:
        ``[.., features]``, computed in float32 and rounded to h's type; rotated: in float32 then.
    """
    gate, up = h.astype("float32").chunk(2, axis=-1)
    if activation == "swiglu":
        gated = F.silu(gate) * up
    else:
        gate, up = gate.clip(max=7.0), up.clip(-7.0, 7.0)
        gated = gate * F.sigmoid(1.702 * gate) * (up + 1)
    gated = gated.astype(h.dtype)
    if hadamard_block_size > 0:
        gated = rotate(gated.astype("float32"), hadamard_block_size)
    return on_place_of(h, gated)


def rotate(x: Tensor, block_size: int) -> Tensor:
    """Multiplies each block of features by the orthonormal Walsh-Hadamard matrix.

    Args:
        x: float32 ``[.., features]``.
        block_size: a power of two that divides the features.
    """
    blocks = x.reshape([-1, block_size])
    half = block_size // 2
    while half:  # sums and differences of halves, of halves of halves, ...
        pairs = blocks.reshape([-1, 2, half])
        first, second = pairs[:, 0], pairs[:, 1]
        blocks = paddle.stack([first + second, first - second], axis=1)
        half //= 2
    return (blocks * block_size**-0.5).reshape(x.shape)
