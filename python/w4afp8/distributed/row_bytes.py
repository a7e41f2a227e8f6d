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
"""Rows of any type as rows of bytes: not every backend sends float8 or bfloat16."""

from __future__ import annotations

import paddle
from paddle import Tensor


def as_bytes(rows: Tensor) -> Tensor:
    """A contiguous ``[rows, features]`` as uint8 ``[rows, bytes]``, sharing its memory."""
    if rows.shape[0]:
        return rows.view("uint8")
    # Paddle gives a tensor without elements strides that `view` refuses.
    width = int(rows.shape[1]) * int(rows.element_size())
    return paddle.empty([0, width], dtype="uint8", device=rows.place)


def from_bytes(rows: Tensor, dtype: str) -> Tensor:
    """The reverse of `as_bytes`."""
    if rows.shape[0]:
        return rows.view(dtype)

    def empty(*shape: int) -> Tensor:
        return paddle.empty(shape, dtype=dtype, device=rows.place)

    return empty(0, int(rows.shape[1]) // int(empty(0).element_size()))


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Rows of uint8 ``[rows, bytes]`` by an int64 index; of no rows, zeros.

    Bytes come in fours everywhere, and Paddle selects 32-bit integers on every device.
    """
    if not index.shape[0]:
        return rows[:0]
    if not rows.shape[0]:
        return paddle.zeros([index.shape[0], rows.shape[1]], dtype="uint8", device=rows.place)
    return paddle.index_select(rows.view("int32"), index, axis=0).view("uint8")
