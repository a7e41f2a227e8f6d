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
"""Headers, shards and indices: what is right is mapped, what is wrong is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import write_tensors

from w4afp8.checkpoint import CheckpointError, SafetensorsFiles

pytestmark = pytest.mark.cpu_only

ARRAYS = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
    "halves": np.arange(4, dtype=np.float16),
    "brains": np.arange(5).astype(ml_dtypes.bfloat16),
    "eighths": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
    "bytes": np.arange(7, dtype=np.uint8),
    "words": np.arange(-2, 2, dtype=np.int32).reshape(2, 2),
    "shape": np.array([3, 4], dtype=np.int64),
    "scalar": np.array(2.5, dtype=np.float32),
}
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw_file(path: Path, header: Any, data: bytes = bytes(8), length: int | None = None) -> Path:
    """A file whose header is what a test wants, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def test_views(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_tensors(file, ARRAYS, {"made by": "a test"})
    files = SafetensorsFiles(file)
    assert files.tensors.keys() == ARRAYS.keys()
    assert files.metadata == {file: {"made by": "a test"}}
    for name, array in ARRAYS.items():
        view = files.view(name)
        assert view.shape == array.shape == files.tensors[name].shape
        assert view.dtype.itemsize == array.dtype.itemsize
        assert view.tobytes() == array.tobytes()
        assert not view.flags.writeable
        assert files.tensors[name].nbytes == array.nbytes
    files.release()
    assert files.view("words")[0, 0] == -2


@pytest.mark.parametrize("shape", [[2], [1, 2], [2, 1, 1]])
def test_dimensions(shape: list[int], tmp_path: Path) -> None:
    file = raw_file(tmp_path / "a.safetensors", {"w": F32 | {"shape": shape}})
    assert list(SafetensorsFiles(file).view("w").shape) == shape


def test_a_misaligned_tensor(tmp_path: Path) -> None:
    """The format does not promise alignment."""
    header = {
        "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    data = b"\x07" + np.array([1, 2], np.float32).tobytes()
    files = SafetensorsFiles(raw_file(tmp_path / "a.safetensors", header, data))
    assert files.view("w").tolist() == [1, 2]


HEADERS: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{nonsense", "expected JSON, got something else"),
    "no UTF-8": (b'{"\xff": 1}', "expected JSON"),
    "deep": (b"[" * 200_000, "expected JSON"),
    "a huge number": (b'{"w": ' + b"9" * 5000 + b"}", "expected JSON"),
    "a list": ([1], "header: expected a JSON object, got a list"),
    "a name twice": (b'{"w": 1, "v": 2, "w": 3}', "w: expected one entry of this name, got two"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, "__metadata__: expected strings"),
    "an entry that is no object": ({"w": 1}, "w: expected a JSON object"),
    "an unknown dtype": ({"w": F32 | {"dtype": "F31"}}, "w: expected a known dtype, got 'F31'"),
    "no dtype": ({"w": {"shape": [2], "data_offsets": [0, 8]}}, "known dtype, got None"),
    "a dtype that is a list": ({"w": F32 | {"dtype": ["F32"]}}, "expected a known dtype"),
    "a negative size": ({"w": F32 | {"shape": [-2]}}, "w: expected a shape, got [-2]"),
    "a size of words": ({"w": F32 | {"shape": ["2"]}}, "w: expected a shape"),
    "a size true": ({"w": F32 | {"shape": [True]}}, "w: expected a shape, got [True]"),
    "a fraction": ({"w": F32 | {"shape": [2.0]}}, "w: expected a shape, got [2.0]"),
    "an absurd size": ({"w": F32 | {"shape": [2**60]}}, "w: expected a shape, got [1152921"),
    "an absurd product": (
        {"w": F32 | {"shape": [2**40, 2**40]}},
        "w: expected 4.83570327845852e+24 bytes for F32 [1099511627776, 1099511627776], got 8",
    ),
    "too many dimensions": ({"w": F32 | {"shape": [1] * 9}}, "w: expected a shape"),
    "one offset": ({"w": F32 | {"data_offsets": [0]}}, "w: expected two offsets, got [0]"),
    "offsets backwards": ({"w": F32 | {"data_offsets": [8, 0]}}, "w: expected two offsets"),
    "too few bytes": ({"w": F32 | {"data_offsets": [0, 4]}}, "w: expected 8 bytes for F32 [2]"),
    "beyond the file": (
        {"w": F32, "v": F32 | {"data_offsets": [8, 16]}},
        "expected 147 bytes as the header says, got 139 (truncated?)",
    ),
    "an overlap": (
        {"w": F32, "v": F32 | {"data_offsets": [4, 12]}},
        "v: expected offset 8, got 4: it overlaps the one before",
    ),
    "a hole": (
        {"w": F32 | {"data_offsets": [4, 12]}},
        "expected offset 0, got 4: it leaves a hole",
    ),
    "bytes that nobody claims": ({}, "expected 10 bytes as the header says, got 18"),
}


@pytest.mark.parametrize(("header", "message"), HEADERS.values(), ids=HEADERS.keys())
def test_wrong_headers(header: Any, message: str, tmp_path: Path) -> None:
    file = raw_file(tmp_path / "a.safetensors", header)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        SafetensorsFiles(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert caught.value.path == file


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (2**63, "header: expected at most 100000000 bytes, got a length of 9223372036854775808"),
        (100_000_001, "header: expected at most 100000000 bytes"),
        (1000, "header: expected 1000 bytes, got"),
    ],
)
def test_absurd_header_lengths(length: int, message: str, tmp_path: Path) -> None:
    file = raw_file(tmp_path / "a.safetensors", {"w": F32}, length=length)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        SafetensorsFiles(file)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = raw_file(tmp_path / "a.safetensors", {"w": F32}).read_bytes()
    file = tmp_path / "b.safetensors"
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"b\.safetensors: "):
            SafetensorsFiles(file)
    file.write_bytes(whole)
    assert SafetensorsFiles(file).view("w").tolist() == [0, 0]


