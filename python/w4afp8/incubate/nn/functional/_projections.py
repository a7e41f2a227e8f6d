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
"""The two projections of the experts, from packed tensors as function arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import paddle
from paddle import Tensor

from w4afp8._checks import dtype_name
from w4afp8.layers.operands import Operands, contiguous, multiply, on_place_of
from w4afp8.ops import WeightFormat

Scales: TypeAlias = Tensor | Sequence[Tensor] | None

_EXPECTED = (
    "expected float32 [experts, out] (one scale a channel), float32 or bfloat16 [experts, groups, "
    "out] (int4 groups), or (weight_scale, group_scale) as w4afp8.quant.pack gives them"
)


@dataclass(frozen=True, eq=False)
class Projection:
    """The weight operands of `w4afp8.ops.group_gemm`, by the names they have there.

    Attributes:
        weight: uint8 ``[experts, padded_out, padded_in / 2]``.
        weight_scale: float32 ``[experts, out]``.
        group_scale: None, or the scales of groups.
        bias: None, or ``[experts, out]`` of the output's type.
        weight_format: "int4" or "mxfp4".
        group_size: -1, or weights along in_features that share a scale.
    """

    weight: Tensor
    weight_scale: Tensor
    group_scale: Tensor | None = None
    bias: Tensor | None = None
    weight_format: WeightFormat = "int4"
    group_size: int = -1

    @property
    def operands(self) -> Operands:
        """What `w4afp8.layers.experts.run_experts` wants to know of the projection."""
        tensors = (self.weight, self.weight_scale, self.group_scale, self.bias)
        return *tensors, self.weight_format, self.group_size, "default"

    def __call__(
        self,
        x: Tensor,
        tokens: Tensor,
        x_scale: Tensor | None,
        *,
        out_dtype: str,
        token_padding: int = 0,
        max_tokens: int = -1,
    ) -> Tensor:
        """Multiplies the tokens of every expert, see `w4afp8.ops.group_gemm`."""
        return multiply(
            *(self.operands, x, tokens, x_scale),
            token_padding=token_padding,
            max_tokens=max_tokens,
            out_dtype=out_dtype,
        )


def projection(
    name: str, weight: Tensor, scale: Scales, in_features: int, *, bias: Tensor | None, dtype: str
) -> Projection:
    """Reads the format from the scales' types and shapes.

    Args:
        name: of the projection, for errors.
        weight: packed, uint8 ``[experts, padded_out, padded_in / 2]``.
        scale: see `w4afp8.incubate.nn.functional.moe_ffn`.
        in_features: without padding.
        bias: None, ``[experts, out]`` or ``[experts, 1, out]``; cast to `dtype`.
        dtype: of the output.

    Raises:
        ValueError: the scales are none of the known kinds.
    """
    if isinstance(scale, (list, tuple)) and len(scale) == 2:
        weight_scale, group_scale = scale
    else:
        weight_scale, group_scale = _split(name, scale)
    weight_format: WeightFormat = "int4"
    group_size = -1
    if group_scale is not None and dtype_name(group_scale.dtype) == "uint8":
        weight_format = "mxfp4"
    elif group_scale is not None:
        group_size = _group_size(name, group_scale, in_features)
    if bias is not None:
        bias = contiguous(bias.reshape(weight_scale.shape).astype(dtype))
    return Projection(weight, weight_scale, group_scale, bias, weight_format, group_size)


def _split(name: str, scale: Any) -> tuple[Tensor, Tensor | None]:
    ndim = getattr(scale, "ndim", None)
    if ndim == 2:
        return scale, None
    if ndim == 3:
        experts, _, out = scale.shape
        return on_place_of(scale, paddle.ones([experts, out], dtype="float32")), scale
    got = "None" if scale is None else f"{type(scale).__name__} of {ndim} dimensions"
    raise ValueError(f"{name}_scale: {_EXPECTED}, got {got}")


def _group_size(name: str, group_scale: Tensor, in_features: int) -> int:
    groups = group_scale.shape[1] if group_scale.ndim == 3 else 0
    if groups <= 0 or in_features % groups:
        raise ValueError(
            f"{name}_scale: expected [experts, groups, out] whose groups divide in_features "
            f"{in_features}, got {list(group_scale.shape)}"
        )
    return in_features // groups
