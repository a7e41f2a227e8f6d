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
"""Checks of arguments for the whole package: ValueError with name, what was expected, what came."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import paddle

# While a program is traced, tensors are values of it.
_TENSORS = (paddle.Tensor, paddle.pir.Value, paddle.static.Variable)


def dtype_name(dtype: Any) -> str:
    """Name of a Paddle dtype given as a string, a `paddle.dtype` or a numpy dtype."""
    return str(dtype).removeprefix("paddle.")


def is_float(dtype: Any) -> bool:
    """Whether a Paddle or numpy dtype is one of floats, those of ml_dtypes included."""
    name = dtype.name if isinstance(dtype, np.dtype) else dtype_name(dtype)
    return name.startswith(("float", "bfloat"))


def wrong_type(name: str, expected: str, value: object) -> ValueError:
    """The error to raise where an argument has another type than `expected`."""
    return ValueError(f"{name}: expected {expected}, got {type(value).__name__}")


def check_tensor(name: str, value: object) -> None:
    """Raises ValueError unless `value` is a tensor, eager or of a traced program."""
    if not isinstance(value, _TENSORS):
        raise wrong_type(name, "a paddle.Tensor", value)


def check_bool(name: str, value: object) -> bool:
    """Returns `value`, or raises ValueError unless it is a bool."""
    if not isinstance(value, bool):
        raise wrong_type(name, "a bool", value)
    return value


def check_int(name: str, value: Any) -> int:
    """Returns `value` as an int, or raises ValueError unless it is one, of Python or numpy."""
    if isinstance(value, bool):
        raise wrong_type(name, "an int", value)
    try:
        return operator.index(value)
    except TypeError:
        raise wrong_type(name, "an int", value) from None


def check_multiple(name: str, value: Any, unit: int) -> int:
    """Returns `value` as an int, or raises ValueError unless it is a positive multiple."""
    number = check_int(name, value)
    if number <= 0 or number % unit:
        raise ValueError(f"{name}: expected a positive multiple of {unit}, got {number}")
    return number


def check_range(name: str, value: Any, low: int, high: int) -> int:
    """Returns `value` as an int, or raises ValueError unless ``low <= value <= high``."""
    number = check_int(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {number}")
    return number
