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
"""What FastDeploy does to weights before its operators read them, step by step as there."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from w4afp8.fastdeploy import w4afp8_gemm_scale_permute, w4afp8_gemm_weight_convert
from w4afp8.quant import QuantizedWeight
from w4afp8.quant.codes import CODE_VALUES, join_nibbles, split_nibbles
from w4afp8.testing.tensors import float_tensor, int_tensor

SPELLINGS = ("offset", "sign_magnitude", "int8")


def values_of_codes(weight: QuantizedWeight) -> NDArray[np.int64]:
    """The integers ``[experts, out, in]``."""
    return CODE_VALUES["int4"][split_nibbles(weight.codes)].astype(np.int64)


def without_minus_eight(weight: QuantizedWeight) -> QuantizedWeight:
    """-8 made -7, and a -7 in each channel, as its largest magnitude is: the uint8 spellings hold
    no -8, and show themselves by their -7.
    """
    values = np.maximum(values_of_codes(weight), -7)
    values[..., 0] = -7
    codes = join_nibbles((values & 15).astype(np.uint8))
    return QuantizedWeight(codes, weight.scale, "int4", weight.group_size)


def converted(weight: QuantizedWeight, spelling: str, place: Any) -> paddle.Tensor:
    """`w4afp8_gemm_weight_convert` of one of the forms that it takes, all experts."""
    values = values_of_codes(weight)
    if spelling == "int8":
        pairs = join_nibbles((values & 15).astype(np.uint8)).transpose(0, 2, 1).view(np.int8)
        experts = [w4afp8_gemm_weight_convert(int_tensor(p, "int8", place)) for p in pairs]
        return paddle.stack(experts)
    codes = values + 7 if spelling == "offset" else np.where(values > 0, values, 8 - values)
    return w4afp8_gemm_weight_convert(int_tensor(codes, "uint8", place))


def operator_scale(scale: NDArray[np.float32], place: Any) -> paddle.Tensor:
    """Multipliers of codes ``[experts, out]`` or ``[experts, out, in / 128]`` as the operators read
    them: times 512, permuted, grouped by 128 outputs.
    """
    stored = float_tensor(scale * np.float32(512), "float32", place)
    if stored.ndim == 2:
        return w4afp8_gemm_scale_permute(stored)
    experts, out, groups = stored.shape
    rows = stored.transpose([0, 2, 1]).reshape([-1, out])
    blocks = w4afp8_gemm_scale_permute(rows).reshape([experts, groups, out // 128, 128])
    return blocks.transpose([0, 2, 1, 3]).contiguous()
