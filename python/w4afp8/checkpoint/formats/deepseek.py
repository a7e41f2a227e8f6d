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
"""DeepSeek's W4AFP8 checkpoints, as TensorRT-LLM and SGLang read them."""

from __future__ import annotations

import numpy as np

from w4afp8.checkpoint.numbers import FLOATS, read_scales
from w4afp8.checkpoint.projection import (
    Fields,
    Projection,
    ProjectionFormat,
    ProjectionInfo,
    scale_type,
)


class DeepSeekW4AFP8(ProjectionFormat):
    """``weight`` int8 ``[out, in / 2]``, two's complement, ``weight_scale_inv`` ``[out, groups]``.

    The scale multiplies, in spite of its name. ``input_scale`` (the activations' largest magnitude
    / 448) may stand under w1, w2 and w3 while the weights stand under gate_proj, down_proj and
    up_proj.
    """

    name = "deepseek-w4afp8"
    fields = frozenset({"weight", "weight_scale_inv"})

    def describe(self, fields: Fields) -> ProjectionInfo:
        out, pairs = self.files.expect(fields["weight"], ("I8", "U8"), (None, None)).shape
        name = fields["weight_scale_inv"]
        _, groups = self.files.expect(name, FLOATS, (out, None)).shape
        return ProjectionInfo(out, 2 * pairs, groups, scale_type(self.files, name))

    def read(self, fields: Fields) -> Projection:
        codes = np.array(self.files.view(fields["weight"])).view(np.uint8)
        return Projection(codes, read_scales(self.files, fields["weight_scale_inv"]))
