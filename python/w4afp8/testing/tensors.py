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
"""numpy to Paddle tensors of any type and place, and back.

paddle.to_tensor knows no 8-bit floats, and `.numpy()` gives the bits of bfloat16 and float8; other
places than the CPU may lack the casts. So bits are made on the host, viewed there, and moved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from w4afp8.quant.bfloat16 import bfloat16_values


def to_place(tensor: paddle.Tensor, place: Any) -> paddle.Tensor:
    """`tensor` on `place`."""
    return tensor if str(tensor.place) == str(place) else tensor.to(place)


def float8_tensor(bits: NDArray[np.uint8], place: Any) -> paddle.Tensor:
    """uint8 bits as float8_e4m3fn."""
    host = paddle.to_tensor(np.ascontiguousarray(bits), place=paddle.CPUPlace())
    return to_place(host.view(paddle.float8_e4m3fn), place)


def float_tensor(values: NDArray[Any], dtype: str, place: Any) -> paddle.Tensor:
    """Floats as float32, float16 or bfloat16, rounded to nearest even."""
    if dtype == "bfloat16":
        bits = bits_of(values, dtype).view(np.int16)
        host = paddle.to_tensor(bits, place=paddle.CPUPlace()).view("bfloat16")
    else:
        host = paddle.to_tensor(np.ascontiguousarray(values, dtype), place=paddle.CPUPlace())
    return to_place(host, place)


def int_tensor(values: Any, dtype: str, place: Any) -> paddle.Tensor:
    """Integers as `dtype`."""
    return to_place(paddle.to_tensor(np.array(values, dtype), place=paddle.CPUPlace()), place)


def bits_of(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Floats rounded to float32, float16 or bfloat16, as unsigned integers. NaN stays NaN."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, np.float16).view(np.uint16)
    single = np.ascontiguousarray(values, np.float32).view(np.uint32)
    if dtype == "float32":
        return single
    rounded = (single + np.uint32(0x7FFF) + (single >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def tensor_bits(tensor: paddle.Tensor) -> NDArray[Any]:
    """What the tensor holds, as unsigned integers of its width."""
    array = np.ascontiguousarray(tensor.cpu().numpy())
    return array.view(f"uint{8 * array.itemsize}")


def values_of(bits: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The reverse of `bits_of`; bfloat16 comes as float32."""
    return bfloat16_values(bits) if dtype == "bfloat16" else bits.view(dtype)
