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
"""Float weights to 4 bits and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from w4afp8._checks import is_float
from w4afp8.quant import int4, mxfp4
from w4afp8.quant.codes import CODE_VALUES, join_nibbles, split_nibbles
from w4afp8.quant.weights import (
    QuantizedWeight,
    ScaleDtype,
    WeightFormat,
    check_choice,
    check_group_size,
    check_type,
)


def quantize(
    weight: Any,
    *,
    weight_format: WeightFormat = "int4",
    group_size: int = -1,
    rounding: int4.Rounding = "absmax/7",
    scale_dtype: ScaleDtype = "float32",
) -> QuantizedWeight:
    """Rounds float weights to 4 bits.

    Args:
        weight: ``[experts, out_features, in_features]``, a paddle.Tensor or a numpy array of
            floats; in_features is a multiple of 32.
        weight_format: "int4" or "mxfp4" (docs/formats.md).
        group_size: int4: -1 for one scale per output channel, or 32, 64, a multiple of 128.
            mxfp4: 32 (or -1, which means the same).
        rounding: rule for the scale of int4: "absmax/7", "absmax/7.5" or "mse" (the scale with the
            least squared error; takes some 25 times longer). mxfp4 knows only the default.
        scale_dtype: "bfloat16" rounds the scales of int4 groups to bfloat16 before the codes are
            chosen, so that packing halves their bytes.

    Returns:
        QuantizedWeight: numpy arrays in checkpoint order.

    Raises:
        ValueError: wrong shape or type, NaN or infinity among the weights, an unknown format or
            rule, or a group size that in_features does not allow.

    Examples:
        >>> import numpy as np
        >>> from w4afp8.quant import quantize
        >>> q = quantize(np.ones([2, 8, 64], np.float32), weight_format="int4", group_size=32)
        >>> q.codes.shape, q.scale.shape
        ((2, 8, 32), (2, 8, 2))
    """
    experts = _as_array(weight)
    group_size = check_group_size(weight_format, group_size, experts.shape[2])
    check_choice("rounding", rounding, int4.Rounding)
    check_choice("scale_dtype", scale_dtype, ScaleDtype)
    if weight_format == "mxfp4" and rounding != "absmax/7":
        raise ValueError(f"rounding: expected the default with mxfp4, got {rounding!r}")

    pairs, scales = [], []
    for expert in experts:  # one at a time bounds the memory for intermediate results
        codes, scale = _quantize_expert(
            _as_float32(expert), weight_format, group_size, rounding, scale_dtype
        )
        pairs.append(join_nibbles(codes))
        scales.append(scale)
    return QuantizedWeight(
        codes=np.stack(pairs),
        scale=np.stack(scales),
        weight_format=weight_format,
        group_size=group_size,
        scale_dtype=scale_dtype,
    )


def dequantize(weight: QuantizedWeight) -> NDArray[np.float32]:
    """The values that the 4-bit weights stand for.

    Args:
        weight: quantised weights.

    Returns:
        float32 ``[experts, out_features, in_features]``: exact but for one rounding of the product
        of an int4 code and its scale.

    Raises:
        ValueError: it is no QuantizedWeight.

    Examples:
        >>> import numpy as np
        >>> from w4afp8.quant import dequantize, quantize
        >>> weight = np.linspace(-7, 7, 32, dtype=np.float32).reshape(1, 1, 32)
        >>> float(abs(dequantize(quantize(weight)) - weight).max()) <= 0.5  # half a step
        True
    """
    check_type("weight", weight, QuantizedWeight)
    values = CODE_VALUES[weight.weight_format][split_nibbles(weight.codes)]
    scale = weight.scale
    if weight.weight_format == "mxfp4":
        scale = np.ldexp(np.float32(1), scale.astype(np.int32) - mxfp4.E8M0_BIAS)
    shape = values.shape
    grouped = values.reshape(*shape[:2], -1, weight.group_size) if scale.ndim == 3 else values
    return (grouped * scale[..., None]).reshape(shape)


def _quantize_expert(
    weight: NDArray[np.float32],
    weight_format: WeightFormat,
    group_size: int,
    rounding: int4.Rounding,
    scale_dtype: ScaleDtype,
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    groups = weight if group_size == -1 else weight.reshape(weight.shape[0], -1, group_size)
    codes, scale = (
        mxfp4.quantize_groups(groups)
        if weight_format == "mxfp4"
        else int4.quantize_groups(groups, rounding, scale_dtype)
    )
    return codes.reshape(weight.shape), scale


def _as_array(weight: Any) -> Any:
    if hasattr(weight, "numpy"):  # a paddle.Tensor; its bfloat16 has no numpy type
        weight = weight.astype("float32").numpy()
    array = np.asarray(weight)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(
            f"weight: expected [experts, out_features, in_features], got {list(array.shape)}"
        )
    if not is_float(array.dtype):
        raise ValueError(f"weight: expected floats, got {array.dtype}")
    return array


def _as_float32(expert: NDArray[Any]) -> NDArray[np.float32]:
    values = np.ascontiguousarray(expert, dtype=np.float32)
    if not np.isfinite(values).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"weight: expected finite numbers, got {values[place]} at {place}")
    return values
