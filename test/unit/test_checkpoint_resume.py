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
"""A conversion that breaks off, wherever, leaves nothing that loads, and goes on later."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checkpoint_sources import (
    assert_same,
    content,
    make_checkpoint,
    write_compressed,
)
from checkpoint_sources import run_convert as run

from w4afp8.checkpoint import (
    Checkpoint,
    CheckpointError,
    SafetensorsFiles,
    convert,
    open_checkpoint,
)
from w4afp8.checkpoint.per_expert import PerExpertCheckpoint

pytestmark = pytest.mark.cpu_only


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two layers of int4 groups."""
    write_compressed(make_checkpoint(2, 7), tmp_path / "source")
    return tmp_path / "source"


class Killed(BaseException):
    """Nothing runs after it, not even what cleans up."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """From the given operation on files on, none has an effect, as in a process that is gone."""
    done = [0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            done[0] += 1
            if done[0] > step:
                raise Killed
            return call(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        for name in ("replace", "rename", "fsync", "pwrite", "ftruncate"):
            patch.setattr(os, name, counted(getattr(os, name)))
        for name in ("unlink", "write_text", "mkdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        yield done


def openable(folder: Path) -> list[Path]:
    """Everything under `folder` that opens as a checkpoint, the folder itself too."""
    opened = []
    for path in [folder, *(folder.iterdir() if folder.is_dir() else [])]:
        try:
            open_checkpoint(path)
        except CheckpointError:
            continue
        opened.append(path)
    return opened


@pytest.mark.parametrize("to", ["native", "compressed-tensors"])
def test_killed_at_every_step(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, destination = tmp_path / "source", tmp_path / "new"
    write_compressed(make_checkpoint(2, 7, experts=1, group_size=-1), source)
    run(source, tmp_path / "expected", to=to)
    expected = content(tmp_path / "expected")
    unfinished = tmp_path / "new.unfinished"
    outcomes = set()
    step = 0
    while True:
        try:
            with killed_at(step, monkeypatch):
                run(source, destination, to=to)
        except Killed:
            pass
        else:
            break
        if destination.exists():  # killed after it got its name
            assert content(destination) == expected
            outcomes.add("done")
        else:
            for path in openable(unfinished):  # only what is whole
                files = content(unfinished)
                names = expected if path == unfinished else [path.name]
                assert [files[name] for name in names] == [expected[name] for name in names]
            report = run(source, destination, to=to)
            outcomes.add(f"{report.reused} reused")
            assert content(destination) == expected
        assert not unfinished.exists()
        for file in destination.iterdir():
            file.unlink()
        destination.rmdir()
        step += 1
    assert outcomes == {"0 reused", "1 reused", "2 reused", "done"}


def break_at(expert: int, kind: type[Checkpoint], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the reader of layer 7 fail at that expert, and counts the experts read."""
    read, read_expert = [0], kind.read_expert

    def broken(self: Any, layer: Any, number: int) -> Any:
        read[0] += 1
        if layer.index == 7 and number == expert:
            raise OSError(errno.EIO, "Input/output error")
        return read_expert(self, layer, number)

    monkeypatch.setattr(kind, "read_expert", broken)
    return read


def test_a_broken_run_leaves_nothing_that_loads(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_at(2, PerExpertCheckpoint, patch)
        with pytest.raises(OSError, match="Input/output error"):
            run(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert openable(tmp_path / "new.unfinished") == []
    report = run(source, tmp_path / "new")
    assert report.reused == 1
    assert_same(source, tmp_path / "new")


def leave_the_first_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Breaks a run off after its first file; returns that file."""
    with monkeypatch.context() as patch:
        break_at(0, PerExpertCheckpoint, patch)
        with pytest.raises(OSError, match="Input/output error"):
            run(source, tmp_path / "new")
    return tmp_path / "new.unfinished" / "model-00001-of-00002.safetensors.written"


def test_files_that_are_there_are_not_read_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_the_first_file(source, tmp_path, monkeypatch)
    read = break_at(-1, PerExpertCheckpoint, monkeypatch)
    assert run(source, tmp_path / "new").reused == 1
    assert read == [3]


def test_files_of_another_version_are_written_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[convert.__module__], "NATIVE_VERSION", "1")
        leave_the_first_file(source, tmp_path, monkeypatch)
    assert run(source, tmp_path / "new").reused == 0


def test_a_damaged_file_is_written_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = leave_the_first_file(source, tmp_path, monkeypatch)
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    assert run(source, tmp_path / "new").reused == 0
    assert_same(source, tmp_path / "new")


def test_a_changed_source_is_converted_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_the_first_file(source, tmp_path, monkeypatch)
    file = source / "0.safetensors"
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(0, 0))
    assert run(source, tmp_path / "new").reused == 0
    assert_same(source, tmp_path / "new")


def test_another_target_starts_anew_and_leaves_no_traces(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_the_first_file(source, tmp_path, monkeypatch)
    report = run(source, tmp_path / "new", to="compressed-tensors", shard_bytes=1)
    assert (report.reused, report.files) == (0, 6)
    assert len(content(tmp_path / "new")) == 8  # with index and config
    assert_same(source, tmp_path / "new")


def spoil(source: Path) -> None:
    """Makes scales of the last expert of layer 7 NaN: layer 2 is read, and written, before that."""
    name = "model.layers.7.mlp.experts.2.down_proj.weight_scale"
    info = SafetensorsFiles(source).tensors[name]
    data = bytearray(info.file.read_bytes())
    data[info.offset : info.offset + info.nbytes] = b"\xff" * info.nbytes
    info.file.write_bytes(data)


@pytest.mark.parametrize("to", ["native", "compressed-tensors"])
def test_a_wrong_source_leaves_nothing(to: str, source: Path, tmp_path: Path) -> None:
    spoil(source)
    with pytest.raises(
        CheckpointError, match=r"experts\.2\.down_proj\.weight_scale: expected fini"
    ):
        run(source, tmp_path / "new", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_others_left_there_is_kept(source: Path, tmp_path: Path) -> None:
    spoil(source)
    (tmp_path / "new.unfinished").mkdir()
    (tmp_path / "new.unfinished" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="expected finite numbers"):
        run(source, tmp_path / "new")
    assert content(tmp_path / "new.unfinished") == {"notes.txt": b"mine"}


def test_a_destination_that_exists_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(CheckpointError, match="expected a name that is free"):
        run(source, tmp_path / "new")
    assert content(tmp_path / "new") == {}
    assert not (tmp_path / "new.unfinished").exists()


def test_two_processes_do_not_write_one_destination(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new.unfinished"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(CheckpointError, match="another process is writing"):
        run(source, tmp_path / "new")
    os.close(descriptor)
    run(source, tmp_path / "new")


def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            run(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert content(tmp_path / "new.unfinished") == {}
    assert run(source, tmp_path / "new").reused == 0
