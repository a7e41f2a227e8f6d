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
"""Conversions are exact, go on where they were broken off, and are whole or not there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_sources import FORMATS, make_checkpoint, write_compressed
from safetensors.numpy import save_file

from w4afp8.checkpoint import (
    Checkpoint,
    CheckpointError,
    SafetensorsFiles,
    convert,
    load_moe_ffn,
    open_checkpoint,
    verify,
)
from w4afp8.checkpoint.files import INDEX_NAME
from w4afp8.checkpoint.native import NativeCheckpoint
from w4afp8.checkpoint.per_expert import PerExpertCheckpoint
from w4afp8.testing.tensors import tensor_bits

pytestmark = pytest.mark.cpu_only


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two layers of int4 groups."""
    write_compressed(make_checkpoint(2, 7), tmp_path / "source")
    return tmp_path / "source"


def run(source: Path, destination: Path, **options: Any) -> Any:
    return convert(source, destination, progress=False, **options)


def assert_same(first: Path, second: Path) -> None:
    report = verify(open_checkpoint(first), open_checkpoint(second), progress=False)
    assert report.same, (report.mismatches, report.differences)
    assert report.experts > 0


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_there_and_back(weight_format: str, extras: bool, tmp_path: Path) -> None:
    options = {"has_bias": True, "activation": "swiglu_oai"} if extras else {}
    memory = make_checkpoint(2, 7, extras=extras, **FORMATS[weight_format], **options)
    first, native, again = (tmp_path / name for name in ("first", "native", "again"))
    write_compressed(memory, first)
    report = run(first, native)
    assert (report.path, report.files, report.reused, report.float32_scales) == (native, 2, 0, 0)
    assert report.errors == {2: 0.0, 7: 0.0}
    assert report.nbytes == sum(f.stat().st_size for f in native.glob("*.safetensors"))
    opened = open_checkpoint(native)
    assert isinstance(opened, NativeCheckpoint)
    assert opened.layers == memory.layers
    assert_same(first, native)
    run(native, again, to="compressed-tensors", shard_bytes=1)
    assert_same(first, again)
    for layer in memory.layers:
        router, expected = open_checkpoint(again).read_router(layer), memory.read_router(layer)
        assert (router is None) == (expected is None)
        assert router is None or router.options == expected.options  # type: ignore[union-attr]


def test_the_layer_runs_the_same_from_both(source: Path, tmp_path: Path) -> None:
    import paddle

    run(source, tmp_path / "native")
    x, logits = paddle.randn([5, 160]).astype("bfloat16"), paddle.randn([5, 3])
    outputs = [
        tensor_bits(load_moe_ffn(path, layer=7, topk=2, progress=False)(x, logits))
        for path in (source, tmp_path / "native")
    ]
    assert np.array_equal(outputs[0], outputs[1])


def test_scales_that_are_no_bfloat16_numbers_are_counted(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "native")
    report = run(tmp_path / "native", tmp_path / "again", to="compressed-tensors")
    assert report.float32_scales == 2 * 3 * 3  # layers, experts, projections


def test_the_config_is_kept_but_for_its_quantisation(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text()) | {"num_experts_per_tok": 2}
    (source / "config.json").write_text(json.dumps(config))
    run(source, tmp_path / "native")
    kept = json.loads((tmp_path / "native" / "config.json").read_text())
    assert kept == {"num_experts_per_tok": 2}
    run(tmp_path / "native", tmp_path / "again", to="compressed-tensors")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def test_the_same_source_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(source, tmp_path / name)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert set(content(tmp_path / "a")) == {
        "config.json",
        INDEX_NAME,
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_a_rounded_source_tells_its_error_by_layer(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"gate_proj": (96, 160), "up_proj": (96, 160), "down_proj": (160, 96)}
    weights = {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight": rng.standard_normal(
            shape, np.float32
        )
        for layer in (0, 1)
        for expert in (0, 1)
        for name, shape in shapes.items()
    }
    (tmp_path / "source").mkdir()
    save_file(weights, tmp_path / "source" / "model.safetensors")
    report = run(tmp_path / "source", tmp_path / "native", weight_format="mxfp4")
    checkpoint = open_checkpoint(tmp_path / "source", weight_format="mxfp4")
    for layer in checkpoint.layers:
        errors = [checkpoint.read_expert(layer, expert).error for expert in (0, 1)]
        assert report.errors[layer.index] == max(errors) > 0
    native = open_checkpoint(tmp_path / "native")
    assert not native.layers[0].exact
    assert native.read_expert(native.layers[1], 1).error == np.float32(errors[1])


