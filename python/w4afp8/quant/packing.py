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
"""Quantised weights to the tensors that w4afp8.ops.group_gemm reads, and back, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.quant.bfloat16 import bfloat16_values
from w4afp8.quant.mxfp4 import E8M0_BIAS
from w4afp8.quant.weights import QuantizedWeight, WeightFormat, check_type

LARGEST_RELATIVE = 254  # byte of the largest group of a channel
STEPS_PER_K_BLOCK = 4  # groups of 32 in a k block of 128


def packed_shape(out_features: int, in_features: int) -> list[int]:
    """``[padded_out, padded_in / 2]`` of a packed weight: both padded to 64."""
    return [-(-out_features // 64) * 64, -(-in_features // 64) * 32]


def k_blocks_of(in_features: int) -> int:
    """K blocks of 128 in_features, rounded up: words of MXFP4's ``group_scale`` in a channel."""
    return -(-in_features // 128)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """The weight operands of `w4afp8.ops.group_gemm`. Layouts: docs/formats.md.

    Attributes:
        weight: uint8 ``[experts, padded_out, padded_in / 2]``.
        weight_scale: float32 ``[experts, out_features]``.
        group_scale: None (int4 per channel); float32 or bfloat16
            ``[experts, in_features / group_size, out_features]`` (int4 groups); uint8
            ``[experts, in_features / 128 rounded up, out_features, 4]`` (mxfp4).
        weight_format: "int4" or "mxfp4".
        group_size: -1, or weights along in_features that share a scale.
        out_features: without the padding.
        in_features: without the padding.
    """

    weight: paddle.Tensor
    weight_scale: paddle.Tensor
    group_scale: paddle.Tensor | None
    weight_format: WeightFormat
    group_size: int
    out_features: int
    in_features: int


def pack(weight: QuantizedWeight, *, place: Any = None) -> PackedWeight:
    """Packs quantised weights for the operators.

    Args:
        weight: quantised weights on the host.
        place: where the tensors shall be (they are packed there); None for Paddle's current device.

    Returns:
        PackedWeight: paddle tensors.

    Raises:
        ValueError: it is no QuantizedWeight, or the operators refuse the shapes.

    Examples:
        >>> import paddle
        >>> from w4afp8.quant import pack, quantize
        >>> packed = pack(quantize(paddle.randn([2, 96, 160]), weight_format="mxfp4"))
        >>> list(packed.weight.shape), list(packed.group_scale.shape)
        ([2, 128, 96], [2, 2, 96, 4])
    """
    check_type("weight", weight, QuantizedWeight)
    weight_scale, group_scale = _pack_scales(weight)
    codes = _tensor(weight.codes, place)
    packed_groups = None
    if group_scale is not None:
        packed_groups = _tensor(group_scale, paddle.CPUPlace())
        if weight.scale_dtype == "bfloat16":
            packed_groups = packed_groups.astype("bfloat16")
        packed_groups = packed_groups.to(codes.place)
    return PackedWeight(
        weight=ops.pack_weight(codes, weight_format=weight.weight_format),
        weight_scale=_tensor(weight_scale, place),
        group_scale=packed_groups,
        weight_format=weight.weight_format,
        group_size=weight.group_size,
        out_features=weight.out_features,
        in_features=weight.in_features,
    )


def unpack(packed: PackedWeight) -> QuantizedWeight:
    """The reverse of `pack`.

    Args:
        packed: as `pack` made it. A weight scale into which something else was folded (int4 groups:
            not 1; mxfp4: no power of two) cannot be taken apart.

    Returns:
        QuantizedWeight: the same codes and scales that were packed, bit for bit.

    Raises:
        ValueError: it is no PackedWeight, or something was folded into the weight scale.

    Examples:
        >>> import paddle
        >>> from w4afp8.quant import pack, quantize, unpack
        >>> quantized = quantize(paddle.randn([2, 96, 160]), group_size=32)
        >>> bool((unpack(pack(quantized)).codes == quantized.codes).all())
        True
    """
    check_type("packed", packed, PackedWeight)
    codes = ops.unpack_weight(
        packed.weight,
        weight_format=packed.weight_format,
        out_features=packed.out_features,
        in_features=packed.in_features,
    )
    weight_scale = _array(packed.weight_scale)
    return QuantizedWeight(
        codes=_array(codes),
        scale=_unpack_scale(packed, weight_scale),
        weight_format=packed.weight_format,
        group_size=packed.group_size,
        scale_dtype=(
            "bfloat16"
            if packed.group_scale is not None and packed.group_scale.dtype == paddle.bfloat16
            else "float32"
        ),
    )


def _pack_scales(weight: QuantizedWeight) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """`weight_scale` and `group_scale` as the kernel reads them."""
    if weight.weight_format == "mxfp4":
        return pack_e8m0(weight.scale)
    if weight.group_size == -1:
        return weight.scale, None
    ones = np.ones((weight.experts, weight.out_features), dtype=np.float32)
    return ones, np.ascontiguousarray(weight.scale.transpose(0, 2, 1))


def _unpack_scale(packed: PackedWeight, weight_scale: NDArray[Any]) -> NDArray[Any]:
    if packed.group_scale is None:
        return weight_scale
    if packed.weight_format == "mxfp4":
        return unpack_e8m0(weight_scale, _array(packed.group_scale), packed.in_features)
    if (weight_scale != 1).any():
        raise ValueError("weight_scale: expected ones, got other factors folded in")
    groups = packed.group_scale
    values = _array(groups)
    if groups.dtype == paddle.bfloat16:
        values = bfloat16_values(values)
    return np.ascontiguousarray(values.transpose(0, 2, 1))


def pack_e8m0(scale: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Makes E8M0 scales relative to the largest of each output channel.

    Args:
        scale: E8M0 bytes of 0..254 ``[experts, out, groups]``.

    Returns:
        float32 ``[experts, out]``, ``2^(largest - 127)``, and uint8
        ``[experts, ceil(groups / 4), out, 4]``, ``254 + byte - largest``, 254 in the padding.
    """
    experts, out, groups = scale.shape
    largest = scale.max(axis=2).astype(np.int32)
    k_blocks = k_blocks_of(32 * groups)
    padded = (experts, out, k_blocks * STEPS_PER_K_BLOCK)
    relative = np.full(padded, LARGEST_RELATIVE, dtype=np.uint8)
    relative[..., :groups] = LARGEST_RELATIVE + scale.astype(np.int32) - largest[..., None]
    blocks = relative.reshape(experts, out, k_blocks, STEPS_PER_K_BLOCK).transpose(0, 2, 1, 3)
    return np.ldexp(np.float32(1), largest - E8M0_BIAS), np.ascontiguousarray(blocks)


def unpack_e8m0(
    weight_scale: NDArray[np.float32], relative: NDArray[np.uint8], in_features: int
) -> NDArray[np.uint8]:
    """The reverse of `pack_e8m0`: E8M0 bytes ``[experts, out, in_features / 32]``."""
    mantissa, exponent = np.frexp(weight_scale)
    if (mantissa != 0.5).any():
        raise ValueError("weight_scale: expected powers of two, got other factors folded in")
    experts, k_blocks, out, steps = relative.shape
    rows = relative.transpose(0, 2, 1, 3).reshape(experts, out, k_blocks * steps)
    largest = exponent[..., None] - 1 + E8M0_BIAS
    absolute = rows[..., : in_features // 32].astype(np.int32) + largest - LARGEST_RELATIVE
    return absolute.astype(np.uint8)


def _tensor(array: NDArray[Any], place: Any) -> paddle.Tensor:
    return paddle.to_tensor(np.ascontiguousarray(array), place=place)


def _array(tensor: paddle.Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.cpu().numpy())
