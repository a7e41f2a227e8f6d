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
"""What becomes of quantised layers when Paddle converts, moves or loads a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import paddle
from paddle import nn

from w4afp8._checks import dtype_name
from w4afp8.layers.checks import check_same

_ACTIVATION_DTYPES = ("bfloat16", "float16")


def check_activation_dtype(dtype: Any, *, name: str = "dtype") -> str:
    """Checks that `dtype` is one that activations may have.

    Returns:
        "bfloat16" or "float16".

    Raises:
        ValueError: it is another.
    """
    found = dtype_name(dtype)
    if found not in _ACTIVATION_DTYPES:
        raise ValueError(
            f"{name}: expected bfloat16 or float16 (the activations' type; 4-bit weights and their "
            f"scales keep theirs), got {found}"
        )
    return found


class QuantizedLayer(nn.Layer):
    """A layer whose buffers keep their types when a model is converted.

    `to(dtype=...)`, `bfloat16()`, `float16()` and `astype()`, on this layer or on one that holds
    it, change `activation_dtype` and nothing else, or raise ValueError for a type that activations
    cannot have. (Paddle's own conversion would cast packed weights and scales, and ruin them.)
    `astype()` of a layer that holds this one leaves this one as it is, as Paddle never asks it.
    Moving to a device moves all buffers.

    Args:
        dtype: "bfloat16" or "float16".
    """

    def __init__(self, *, dtype: Any) -> None:
        super().__init__()
        self.activation_dtype = check_activation_dtype(dtype)

    def astype(self, dtype: Any = None) -> QuantizedLayer:
        """As `to(dtype=dtype)`."""
        return self.to(dtype=check_activation_dtype(dtype))

    def float16(self, excluded_layers: Any = None) -> QuantizedLayer:
        """As `to(dtype="float16")`, also where Paddle's own layers know no float16."""
        return self.to(dtype="float16")

    def bfloat16(self, excluded_layers: Any = None) -> QuantizedLayer:
        """As `to(dtype="bfloat16")`, also where Paddle's own layers know no bfloat16."""
        return self.to(dtype="bfloat16")

    def set_state_dict(
        self, state_dict: Any, use_structured_name: bool = True
    ) -> tuple[list[str], list[str]]:
        """As Paddle's, but refuses packed weights of another format or size, and other types.

        Paddle itself only warns of tensors of another shape, and leaves them out. Where a model
        that holds this layer is loaded, the layer refuses when it is called.

        Raises:
            ValueError: the state is another layer's; nothing was loaded.
        """
        for path, layer in self.named_sublayers(include_self=True):
            if isinstance(layer, QuantizedLayer):
                layer.check_state(state_dict, f"{path}." if path else "")
        return super().set_state_dict(state_dict, use_structured_name)

    set_dict = set_state_dict
    load_dict = set_state_dict

    def check_state(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Raises ValueError unless what a state holds under `prefix` can be this layer's."""
        for name, own in self._buffers.items():
            given = state_dict.get(prefix + name)
            if own is not None and isinstance(given, paddle.Tensor):
                got, expected = dtype_name(given.dtype), dtype_name(own.dtype)
                check_same(f"state_dict: {prefix}{name}", got, expected)

    def set_activation_dtype(self, dtype: str) -> None:
        """Called with "bfloat16" or "float16" when the layer is converted."""
        self.activation_dtype = dtype

    def _apply(
        self,
        func: Callable[..., Any],
        device: Any,
        dtype: Any,
        blocking: bool | None,
        include_sublayers: bool = True,
    ) -> None:
        """Paddle's hook under every conversion and move of a layer."""
        converted = None if dtype is None else check_activation_dtype(dtype)
        if include_sublayers:
            for layer in self.children():
                layer._apply(func, device, dtype, blocking, include_sublayers)
        super()._apply(func, device, None, blocking, include_sublayers=False)
        if converted is not None:
            with paddle.no_grad():
                self.set_activation_dtype(converted)
