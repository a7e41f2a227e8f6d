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

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import paddle
from paddle import Tensor

from w4afp8.layers.checks import check_same
from w4afp8.layers.precision import QuantizedLayer
from w4afp8.quant import WeightFormat

_VERSION = 2  # of the packed order of docs/formats.md
_FORMATS = get_args(WeightFormat)


class RecordedLayer(QuantizedLayer):
    """A layer whose state dict says what its packed weights are, as the buffer ``format``.

    Loaded records are compared once, where the layer is used or its state is given.
    """

    _record_is_of = "format"  # what errors name

    def keep_record(self, record: Sequence[int]) -> None:
        """The record of the weights that this layer holds."""
        self._record = list(record)
        self.register_buffer("format", record_tensor(record))
        self._record_is_checked = True

    def compare_records(self, name: str, got: Sequence[int], expected: Sequence[int]) -> None:
        """Raises ValueError unless both are equal."""
        check_same(name, list(got), list(expected))

    def _state_dict_impl(self, *args: Any, **kwargs: Any) -> Any:
        """Paddle's way to the tensors of any model's state, the one to load them too."""
        self._record_is_checked = False
        return super()._state_dict_impl(*args, **kwargs)

    def check_state(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        given = state_dict.get(prefix + "format")
        if given is not None:
            name = f"state_dict: {prefix}{self._record_is_of}"
            self.compare_records(name, given.tolist(), self._record)
        super().check_state(state_dict, prefix)

    def check_loaded(self) -> None:
        """Raises ValueError if weights of another format, size or packed order were loaded."""
        if not self._record_is_checked:
            # From the buffers themselves: while a program is traced, attributes have no values.
            record = self._buffers["format"].numpy().tolist()
            name = f"{self._record_is_of}, as it was loaded"
            self.compare_records(name, record, self._record)
            self._record_is_checked = True


def format_record(
    weight_format: WeightFormat, group_size: int, experts: int, out_features: int, in_features: int
) -> tuple[int, ...]:
    """Six integers: version of the layout, index of the format, and the other arguments."""
    sizes = (experts, out_features, in_features)
    return (_VERSION, _FORMATS.index(weight_format), group_size, *sizes)


def record_tensor(record: Sequence[int]) -> Tensor:
    """The record as a state dict holds it, int32."""
    return paddle.to_tensor(list(record), dtype="int32")


def check_record(name: str, got: Sequence[int], expected: Sequence[int]) -> None:
    """Raises ValueError, in words, unless both records are equal."""
    if tuple(got) != tuple(expected):
        advice = "" if got[0] == expected[0] else " (pack or convert the weights again)"
        raise ValueError(f"{name}: expected {_in_words(expected)}, got {_in_words(got)}{advice}")


def _in_words(record: Sequence[int]) -> str:
    version, form, group_size, experts, out_features, in_features = record
    name = _FORMATS[form] if 0 <= form < len(_FORMATS) else f"format {form}"
    return (
        f"{name} with group size {group_size}, weights [{experts}, {out_features}, {in_features}], "
        f"layout {version}"
    )
