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
"""Ways to spoil the bytes of a checkpoint: of a safetensors file, of a JSON file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

Mutation = Callable[[np.random.Generator, bytes], bytes]


def flip_bit(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_bit_of_header(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[rng.integers(header_end(data))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: rng.integers(len(data))]


def extend(rng: np.random.Generator, data: bytes) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 100)))


def move_piece(rng: np.random.Generator, data: bytes) -> bytes:
    """Copies some bytes to another place."""
    changed = bytearray(data)
    size = int(rng.integers(1, 64))
    source, target = (int(place) for place in rng.integers(0, len(data) - size, 2))
    changed[target : target + size] = data[source : source + size]
    return bytes(changed)


ODD_VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 3, 2**31, 2**53, 2**63, 2**64, 1e308, -0.5, 1.5, True, False, None),
    *("", "F32", "BF16", "U8", "I8", "F8_E4M3", "I32", "F16", [], {}, [0], [1, 2, 3], "\ud800"),
)


def change_header(rng: np.random.Generator, data: bytes) -> bytes:
    """The length is right, the JSON is JSON, and one entry is not what it was."""
    end = header_end(data)
    header = json.loads(data[8:end])
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names, 2)
    entry = header[name]
    kind = rng.integers(6)
    if kind == 0:
        entry[rng.choice(["dtype", "shape", "data_offsets"])] = odd(rng)
    elif kind == 1:
        values = entry[rng.choice(["shape", "data_offsets"])]
        if values:
            values[rng.integers(len(values))] = odd(rng)
    elif kind == 2:
        header[name], header[other] = header[other], entry
    elif kind == 3:
        header[str(name).replace(*rng.choice(REPLACED))] = header.pop(name)
    elif kind == 4:
        entry["shape"] = entry["shape"][::-1]
    else:
        header[other] = entry
    return with_header(header, data[end:])


REPLACED = [
    ("0", "1"),
    ("1", "0"),
    ("gate", "up"),
    ("weight", "qweight"),
    ("experts", "expert"),
    ("3", ""),
]


def odd(rng: np.random.Generator) -> Any:
    return copy.deepcopy(ODD_VALUES[rng.integers(len(ODD_VALUES))])


def header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def with_header(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def change_json(rng: np.random.Generator, data: bytes) -> bytes:
    """One value somewhere in a config or an index becomes another."""
    root = json.loads(data)
    node, depth = root, int(rng.integers(4))
    while isinstance(node, dict) and node:
        key = list(node)[rng.integers(len(node))]
        if depth == 0 or not isinstance(node[key], dict) or not node[key]:
            node[key] = odd(rng)
            break
        node, depth = node[key], depth - 1
    return json.dumps(root).encode()


OF_TENSORS: tuple[Mutation, ...] = (
    *(flip_bit, flip_bit_of_header, cut, extend, move_piece),
    *(change_header,) * 4,
)
OF_JSON: tuple[Mutation, ...] = (change_json, change_json, flip_bit, cut)