def test_a_file_that_changed_since(tmp_path: Path) -> None:
    file = raw_file(tmp_path / "a.safetensors", {"w": F32})
    files = SafetensorsFiles(file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="bytes as it was opened, got"):
        files.view("w")
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be mapped"):
        files.view("w")


def test_tensors_that_cannot_be_viewed(tmp_path: Path) -> None:
    header = {
        "four": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]},
        "none": {"dtype": "F32", "shape": [0, 2], "data_offsets": [8, 8]},
    }
    files = SafetensorsFiles(raw_file(tmp_path / "a.safetensors", header))
    with pytest.raises(CheckpointError, match="four: expected a dtype of whole bytes, got F4"):
        files.view("four")
    with pytest.raises(CheckpointError, match=r"none: expected elements, got none: shape \[0, 2\]"):
        files.view("none")
    with pytest.raises(CheckpointError, match="other: expected this tensor, got none"):
        files.view("other")


def test_expect(tmp_path: Path) -> None:
    files = SafetensorsFiles(raw_file(tmp_path / "a.safetensors", {"w": F32}))
    assert files.expect("w", ("BF16", "F32"), (None,)).dtype == "F32"
    for dtypes, shape, message in (
        (("BF16",), (2,), "w: expected BF16, got F32"),
        (("F32",), (3,), r"w: expected shape \[3\], got \[2\]"),
        (("F32",), (2, None), r"w: expected shape \[2, any\], got \[2\]"),
    ):
        with pytest.raises(CheckpointError, match=message):
            files.expect("w", dtypes, shape)


def make_shards(folder: Path, index: dict[str, Any] | None, **shards: dict[str, Any]) -> Path:
    for name, header in shards.items():
        raw_file(folder / f"{name}.safetensors", header)
    if index is not None:
        text = json.dumps(index)
        (folder / "model.safetensors.index.json").write_text(text)
    return folder


def test_shards(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, None, a={"v": F32}, b={"w": F32})
    assert {name: info.file.name for name, info in SafetensorsFiles(folder).tensors.items()} == {
        "v": "a.safetensors",
        "w": "b.safetensors",
    }


def test_only_the_shards_of_the_index(tmp_path: Path) -> None:
    """Some folders hold the same weights once more under other names."""
    index = {"weight_map": {"w": "b.safetensors"}}
    folder = make_shards(tmp_path, index, a={"w": F32}, b={"w": F32})
    assert SafetensorsFiles(folder).files == (folder / "b.safetensors",)


INDICES: dict[str, tuple[Any, str]] = {
    "a missing shard": (
        {"weight_map": {"v": "a.safetensors", "w": "c.safetensors"}},
        "index.json: w: expected the file 'c.safetensors' beside the index, got none",
    ),
    "a tensor elsewhere": (
        {"weight_map": {"v": "b.safetensors", "w": "a.safetensors"}},
        ".safetensors: v: expected it here as the index says",
    ),
    "a tensor nowhere": (
        {"weight_map": {"v": "a.safetensors", "u": "a.safetensors"}},
        "a.safetensors: u: expected it here as the index says",
    ),
    "another folder": (
        {"weight_map": {"v": "../a.safetensors"}},
        "v: expected a file name, got '../a.safetensors'",
    ),
    "a number": ({"weight_map": {"v": 3}}, "v: expected a file name, got 3"),
    "a long name": ({"weight_map": {"v": "a" * 500}}, "v: expected a file name, got 'aaa"),
    "the folder": ({"weight_map": {"v": ".."}}, "v: expected "),
    "no name": ({"weight_map": {"v": ""}}, "v: expected "),
    "a zero byte": ({"weight_map": {"v": "a\0b"}}, "v: expected "),
    "half a surrogate": ({"weight_map": {"v": "\ud800"}}, "v: expected "),
    "no map": ({}, "weight_map: expected an object of file names, got none"),
    "a list": ([], "expected a JSON object, got a list"),
}


@pytest.mark.parametrize(("index", "message"), INDICES.values(), ids=INDICES.keys())
def test_wrong_indices(index: Any, message: str, tmp_path: Path) -> None:
    folder = make_shards(tmp_path, index, a={"v": F32}, b={"w": F32})
    with pytest.raises(CheckpointError, match=re.escape(message)):
        SafetensorsFiles(folder)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, None, a={"w": F32}, b={"w": F32})
    with pytest.raises(
        CheckpointError,
        match=r"b\.safetensors: w: expected it once, got it in .*a\.safetensors too",
    ):
        SafetensorsFiles(folder)


def test_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for path, message in (
        (tmp_path, r"expected \.safetensors files \(never pickle\), got none"),
        (tmp_path / "pytorch_model.bin", r"expected a \.safetensors file or a folder"),
        (tmp_path / "nowhere", r"expected a \.safetensors file or a folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            SafetensorsFiles(path)
