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
"""The three forms in which checkpoints hold ``kv_b_proj``, as MXFP4 along lora.

``kv_b_proj`` is ``[heads * (nope + v), lora]``: for each head first the nope rows of W_K, then the
v rows of W_V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from w4afp8._checks import check_range, dtype_name, is_float
from w4afp8.quant.quantize import dequantize, quantize
from w4afp8.quant.weights import MXFP4_GROUP_SIZE, QuantizedWeight

FP8_BLOCK = (128, 128)
# The largest magnitude of E2M1 is 6: 6 * 2^(253 - 127) is beyond bfloat16 (and float32).
LARGEST_SCALE = 252


@dataclass(frozen=True)
class UpError:
    """Relative errors ``|ours - source| / |source|`` in the Euclidean norm; 0 where bit for bit.

    Attributes:
        k: of W_K.
        v: of W_V.
    """

    k: float = 0.0
    v: float = 0.0


@dataclass(frozen=True, eq=False)
class Source:
    """One ``kv_b_proj``.

    Attributes:
        quantized: ``[1, heads * (nope + v), lora]``, mxfp4.
        values: what the checkpoint holds, float32 ``[heads * (nope + v), lora]``.
        exact: whether `quantized` is the checkpoint's own codes and scales.
    """

    quantized: QuantizedWeight
    values: NDArray[np.float32]
    exact: bool


def read_source(weight: Any, scale: Any, block: tuple[int, int]) -> Source:
    """Reads MXFP4 as it is, and rounds floats and FP8 blocks once, along lora.

    Args:
        weight: uint8 ``[rows, lora / 2]`` beside E8M0; floats ``[rows, lora]`` without a scale;
            float8_e4m3fn (or its bits, uint8) ``[rows, lora]`` beside float scales.
        scale: E8M0 ``[rows, lora / 32]``, as uint8 or as ml_dtypes.float8_e8m0fnu; None; or floats
            ``[rows / block, lora / block]``.
        block: rows and columns that share a scale of FP8.

    Raises:
        ValueError: types or shapes that go together in none of these ways; FP8 without a scale;
            NaN, infinity, a scale that bfloat16 cannot hold.
    """
    block = _check_block(block)
    weight_array, scale_array = _host_array("weight", weight), None
    if scale is not None:
        scale_array = _host_array("scale", scale)
    _check_matrix("weight", weight_array)
    if scale_array is None:
        _check_unscaled(weight)
        return _from_floats(_floats("weight", weight_array))
    _check_matrix("scale", scale_array)
    if weight_array.dtype == np.uint8 and dtype_name(scale_array.dtype) == "float8_e8m0fnu":
        scale_array = scale_array.view(np.uint8)
    if scale_array.dtype == np.uint8:
        return _from_mxfp4(weight_array, scale_array)
    return _from_floats(_scaled_blocks(weight_array, _floats("scale", scale_array), block))


def _from_mxfp4(codes: NDArray[Any], scale: NDArray[np.uint8]) -> Source:
    if codes.dtype != np.uint8:
        raise ValueError(f"weight: expected uint8 beside E8M0 scales, got {codes.dtype}")
    _check_lora(2 * codes.shape[1])
    quantized = QuantizedWeight(
        np.ascontiguousarray(codes)[None], np.ascontiguousarray(scale)[None], "mxfp4"
    )
    too_large = np.argwhere(scale > LARGEST_SCALE)
    if len(too_large):
        row, group = (int(i) for i in too_large[0])
        raise ValueError(
            f"scale: expected E8M0 bytes of 0..{LARGEST_SCALE} (beyond, 6 * 2^(byte - 127) is no "
            f"bfloat16 number), got {int(scale[row, group])} at {(row, group)}"
        )
    return Source(quantized, dequantize(quantized)[0], exact=True)


def _from_floats(values: NDArray[np.float32]) -> Source:
    _check_lora(values.shape[1])
    return Source(quantize(values[None], weight_format="mxfp4"), values, exact=False)


def _scaled_blocks(
    weight: NDArray[Any], scale: NDArray[np.float32], block: tuple[int, int]
) -> NDArray[np.float32]:
    if weight.dtype == np.uint8:  # the bits, as numpy has no such type
        bits = paddle.to_tensor(np.ascontiguousarray(weight), place=paddle.CPUPlace())
        weight = _host_array("weight", bits.view(paddle.float8_e4m3fn))
    values = _floats("weight", weight)
    expected = tuple(-(-size // step) for size, step in zip(values.shape, block, strict=True))
    if scale.shape != expected:
        raise ValueError(
            f"scale: expected {list(expected)} for blocks of {list(block)}, got {list(scale.shape)}"
        )
    rows, columns = (
        np.arange(size) // step for size, step in zip(values.shape, block, strict=True)
    )
    with np.errstate(over="ignore"):  # infinity is refused later, by name
        return values * scale[rows][:, columns]


def _check_block(block: Any) -> tuple[int, int]:
    """The rows and columns of a block as ints."""
    try:
        rows, columns = block
    except (TypeError, ValueError):
        raise ValueError(f"block: expected two positive ints, got {block!r:.80}") from None
    return check_range("block", rows, 1, 2**31 - 1), check_range("block", columns, 1, 2**31 - 1)


def _check_unscaled(weight: Any) -> None:
    """Refuses FP8, and smaller floats: without their scales they are another matrix."""
    name = dtype_name(weight.dtype)
    if name.startswith(("float8", "float6", "float4")):
        raise ValueError(
            f"scale: expected the scales of the blocks (weight_scale_inv), as weight is {name}, "
            "got None"
        )


def _host_array(name: str, value: Any) -> NDArray[Any]:
    """A numpy array; floats of Paddle, whose types numpy may lack, come as float32, exactly."""
    if isinstance(value, paddle.Tensor):
        host = value.cpu()
        return (host.astype("float32") if is_float(host.dtype) else host).numpy()
    if isinstance(value, np.ndarray):
        return value
    raise ValueError(
        f"{name}: expected a paddle.Tensor or a numpy array, got {type(value).__name__}"
    )


def _floats(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    if not is_float(array.dtype):
        raise ValueError(f"{name}: expected floats, got {array.dtype}")
    values = np.ascontiguousarray(array, dtype=np.float32)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise ValueError(f"{name}: expected finite numbers, got {values[place]} at {place}")
    return values


def _check_matrix(name: str, array: NDArray[Any]) -> None:
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name}: expected a matrix, got the shape {list(array.shape)}")


def _check_lora(lora: int) -> None:
    if lora % MXFP4_GROUP_SIZE:
        raise ValueError(f"weight: expected lora in multiples of {MXFP4_GROUP_SIZE}, got {lora}")
