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
"""What packed weights in a state dict are: their bytes alone do not tell.

int4 and mxfp4 have packed weights of one type and shape, and so have in_features of 96 and 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import paddle
from paddle import Tensor

from w4afp8.quant import WeightFormat

_VERSION = 1  # of the packed order of docs/formats.md
_FORMATS = get_args(WeightFormat)


def format_record(
    weight_format: WeightFormat, group_size: int, experts: int, out_features: int, in_features: int
) -> tuple[int, ...]:
    """Six integers: version of the layout, index of the format, and the other arguments."""
    sizes = (experts, out_features, in_features)
    return (_VERSION, _FORMATS.index(weight_format), group_size, *sizes)


def record_tensor(record: Sequence[int]) -> Tensor:
    """The record as a state dict holds it: int32 ``[6]``."""
    return paddle.to_tensor(list(record), dtype="int32")


def check_record(name: str, got: Sequence[int], expected: Sequence[int]) -> None:
    """Raises ValueError, in words, unless both records are equal."""
    if tuple(got) != tuple(expected):
        raise ValueError(f"{name}: expected {_in_words(expected)}, got {_in_words(got)}")


def _in_words(record: Sequence[int]) -> str:
    version, form, group_size, experts, out_features, in_features = record
    name = _FORMATS[form] if 0 <= form < len(_FORMATS) else f"format {form}"
    return (
        f"{name} with group size {group_size}, weights [{experts}, {out_features}, {in_features}], "
        f"layout {version}"
    )
