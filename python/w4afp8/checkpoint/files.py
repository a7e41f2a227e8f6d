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
"""The tensors of a safetensors file, or of a folder of shards, by name and as lazy views."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.header import MAX_HEADER_BYTES, TensorInfo, parse_json, read_header

INDEX_NAME = "model.safetensors.index.json"
# numpy types of the views; floats that numpy lacks come as their bits.
_VIEWS = {
    "BOOL": np.uint8,
    "U8": np.uint8,
    "I8": np.int8,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "F8_E8M0": np.uint8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "BF16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}


class SafetensorsFiles:
    """A safetensors file, or a folder of shards, whose headers have been checked.

    Opening reads the headers only; tensors are mapped when they are viewed.

    Args:
        path: a ``.safetensors`` file, or a folder that holds such files. Where the folder has a
            ``model.safetensors.index.json``, the files that it names.

    Attributes:
        path: as given.
        files: the safetensors files.
        tensors: the tensors of all files by name.
        metadata: of each file.

    Raises:
        CheckpointError: a file is missing, is no safetensors file or has an impossible header; a
            tensor is in two files or not where the index says.

    Examples:
        >>> import numpy as np, tempfile
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"w": np.ones([2, 3], np.float32)}, f"{folder}/model.safetensors")
        ...     files = SafetensorsFiles(folder)
        ...     files.tensors["w"].shape, float(files.view("w").sum())
        ((2, 3), 6.0)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = _read_index(self.path)
        self.files = _find_files(self.path, index)
        self._sizes: dict[Path, int] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        tensors: dict[str, TensorInfo] = {}
        metadata: dict[Path, Mapping[str, str]] = {}
        for file in self.files:
            header = read_header(file)
            for name in header.tensors.keys() & tensors.keys():
                raise CheckpointError(
                    file, f"expected it once, got it in {tensors[name].file} too", tensor=name
                )
            tensors |= header.tensors
            metadata[file] = MappingProxyType(header.metadata)
            self._sizes[file] = header.file_bytes
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self.metadata: Mapping[Path, Mapping[str, str]] = MappingProxyType(metadata)
        _check_index(self.path, index, self.tensors)

    def view(self, name: str) -> NDArray[Any]:
        """A read-only array over the mapped file: nothing is read until it is used.

        Args:
            name: of a tensor.

        Returns:
            The tensor in its own shape; bfloat16 as uint16 bits, FP8 and BOOL as uint8.

        Raises:
            CheckpointError: there is no such tensor, it has no elements, numpy has no type of its
                width, or the file has changed since it was opened.
        """
        info = self.info(name)
        dtype = _VIEWS.get(info.dtype)
        if dtype is None:
            raise self.error(name, f"expected a dtype of whole bytes, got {info.dtype}")
        if info.nbytes == 0:
            raise self.error(name, f"expected elements, got none: shape {list(info.shape)}")
        count = info.nbytes // np.dtype(dtype).itemsize
        array = np.frombuffer(self._map(info.file), dtype, count, info.offset)
        return array.reshape(info.shape)

    def info(self, name: str) -> TensorInfo:
        """Where a tensor is, and what.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self.tensors:
            raise CheckpointError(self.path, "expected this tensor, got none", tensor=name)
        return self.tensors[name]

    def expect(
        self, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]
    ) -> TensorInfo:
        """Checks a tensor's type and shape, from the header alone.

        Args:
            name: of the tensor.
            dtypes: the types it may have, as safetensors spells them.
            shape: what it must be; None for a dimension of any size but 0.

        Raises:
            CheckpointError: it is missing, or of another type or shape.
        """
        info = self.info(name)
        if info.dtype not in dtypes:
            raise self.error(name, f"expected {' or '.join(dtypes)}, got {info.dtype}")
        fits = len(info.shape) == len(shape) and all(
            got > 0 if want is None else got == want
            for got, want in zip(info.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.error(name, f"expected shape [{wanted}], got {list(info.shape)}")
        return info

    def release(self) -> None:
        """Gives the pages that were read back to the system; views stay valid, and read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)

    def error(self, name: str, message: str) -> CheckpointError:
        """An error about a tensor, with its file."""
        file = self.tensors[name].file if name in self.tensors else self.path
        return CheckpointError(file, message, tensor=name)

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            try:
                with file.open("rb") as stream:
                    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: the file is empty by now
                raise CheckpointError(file, f"cannot be mapped ({error})") from error
            if len(mapped) != self._sizes[file]:
                raise CheckpointError(
                    file,
                    f"expected {self._sizes[file]} bytes as it was opened, got {len(mapped)}",
                )
            self._maps[file] = mapped
        return self._maps[file]


def read_json_object(file: Path) -> dict[str, Any]:
    """A small JSON file that holds an object: an index, a config.

    Raises:
        CheckpointError: it cannot be read or holds something else.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_HEADER_BYTES + 1)
    except OSError as error:
        raise CheckpointError(file, f"cannot be read ({error})") from error
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(file, f"expected at most {MAX_HEADER_BYTES} bytes, got more")
    value = parse_json(file, text)
    if not isinstance(value, dict):
        raise CheckpointError(file, f"expected a JSON object, got a {type(value).__name__}")
    return value


def _read_index(path: Path) -> dict[str, str] | None:
    """Which tensor is in which file; None where there is no index."""
    file = path / INDEX_NAME
    if not file.is_file():
        return None
    index = read_json_object(file).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(file, "weight_map: expected an object of file names, got none")
    for name, shard in index.items():
        # A shard lies beside its index: nothing outside the folder is ever opened. Names longer
        # than file systems have would raise OSError there.
        if not isinstance(shard, str) or Path(shard).name != shard or not len(shard) < 64:
            raise CheckpointError(file, f"expected a file name, got {shard!r:.80}", tensor=name)
    return index


def _find_files(path: Path, index: dict[str, str] | None) -> tuple[Path, ...]:
    if index is not None:
        for name, shard in index.items():
            if not (path / shard).is_file():
                message = f"expected the file {shard!r} beside the index, got none"
                raise CheckpointError(path / INDEX_NAME, message, tensor=name)
        return tuple(path / shard for shard in sorted(set(index.values())))
    if path.is_dir():
        files = tuple(sorted(file for file in path.glob("*.safetensors") if file.is_file()))
        if not files:
            raise CheckpointError(path, "expected .safetensors files (never pickle), got none")
        return files
    if not path.is_file() or path.suffix != ".safetensors":
        raise CheckpointError(path, "expected a .safetensors file or a folder of such, got neither")
    return (path,)


def _check_index(
    path: Path, index: dict[str, str] | None, tensors: Mapping[str, TensorInfo]
) -> None:
    for name, shard in (index or {}).items():
        if name not in tensors or tensors[name].file.name != shard:
            raise CheckpointError(path / shard, "expected it here as the index says", tensor=name)
