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
"""FastDeploy's weights before and after `w4afp8_gemm_weight_convert`.

FastDeploy's converted bytes are an order for its own kernel, and cannot hold -8. Nobody but its
kernel reads them, so the conversion here gives this package's packed bytes instead (what
`w4afp8.ops.pack_weight` gives), in FastDeploy's shapes wherever those have as many bytes: out and
in multiples of 64. Other sizes come padded to these; the operators read the true sizes from the
scales and the activations.
"""

from __future__ import annotations

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from w4afp8 import ops
from w4afp8._checks import dtype_name
from w4afp8.quant.codes import join_nibbles
from w4afp8.quant.packing import packed_shape

_LARGEST_CODE = 15


def w4afp8_gemm_weight_convert(weight: Tensor) -> Tensor:
    """Packs weights for `w4afp8_gemm` and `moe_expert_ffn`.

    Args:
        weight: One of FastDeploy's two forms, told apart by the type.
            Uint8 ``[experts, out, in]``, a code to a byte (its CPU form): all codes
            ``value + 7``, 0 to 14, or all sign and magnitude (``value`` above 0, else
            ``8 - value``), 1 to 15. The first has a 0 somewhere, the second a 15; codes that have
            neither are refused, as nobody can tell them apart.
            Int8 ``[in / 2, out]`` of one expert (its GPU form): two's complement, -8 to 7, the even
            in_feature in the low nibble.
            Out is a multiple of 8, in of 32.

    Returns:
        Packed bytes. Uint8 ``[experts, out, in / 2]`` or int8 ``[in / 2, out]``, with out and in
        padded to 64.

    Raises:
        ValueError: Type or shape is another, or the codes are not of one spelling.

    Examples:
        >>> import paddle
        >>> from w4afp8.fastdeploy import w4afp8_gemm_weight_convert
        >>> w4afp8_gemm_weight_convert(paddle.zeros([2, 64, 128], dtype="uint8")).shape
        paddle.Size([2, 64, 64])
    """
    kind = dtype_name(weight.dtype)
    if kind == "uint8" and weight.ndim == 3:
        return _convert_bytes(weight)
    if kind == "int8" and weight.ndim == 2:
        return _convert_nibbles(weight)
    raise ValueError(
        "weight: expected uint8 [experts, out, in] or int8 [in / 2, out], got "
        f"{kind} {list(weight.shape)}"
    )


def packed_operand(name: str, weight: Tensor, out_features: int, in_features: int) -> Tensor:
    """Converted bytes as `w4afp8.ops.group_gemm` takes them, without a copy.

    Args:
        name: of the argument, for errors.
        weight: uint8 or int8 ``[experts, ..]`` of converted bytes, in any shape.
        out_features: without padding.
        in_features: without padding.

    Returns:
        Uint8 ``[experts, padded_out, padded_in / 2]``.

    Raises:
        ValueError: type or number of bytes is another.
    """
    kind, shape = dtype_name(weight.dtype), list(weight.shape)
    padded = packed_shape(out_features, in_features)
    if kind not in ("uint8", "int8") or len(shape) != 3 or shape[1] * shape[2] != np.prod(padded):
        raise ValueError(
            f"{name}: expected uint8 or int8 of w4afp8_gemm_weight_convert, "
            f"[experts, {padded[0]}, {padded[1]}], got {kind} {shape}"
        )
    with paddle.no_grad():
        return weight.view("uint8").reshape([shape[0], *padded])


def _convert_bytes(weight: Tensor) -> Tensor:
    codes = _twos_complement(weight.numpy())
    pairs = paddle.to_tensor(join_nibbles(codes), place=weight.place)
    return ops.pack_weight(pairs)


def _twos_complement(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if stored.shape[2] % 32 or stored.shape[1] % 8:
        raise ValueError(
            f"weight: expected [experts, 8 * n, 32 * n] codes, got shape {list(stored.shape)}"
        )
    largest = int(stored.max(initial=0))
    has_zero = not stored.all()
    if largest > _LARGEST_CODE or (has_zero and largest == _LARGEST_CODE):
        raise ValueError(
            "weight: expected codes of 0 to 14 (value + 7) or of 1 to 15 (sign and magnitude), got "
            f"{'a 0 and ' if has_zero else ''}{largest}"
        )
    if not has_zero and largest < _LARGEST_CODE:
        raise ValueError(
            "weight: expected a code 0 or 15, which tells the spelling (value + 7, or sign and "
            f"magnitude), got none: codes up to {largest}"
        )
    code = np.arange(16)
    values = code - 7 if has_zero else np.where(code < 8, code, 8 - code)
    return (values & 15).astype(np.uint8)[stored]


def _convert_nibbles(weight: Tensor) -> Tensor:
    if weight.shape[0] % 16 or weight.shape[1] % 8:
        raise ValueError(
            f"weight: expected [16 * n, 8 * n] pairs of codes, got shape {list(weight.shape)}"
        )
    with paddle.no_grad():
        pairs = weight.transpose([1, 0]).contiguous().view("uint8").unsqueeze(0)
        packed = ops.pack_weight(pairs.contiguous())
        padded_out, half_in = packed.shape[1:]
        return packed.view("int8").reshape([half_in, padded_out])
