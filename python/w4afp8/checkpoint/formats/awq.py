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
"""AWQ int4 checkpoints (AutoAWQ, "gemm"), where every zero point is 8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.config import Config
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.formats.gptq import check_zero_points
from w4afp8.checkpoint.numbers import FLOATS, read_scales
from w4afp8.checkpoint.projection import (
    Fields,
    Projection,
    ProjectionFormat,
    ProjectionInfo,
    offset_binary_to_int4,
    scale_type,
)

# Output of the nibble at bits 4 * position of a word, within its eight.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Awq(ProjectionFormat):
    """``qweight`` int32 ``[in, out / 8]``, ``qzeros`` int32 ``[groups, out / 8]``, ``scales``.

    A code is stored as ``value + 8``; a word holds eight outputs in the order 0, 2, 4, 6, 1, 3, 5,
    7. ``scales`` is ``[groups, out]``.
    """

    name = "awq"
    fields = frozenset({"qweight", "qzeros", "scales"})

    def __init__(self, files: SafetensorsFiles, config: Config) -> None:
        super().__init__(files, config)
        config.expect_quantization("quant_method", "awq")
        config.expect_quantization("bits", 4)
        config.expect_quantization("version", "gemm", "GEMM")

    def describe(self, fields: Fields) -> ProjectionInfo:
        files = self.files
        in_features, words = files.expect(fields["qweight"], ("I32",), (None, None)).shape
        groups, out = files.expect(fields["scales"], FLOATS, (None, 8 * words)).shape
        files.expect(fields["qzeros"], ("I32",), (groups, words))
        if in_features % 2:
            raise files.error(fields["qweight"], f"expected even in_features, got {in_features}")
        scale_dtype = scale_type(files, fields["scales"])
        return ProjectionInfo(out, in_features, groups, scale_dtype, self.config.group_size())

    def read(self, fields: Fields) -> Projection:
        check_zero_points(self.files, fields["qzeros"], 8)
        codes = _transposed(self.files.view(fields["qweight"]))
        scales = read_scales(self.files, fields["scales"])
        return Projection(offset_binary_to_int4(codes), np.ascontiguousarray(scales.T))


def _transposed(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """``[in, out / 8]`` words to bytes ``[out, in / 2]``.

    Nibbles of neighbouring in_features meet in a byte while they are four to a word, so that words
    are transposed and not nibbles: no array is larger than the weight itself.
    """
    in_features, groups = words.shape
    even, odd = words.view(np.uint32)[0::2], words.view(np.uint32)[1::2]
    nibble = np.uint32(0x0F0F0F0F)
    low = even & nibble | (odd & nibble) << np.uint32(4)
    high = even >> np.uint32(4) & nibble | odd & ~nibble
    codes = np.empty((groups, 8, in_features // 2), np.uint8)
    for parity, pairs in enumerate((low, high)):
        octets = np.ascontiguousarray(pairs.T, dtype="<u4").view(np.uint8)
        for byte in range(4):
            codes[:, ORDER[2 * byte + parity]] = octets[:, byte::4]
    return codes.reshape(8 * groups, in_features // 2)
