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
"""Tensors of zeros, to be made on the place of a test."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import paddle

from w4afp8.testing.tensors import float8_tensor, float_tensor, int_tensor

FP8 = "float8_e4m3fn"


@dataclasses.dataclass(frozen=True)
class Zeros:
    """A tensor to be made on the place of the test."""

    dtype: str
    shape: tuple[int, ...]
    form: str = "plain"  # or "strided", "sparse"

    def on(self, place: Any) -> paddle.Tensor:
        if self.form == "sparse":
            return paddle.sparse.sparse_coo_tensor([[0], [0]], [1.0], list(self.shape))
        if self.form == "strided":  # every second element
            wide = Zeros(self.dtype, (*self.shape, 2)).on(place)
            return paddle.as_strided(wide, list(self.shape), wide.strides[:-1])
        zeros = np.zeros(self.shape)
        if self.dtype == FP8:
            return float8_tensor(zeros.astype(np.uint8), place)
        if self.dtype in ("bfloat16", "float16", "float32"):
            return float_tensor(zeros, self.dtype, place)
        return int_tensor(zeros, self.dtype, place)
