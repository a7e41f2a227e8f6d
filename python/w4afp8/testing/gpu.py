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
"""Paddle tensors on a GPU beside PyTorch, which times them and checks their numbers.

Both share one process, one stream and the same bytes. PyTorch is imported only where it is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import paddle
from paddle.base import core

# Type strings that PyTorch reads of ``__cuda_array_interface__``; integers of the same width stand
# in for the types that the interface does not know.
_TYPE_STRINGS = {
    "uint8": "|u1",
    "int8": "|i1",
    "float8_e4m3fn": "|u1",
    "bfloat16": "<i2",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "int32": "<i4",
    "int64": "<i8",
}


def gpu_place() -> Any | None:
    """The place of the first GPU, or None where Paddle has none.

    Returns:
        ``CUDAPlace(0)`` under paddlepaddle-gpu, ``CustomPlace("hopper", 0)`` under the CPU wheel
        with a plugin of that device type.
    """
    if paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0:
        return core.CUDAPlace(0)
    if "hopper" in (paddle.device.get_all_custom_device_type() or []):
        return core.CustomPlace("hopper", 0)
    return None


def device_name(place: Any) -> str:
    """Name by which ``paddle.device`` knows a place of :func:`gpu_place`."""
    return "hopper:0" if place.is_custom_place() else "gpu:0"


def paddle_stream(place: Any) -> int:
    """Handle of the CUDA stream on which Paddle runs operators on ``place`` now."""
    base: Any = paddle.device.current_stream(device_name(place)).stream_base
    return int(base.raw_stream if hasattr(base, "raw_stream") else base.cuda_stream)


@contextlib.contextmanager
def torch_on_paddle_stream(place: Any) -> Iterator[Any]:
    """Makes ``place`` Paddle's current device and its stream PyTorch's current stream.

    Yields:
        torch.cuda.Stream on which both libraries work inside the block, in order.
    """
    import torch

    before = paddle.device.get_device()
    paddle.device.set_device(device_name(place))
    stream = torch.cuda.ExternalStream(paddle_stream(place))
    try:
        with torch.cuda.stream(stream):
            yield stream
    finally:
        paddle.device.set_device(before)


class _Bytes:
    """What PyTorch needs to see the memory of another library's tensor."""

    def __init__(self, pointer: int, shape: tuple[int, ...], type_string: str) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "data": (pointer, False),
            "shape": shape,
            "typestr": type_string,
            "strides": None,
        }


def as_torch(tensor: paddle.Tensor) -> Any:
    """The same memory as a PyTorch tensor, which must not outlive ``tensor``.

    Args:
        tensor: contiguous, on a GPU, of any shape and of a dtype that both libraries know.

    Returns:
        torch.Tensor of the same shape and dtype.
    """
    import torch

    name = str(tensor.dtype).removeprefix("paddle.")
    dtype = getattr(torch, name)
    shape = tuple(tensor.shape)
    if 0 in shape:
        return torch.empty(shape, dtype=dtype, device="cuda")
    memory = _Bytes(tensor.data_ptr(), shape, _TYPE_STRINGS[name])
    return torch.as_tensor(memory, device="cuda").view(dtype)


def from_torch(tensor: Any) -> paddle.Tensor:
    """A copy of a PyTorch tensor, as a Paddle tensor on the current device.

    To be called inside :func:`torch_on_paddle_stream`.
    """
    name: Any = str(tensor.dtype).removeprefix("torch.")
    copy = paddle.empty(list(tensor.shape), dtype=name)
    as_torch(copy).copy_(tensor)
    return copy
