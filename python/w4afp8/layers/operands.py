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
"""What users hand to the layers, as the tensors that the layers hold and the operators take."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import paddle
from paddle import Tensor

from w4afp8 import ops
from w4afp8._checks import dtype_name
from w4afp8.layers.checks import check_same
from w4afp8.quant import PackedWeight, QuantizedWeight, ScaleDtype, pack, quantize

Array: TypeAlias = np.ndarray | Tensor
# Of `w4afp8.ops.group_gemm`, and of what runs several of them: weight, weight_scale, group_scale,
# bias, weight_format, group_size, accumulation.
Operands: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Any, int, Any]


def multiply(
    operands: Operands, x: Tensor, tokens: Tensor, x_scale: Tensor | None, **options: Any
) -> Tensor:
    """`w4afp8.ops.group_gemm` with a projection's operands; `options` are its others."""
    weight, weight_scale, group_scale, bias, weight_format, group_size, accumulation = operands
    return ops.group_gemm(
        *(x, weight, weight_scale, tokens),
        group_scale=group_scale,
        x_scale=x_scale,
        bias=bias,
        weight_format=weight_format,
        group_size=group_size,
        accumulation=accumulation,
        **options,
    )


def named_quantize(name: str, weight: Array, **options: Any) -> QuantizedWeight:
    """`quantize` whose errors begin with what the caller calls the weight."""
    try:
        return quantize(weight, **options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def as_packed(name: str, weight: QuantizedWeight | PackedWeight) -> PackedWeight:
    """Packs a weight that is not packed yet; `name` is what an error calls it."""
    if isinstance(weight, PackedWeight):
        return weight
    try:
        return pack(weight)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def scale_dtype_of(weight: PackedWeight) -> ScaleDtype:
    """The type of int4 group scales; "float32" where there are none."""
    groups = weight.group_scale
    return "bfloat16" if groups is not None and groups.dtype == paddle.bfloat16 else "float32"


def as_float32(value: Array) -> Tensor:
    """A float32 tensor of floats that numpy or Paddle holds."""
    if isinstance(value, Tensor):
        return value.astype("float32")
    return paddle.to_tensor(np.ascontiguousarray(value, dtype=np.float32))


def on_place_of(other: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` where `other` is: Paddle's operators may leave a result without elements elsewhere.

    While a program is traced, tensors have no place yet.
    """
    if not paddle.in_dynamic_mode() or tensor.place == other.place:
        return tensor
    return tensor.to(other.place)


def contiguous(tensor: Tensor) -> Tensor:
    """`tensor` as the operators want it; a traced one is always contiguous."""
    return tensor.contiguous() if paddle.in_dynamic_mode() else tensor


def as_rows(x: Tensor) -> Tensor:
    """``[..., features]`` as a contiguous ``[tokens, features]``."""
    return contiguous(x if x.ndim == 2 else x.reshape([-1, x.shape[-1]]))


def rows_like(x: Tensor, shared_output: Tensor) -> Tensor:
    """`as_rows` of what shared experts made of x, checked."""
    check_same("shared_output: shape", list(shared_output.shape), list(x.shape))
    check_same("shared_output: dtype", dtype_name(shared_output.dtype), dtype_name(x.dtype))
    return as_rows(shared_output)


def shape_of(tensor: Tensor) -> Any:
    """The shape of `tensor`, as a tensor while a program is traced and sizes may be unknown."""
    return tensor.shape if paddle.in_dynamic_mode() else paddle.shape(tensor)


def alias(tensor: Tensor) -> Tensor:
    """A contiguous tensor that shares `tensor`'s memory (where that is contiguous), not its fate.

    Paddle moves and converts a layer's tensors in place, and `detach` or a cast to the same type
    give the same tensor: the caller's would move with the layer's.
    """
    return tensor.contiguous().view(tensor.shape)
