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
"""The packed weight of docs/formats.md, one code at a time: slow, and plain to check."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from w4afp8.quant.codes import split_nibbles

SUB_OUT, SUB_IN, SUB_BYTES, BAND_OUT = 64, 128, 4096, 256
HALF_IN = SUB_IN // 2  # of a last k block that is half a one


def naive_pack(codes: NDArray[np.uint8], weight_format: str) -> NDArray[np.uint8]:
    """Codes ``[experts, out, in / 2]`` to the packed ``[experts, padded_out, padded_in / 2]``."""
    experts, out, half_in = codes.shape
    padded_out, padded_in = -(-out // SUB_OUT) * SUB_OUT, -(-half_in * 2 // HALF_IN) * HALF_IN
    padded = np.zeros((experts, padded_out, padded_in), np.uint8)
    padded[:, :out, : half_in * 2] = split_nibbles(codes)
    words = np.zeros((experts, padded_out * padded_in // 8), np.uint32)
    rows, columns = np.meshgrid(np.arange(padded_out), np.arange(padded_in), indexing="ij")
    place, shifted = _places(rows, columns, padded_out, padded_in)
    for expert in range(experts):
        bits = _encode(padded[expert].astype(np.uint32), weight_format, *shifted)
        np.bitwise_or.at(words[expert], place, bits)
    return words.view(np.uint8).reshape(experts, padded_out, padded_in // 2)


def _places(
    row: NDArray[np.int64], k: NDArray[np.int64], padded_out: int, padded_in: int
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Index of the 32-bit word of each code, and (half, lane) inside it."""
    band = row // BAND_OUT
    subs_here = np.minimum(BAND_OUT, padded_out - band * BAND_OUT) // SUB_OUT
    sub_bytes = np.where(padded_in - k // SUB_IN * SUB_IN < SUB_IN, SUB_BYTES // 2, SUB_BYTES)
    byte = band * BAND_OUT * (padded_in // 2) + k // SUB_IN * subs_here * SUB_BYTES
    byte += row % BAND_OUT // SUB_OUT * sub_bytes

    step, column = k % SUB_IN // 32, k % 32
    thread = row % SUB_OUT // 16 * 32 + row % 8 * 4 + column % 16 // 4
    byte += step // 2 * 2048 + thread * 16 + (step % 2 * 2 + column // 16) * 4
    return byte // 4, (row % 16 // 8, column % 4)


def _encode(
    code: NDArray[np.uint32], weight_format: str, half: NDArray[np.int64], lane: NDArray[np.int64]
) -> NDArray[np.uint32]:
    sign, low = code >> 3, code & 7
    if weight_format == "int4":
        nibble = np.where(sign == 1, 7 - low, low) << 1 | sign
        return (nibble << (8 * lane + 4 * half)).astype(np.uint32)
    return (low << (16 * half + 4 * lane) | sign << (8 * lane + 7 - 4 * half)).astype(np.uint32)
