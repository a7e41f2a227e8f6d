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
"""A quantised weight on the host, in the order of the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from w4afp8._checks import check_int, check_multiple
from w4afp8.quant.bfloat16 import round_to_bfloat16

WeightFormat = Literal["int4", "mxfp4"]
ScaleDtype = Literal["float32", "bfloat16"]

MXFP4_GROUP_SIZE = 32
E8M0_NAN = 255


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises ValueError unless `value` is one of the strings of the Literal `choices`."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def check_type(name: str, value: object, expected: type) -> None:
    """Raises ValueError unless `value` is an instance of `expected`."""
    if not isinstance(value, expected):
        raise ValueError(f"{name}: expected a {expected.__name__}, got {type(value).__name__}")


def check_group_size(weight_format: str, group_size: int, in_features: int) -> int:
    """The group size that `group_size` stands for: -1 with mxfp4 is its own 32.

    Args:
        weight_format: "int4" or "mxfp4".
        group_size: -1, 32, 64 or a multiple of 128 (int4); -1 or 32 (mxfp4).
        in_features: a multiple of 32 and of the group size.

    Raises:
        ValueError: the format has no such groups.
    """
    check_choice("weight_format", weight_format, WeightFormat)
    in_features = check_multiple("in_features", in_features, 32)
    group_size = check_int("group_size", group_size)
    if weight_format == "mxfp4":
        if group_size not in (-1, MXFP4_GROUP_SIZE):
            raise ValueError(f"group_size: expected 32 (or -1) for mxfp4, got {group_size}")
        return MXFP4_GROUP_SIZE
    if group_size == -1:
        return -1
    if group_size not in (32, 64) and (group_size <= 0 or group_size % 128):
        raise ValueError(
            f"group_size: expected -1, 32, 64 or a multiple of 128 for int4, got {group_size}"
        )
    if in_features % group_size:
        raise ValueError(
            f"group_size: expected a divisor of in_features {in_features}, got {group_size}"
        )
    return group_size


def check_array(name: str, array: object, dtype: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `array` is a numpy array of that type and shape."""
    expected = f"{name}: expected a numpy array of {np.dtype(dtype)} {list(shape)}"
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{expected}, got {type(array).__name__}")
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{expected}, got {array.dtype} {list(array.shape)}")


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Codes and scales of all experts of one linear layer.

    Attributes:
        codes: uint8 ``[experts, out_features, in_features / 2]``, the low nibble is the even
            in_feature; int4 in two's complement or E2M1.
        scale: what multiplies a code. int4: float32 ``[experts, out_features]`` (group_size -1) or
            ``[experts, out_features, in_features / group_size]``. mxfp4: uint8 E8M0 (value
            ``2^(byte - 127)``) ``[experts, out_features, in_features / 32]``.
        weight_format: "int4" or "mxfp4".
        group_size: weights along in_features that share a scale; -1 one per output channel.
        scale_dtype: type in which int4 group scales are packed. "bfloat16" asks for scales that
            are bfloat16 numbers, held as float32.

    Raises:
        ValueError: an array has another type or shape than the format asks for, a scale is not
            finite (E8M0: 0xFF), or is no bfloat16 number where those are promised.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[Any]
    weight_format: WeightFormat = "int4"
    group_size: int = -1
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.codes, np.ndarray) or self.codes.ndim != 3:
            got = getattr(self.codes, "shape", type(self.codes).__name__)
            raise ValueError(f"codes: expected a numpy array [experts, out, in / 2], got {got}")
        check_array("codes", self.codes, np.uint8, self.codes.shape)
        group_size = check_group_size(self.weight_format, self.group_size, self.in_features)
        object.__setattr__(self, "group_size", group_size)
        check_choice("scale_dtype", self.scale_dtype, ScaleDtype)
        self._check_scale()

    def _check_scale(self) -> None:
        shape: tuple[int, ...] = (self.experts, self.out_features)
        if self.group_size != -1:
            shape += (self.in_features // self.group_size,)
        if self.weight_format == "mxfp4":
            check_array("scale", self.scale, np.uint8, shape)
            self._refuse(self.scale == E8M0_NAN, "E8M0 bytes of 0..254", "0xFF, which is NaN")
            return
        check_array("scale", self.scale, np.float32, shape)
        self._refuse(~np.isfinite(self.scale), "finite numbers", "NaN or infinity")
        if self.scale_dtype == "bfloat16":
            if self.group_size == -1:
                raise ValueError("scale_dtype: expected float32 with group_size -1, got bfloat16")
            rounded = round_to_bfloat16(self.scale)
            self._refuse(rounded != self.scale, "bfloat16 numbers", "others")

    def _refuse(self, wrong: NDArray[np.bool_], expected: str, got: str) -> None:
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(f"scale: expected {expected}, got {got} at {place}")

    @property
    def experts(self) -> int:
        return int(self.codes.shape[0])

    @property
    def out_features(self) -> int:
        return int(self.codes.shape[1])

    @property
    def in_features(self) -> int:
        return int(self.codes.shape[2]) * 2
