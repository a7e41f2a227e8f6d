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
"""GPTQ int4 checkpoints (AutoGPTQ, GPTQModel), where they are symmetric."""

from __future__ import annotations

import numpy as np

from w4afp8.checkpoint.config import Config
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.numbers import FLOATS, read_scales
from w4afp8.checkpoint.projection import (
    Fields,
    Projection,
    ProjectionFormat,
    ProjectionInfo,
    check_group_index,
    offset_binary_to_int4,
    rows_of_words,
    scale_type,
)

# The first format stores zero points less one (GPTQModel calls it "gptq", the other "gptq_v2").
_STORED_ZERO = {"gptq": 7, "gptq_v2": 8}


class Gptq(ProjectionFormat):
    """``qweight`` int32 ``[in / 8, out]``, ``qzeros`` int32 ``[groups, out / 8]``, ``scales``.

    A code is stored as ``value + 8``, in_feature i at bits ``4 * (i % 8)``; every zero point must
    be 8. ``scales`` is ``[groups, out]``; ``g_idx``, where there, the group of each in_feature.
    """

    name = "gptq"
    fields = frozenset({"qweight", "qzeros", "scales"})
    optional_fields = frozenset({"g_idx"})

    def __init__(self, files: SafetensorsFiles, config: Config) -> None:
        super().__init__(files, config)
        config.expect_quantization("quant_method", "gptq")
        config.expect_quantization("bits", 4)
        config.expect_quantization("checkpoint_format", *_STORED_ZERO)
        version = config.quantization.get("checkpoint_format", "gptq")
        self._stored_zero = _STORED_ZERO[version]

    def describe(self, fields: Fields) -> ProjectionInfo:
        files = self.files
        words, out = files.expect(fields["qweight"], ("I32",), (None, None)).shape
        groups, _ = files.expect(fields["scales"], FLOATS, (None, out)).shape
        files.expect(fields["qzeros"], ("I32",), (groups, out // 8))
        if "g_idx" in fields:
            files.expect(fields["g_idx"], ("I32", "I64"), (8 * words,))
        elif self.config.quantization.get("desc_act"):
            raise files.error(fields["qweight"], "expected g_idx beside it (desc_act), got none")
        scale_dtype = scale_type(files, fields["scales"])
        return ProjectionInfo(out, 8 * words, groups, scale_dtype, self.config.group_size())

    def read(self, fields: Fields) -> Projection:
        files = self.files
        check_zero_points(files, fields["qzeros"], self._stored_zero)
        words = files.view(fields["qweight"])
        scales = read_scales(files, fields["scales"])
        if "g_idx" in fields:
            check_group_index(files, fields["g_idx"], 8 * words.shape[0] // scales.shape[0])
        codes = offset_binary_to_int4(rows_of_words(words.T))
        return Projection(codes, np.ascontiguousarray(scales.T))


def check_zero_points(files: SafetensorsFiles, name: str, stored: int) -> None:
    """Refuses zero points other than 8, packed eight to a word and stored as `stored`.

    Raises:
        CheckpointError: another zero point.
    """
    pairs = np.ascontiguousarray(files.view(name)).view(np.uint8)
    wrong = np.argwhere(pairs != stored * 0x11)
    if len(wrong):
        row, byte = (int(i) for i in wrong[0])
        pair = int(pairs[row, byte])
        got = pair & 15 if pair & 15 != stored else pair >> 4
        raise files.error(
            name,
            f"expected the zero point 8 everywhere (stored as {stored}), got {got} stored in word "
            f"{[row, byte // 4]}: only symmetric weights can be read",
        )
