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
"""Writes a safetensors file piece by piece.

The safetensors package wants all tensors of a file in memory. Here one row of one tensor is enough,
and every tensor begins where the operators want it, so that a memory map can be used as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

# safetensors name, and the numpy type that holds its bits (numpy has no bfloat16).
STORED_TYPES: dict[str, Any] = {
    "U8": np.uint8,
    "I32": np.int32,
    "I64": np.int64,
    "BF16": np.uint16,
    "F32": np.float32,
}
ALIGNMENT = 64  # a cache line; the operators want 16


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a file shall hold.

    Attributes:
        dtype: a key of `STORED_TYPES`.
        shape: any shape of at least one dimension.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(STORED_TYPES[self.dtype]).itemsize


class SafetensorsWriter:
    """A safetensors file whose tensors are known by name and shape before their content is.

    Args:
        path: the file to write; it must not exist.
        tensors: name to type and shape.
        metadata: strings for the header.

    Examples:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> with SafetensorsWriter(path, {"x": TensorSpec("F32", (2, 3))}, {}) as file:
        ...     file.write_row("x", 0, np.zeros(3, np.float32))
        ...     file.write_row("x", 1, np.ones(3, np.float32))
        >>> path.stat().st_size % 64
        24
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str]
    ) -> None:
        self._tensors = dict(tensors)
        self._offsets, size = _place(self._tensors)
        header = _header(self._tensors, self._offsets, metadata)
        self._start = len(header)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self._write_at(0, header)
            os.ftruncate(self._file, self._start + size)
        except OSError:
            os.close(self._file)
            raise

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Writes a whole tensor."""
        spec = self._tensors[name]
        self._write_array(name, spec, spec.shape, 0, array)

    def write_row(self, name: str, row: int, array: NDArray[Any]) -> None:
        """Writes ``tensor[row]``.

        Raises:
            ValueError: the array is of another type or shape than the tensor's rows.
        """
        spec = self._tensors[name]
        size = spec.nbytes // spec.shape[0]
        self._write_array(name, spec, spec.shape[1:], row * size, array)

    def replace_metadata(self, metadata: Mapping[str, str]) -> None:
        """Writes other strings into the header.

        Raises:
            ValueError: they are of another length, and the tensors' places are fixed.
        """
        header = _header(self._tensors, self._offsets, metadata)
        if len(header) != self._start:
            raise ValueError(f"metadata: expected {self._start} bytes, got {len(header)}")
        self._write_at(0, header)

    def _write_array(
        self, name: str, spec: TensorSpec, shape: tuple[int, ...], at: int, array: NDArray[Any]
    ) -> None:
        dtype = np.dtype(STORED_TYPES[spec.dtype])
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{name}: expected {dtype} {list(shape)}, got {array.dtype} {list(array.shape)}"
            )
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._write_at(self._start + self._offsets[name] + at, data)

    def _write_at(self, position: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:  # one call writes 2 GiB at most
            written = os.pwrite(self._file, view, position)
            view, position = view[written:], position + written

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)


def _place(tensors: Mapping[str, TensorSpec]) -> tuple[dict[str, int], int]:
    """Offset of each tensor, and the end of the last.

    The format allows no gaps. In the order of the powers of two that divide their sizes each tensor
    begins at a multiple of its own power.
    """
    offsets, end = {}, 0
    for name in sorted(tensors, key=lambda name: -_power_of_two_in(tensors[name].nbytes)):
        offsets[name] = end
        end += tensors[name].nbytes
    return offsets, end


def _power_of_two_in(size: int) -> int:
    return min(size & -size, ALIGNMENT)


def _header(
    tensors: Mapping[str, TensorSpec], offsets: Mapping[str, int], metadata: Mapping[str, str]
) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name in sorted(offsets, key=lambda name: offsets[name]):
        spec, begin = tensors[name], offsets[name]
        entries[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [begin, begin + spec.nbytes],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)  # the format allows spaces at the end
    return len(text).to_bytes(8, "little") + text