FIXTURES = Path(__file__).resolve().parents[1] / "data" / "checkpoints"


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("*/")))
def test_what_others_wrote(name: str, tmp_path: Path) -> None:
    """Each ecosystem's checkpoint, to the native format and on to compressed-tensors."""
    first, native, second = FIXTURES / name, tmp_path / "native", tmp_path / "second"
    report = run(first, native)
    run(native, second, to="compressed-tensors")
    assert_same(first, native)
    assert_same(first, second)
    exact = all(layer.exact for layer in open_checkpoint(first).layers)
    assert all((error == 0) == exact for error in report.errors.values())
    source, got = open_checkpoint(first), open_checkpoint(second)
    for layer, other in zip(source.layers, got.layers, strict=True):
        router, kept = source.read_router(layer), got.read_router(other)
        assert (router is None) == (kept is None)
        if router is not None and kept is not None:
            assert np.array_equal(router.weight, kept.weight)
            assert router.options == kept.options


@pytest.mark.parametrize("name", ["group", "channel", "mxfp4"])
def test_the_packages_own_bytes_come_back(name: str, tmp_path: Path) -> None:
    """What the compressed-tensors package wrote, through packing and back: the same tensors."""
    source = FIXTURES / f"compressed_tensors_{name}"
    run(source, tmp_path / "native")
    run(tmp_path / "native", tmp_path / "again", to="compressed-tensors")
    theirs, ours = SafetensorsFiles(source), SafetensorsFiles(tmp_path / "again")
    names = [name for name in theirs.tensors if ".experts." in name]
    assert names
    assert {name for name in ours.tensors if ".experts." in name} == set(names)
    for tensor in names:
        assert ours.info(tensor).dtype == theirs.info(tensor).dtype
        assert np.array_equal(ours.view(tensor), theirs.view(tensor))
    configs = [json.loads((path / "config.json").read_text()) for path in (source, ours.path)]
    theirs_said, we_say = (config.pop("quantization_config") for config in configs)
    assert configs[0] == configs[1]
    for key in ("format", "quant_method", "quantization_status"):
        assert theirs_said[key] == we_say[key]
    weights = [said["config_groups"]["group_0"]["weights"] for said in (theirs_said, we_say)]
    assert weights[0] == weights[1]


def test_there_are_fixtures() -> None:
    assert len(list(FIXTURES.glob("*/"))) >= 10


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
            raise CheckpointError(self.path, "expected a light that burns")
        return read_expert(self, layer, number)

    monkeypatch.setattr(kind, "read_expert", broken)
    return read


def test_a_broken_run_leaves_nothing_that_loads(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_at(2, PerExpertCheckpoint, patch)
        with pytest.raises(CheckpointError, match="a light"):
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
        with pytest.raises(CheckpointError):
            run(source, tmp_path / "new")
    return tmp_path / "new.unfinished" / "model-00001-of-00002.safetensors.written"


def test_files_that_are_there_are_not_read_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_the_first_file(source, tmp_path, monkeypatch)
    read = break_at(-1, PerExpertCheckpoint, monkeypatch)
    assert run(source, tmp_path / "new").reused == 1
    assert read == [3]


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


def test_an_unknown_target(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to: expected one of native, compressed-tensors"):
        run(source, tmp_path / "new", to="gguf")
