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
"""Packed weights of the MLA up projections: checkpoint order to the kernels' and back.

The order is that of docs/mla.md: blocks of 64 outputs by 64 inputs, in each the register layout of
a wgmma A operand (m64, k16, 16-bit). Axes are named after it: an output of a block is
``16 * warp + 8 * upper + row`` and an input ``16 * step + 8 * later + 2 * pair + half``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

BLOCK = 64  # outputs and inputs of a block
GROUP = 32  # codes along lora that share a scale
_OUT = (4, 2, 8)  # warp, upper, row
_IN = (4, 2, 4, 2)  # step, later, pair, half
# heads, out blocks, warp, upper, row, in blocks, step, later, pair, half
_CODE_AXES = (0, 1, 5, 2, 4, 8, 6, 9, 7, 3)  # a thread (warp, row, pair), its words, its half words
# A half word holds four codes, numbered 2 * later + upper: bit of its magnitude and of its sign.
_MAGNITUDE_BITS = np.array([6, 3, 0, 9], np.uint16)
_SIGN_BITS = np.array([15, 12, 14, 13], np.uint16)


def pack_codes(codes: Bytes) -> Bytes:
    """E2M1 codes ``[heads, out, in]``, one to a byte, to the packed ``[heads, out, in / 2]``."""
    heads, out, in_features = codes.shape
    blocks = codes.reshape(heads, out // BLOCK, *_OUT, in_features // BLOCK, *_IN)
    ordered = blocks.transpose(_CODE_AXES).reshape(-1, 4).astype(np.uint16)
    half_words = ((ordered & 7) << _MAGNITUDE_BITS | (ordered >> 3) << _SIGN_BITS).sum(
        axis=1, dtype=np.uint16
    )
    return half_words.astype("<u2").view(np.uint8).reshape(heads, out, in_features // 2)


def unpack_codes(packed: Bytes) -> Bytes:
    """The reverse of `pack_codes`."""
    heads, out, in_features = packed.shape[0], packed.shape[1], 2 * packed.shape[2]
    half_words = np.ascontiguousarray(packed).view("<u2").reshape(-1, 1)
    magnitudes, signs = half_words >> _MAGNITUDE_BITS & 7, half_words >> _SIGN_BITS & 1
    counts = (heads, out // BLOCK, *_OUT, in_features // BLOCK, *_IN)
    ordered = (magnitudes | signs << 3).astype(np.uint8).reshape([counts[i] for i in _CODE_AXES])
    blocks = ordered.transpose(np.argsort(_CODE_AXES))
    return np.ascontiguousarray(blocks).reshape(heads, out, in_features)


# heads, blocks of lora, its two groups, blocks of nope, step, later, pair, half
_K_SCALE_AXES = (0, 1, 3, 2, 6, 4, 7, 5)
# heads, blocks of v, warp, upper, row, blocks of lora, its two groups
_V_SCALE_AXES = (0, 1, 5, 2, 4, 6, 3)


def pack_k_scale(scale: Bytes) -> Bytes:
    """Scales of W_K ``[heads, lora / 32, nope]`` to the packed order, of the same shape."""
    heads, groups, nope = scale.shape
    blocks = scale.reshape(heads, groups // 2, 2, nope // BLOCK, *_IN)
    return np.ascontiguousarray(blocks.transpose(_K_SCALE_AXES)).reshape(scale.shape)


def unpack_k_scale(packed: Bytes) -> Bytes:
    """The reverse of `pack_k_scale`."""
    heads, groups, nope = packed.shape
    return _restored(packed, (heads, groups // 2, 2, nope // BLOCK, *_IN), _K_SCALE_AXES)


def pack_v_scale(scale: Bytes) -> Bytes:
    """Scales of W_V ``[heads, v, lora / 32]`` to the packed order, of the same shape."""
    heads, v, groups = scale.shape
    blocks = scale.reshape(heads, v // BLOCK, *_OUT, groups // 2, 2)
    return np.ascontiguousarray(blocks.transpose(_V_SCALE_AXES)).reshape(scale.shape)


def unpack_v_scale(packed: Bytes) -> Bytes:
    """The reverse of `pack_v_scale`."""
    heads, v, groups = packed.shape
    return _restored(packed, (heads, v // BLOCK, *_OUT, groups // 2, 2), _V_SCALE_AXES)


def _restored(packed: Bytes, counts: tuple[int, ...], axes: tuple[int, ...]) -> Bytes:
    """Undoes a transposition of an array of ``counts``."""
    ordered = packed.reshape([counts[i] for i in axes])
    return np.ascontiguousarray(ordered.transpose(np.argsort(axes))).reshape(packed.shape)
