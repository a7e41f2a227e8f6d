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
"""The header of a safetensors file, checked before anything it claims is believed.

The ``safetensors`` library reads no FP8 or bfloat16 into numpy and names neither file nor tensor in
its errors; the format itself is short (https://github.com/huggingface/safetensors#format): eight
bytes, the length of the header; the header, JSON; the tensors' bytes, without holes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w4afp8.checkpoint.errors import CheckpointError

# As in the library itself: a header is never larger, so a file cannot ask for absurd memory.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8
_LENGTH_BYTES = 8

BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is, and what.

    Attributes:
        file: the safetensors file that holds it.
        dtype: as safetensors spells it: "U8", "I32", "BF16", "F8_E4M3", ...
        shape: its dimensions.
        offset: of its first byte in the file.
        nbytes: its size.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    file_bytes: int


def read_header(file: Path) -> Header:
    """Reads and checks the header of a safetensors file; touches no tensor.

    Args:
        file: an existing file.

    Returns:
        Header: its tensors, in the order of their bytes, and its metadata.

    Raises:
        CheckpointError: the file is truncated or no safetensors file; a size, offset, type or shape
            is not possible; tensors overlap or leave holes; a name occurs twice.
    """
    try:
        file_bytes = file.stat().st_size
        with file.open("rb") as stream:
            length = _header_length(file, stream.read(_LENGTH_BYTES), file_bytes)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(file, f"cannot be read ({error})") from error
    entries = _parse(file, text)
    metadata = _checked_metadata(file, entries.pop("__metadata__", {}))
    start = _LENGTH_BYTES + length
    tensors = {name: _checked_tensor(file, name, value, start) for name, value in entries.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    _check_tiling(file, ordered, start, file_bytes)
    return Header(ordered, metadata, file_bytes)


def parse_json(file: Path, text: bytes) -> Any:
    """JSON whose objects have no key twice.

    Raises:
        CheckpointError: it is no JSON, or a key occurs twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            name = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            raise CheckpointError(file, "expected one entry of this name, got two", tensor=name)
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a huge number
        raise CheckpointError(file, f"expected JSON, got something else ({error})") from error


def _header_length(file: Path, prefix: bytes, file_bytes: int) -> int:
    if len(prefix) < _LENGTH_BYTES:
        raise CheckpointError(file, f"expected a safetensors file, got {file_bytes} bytes")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            file, f"header: expected at most {MAX_HEADER_BYTES} bytes, got a length of {length}"
        )
    if length > file_bytes - _LENGTH_BYTES:
        raise CheckpointError(
            file, f"header: expected {length} bytes, got {file_bytes - _LENGTH_BYTES} (truncated?)"
        )
    return length


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    entries = parse_json(file, text)
    if not isinstance(entries, dict):
        raise CheckpointError(
            file, f"header: expected a JSON object, got a {type(entries).__name__}"
        )
    return entries


def _checked_metadata(file: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(file, "__metadata__: expected strings under names, got others")
    return metadata


def _checked_tensor(file: Path, name: str, entry: Any, start: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise CheckpointError(file, "expected a JSON object in the header", tensor=name)
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(file, f"expected a known dtype, got {dtype!r:.40}", tensor=name)
    shape = _sizes(entry.get("shape"))
    if shape is None or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(
            file, f"expected a shape, got {entry.get('shape')!r:.80}", tensor=name
        )
    offsets = _sizes(entry.get("data_offsets"))
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        got = f"{entry.get('data_offsets')!r:.80}"
        raise CheckpointError(file, f"expected two offsets, got {got}", tensor=name)
    nbytes, bits = offsets[1] - offsets[0], math.prod(shape) * BITS[dtype]
    if bits != 8 * nbytes:
        raise CheckpointError(
            file,
            f"expected {bits / 8:.15g} bytes for {dtype} {list(shape)}, got {nbytes}",
            tensor=name,
        )
    return TensorInfo(file, dtype, shape, start + offsets[0], nbytes)


def _sizes(values: Any) -> tuple[int, ...] | None:
    """A list of integers that an address could be, or None."""
    fits = isinstance(values, list) and all(type(v) is int and 0 <= v < 2**48 for v in values)
    return tuple(values) if fits else None


def _check_tiling(file: Path, ordered: dict[str, TensorInfo], start: int, file_bytes: int) -> None:
    end = start
    for name, info in ordered.items():
        if info.offset != end:
            what = "overlaps the one before" if info.offset < end else "leaves a hole before it"
            raise CheckpointError(
                file,
                f"expected offset {end - start}, got {info.offset - start}: it {what}",
                tensor=name,
            )
        end += info.nbytes
    if end != file_bytes:
        raise CheckpointError(
            file, f"expected {end} bytes as the header says, got {file_bytes} (truncated?)"
        )
