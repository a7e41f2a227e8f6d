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
"""Converts a checkpoint: resumable, and whole or not there at all.

Files are written into a folder of their own beside the destination, ``NAME.unfinished``, under
names that no reader opens, each with a note of what it holds once it is on disk. When all are there
they get their names and the folder gets its own. A run that was broken off leaves that folder, from
which the next one goes on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from w4afp8.checkpoint.atomic import UNFINISHED_SUFFIX, sha256_of, sync, whole_file, write_json
from w4afp8.checkpoint.config import CONFIG_NAME
from w4afp8.checkpoint.detect import open_checkpoint
from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.files import INDEX_NAME, read_json_object
from w4afp8.checkpoint.header import Header, read_header
from w4afp8.checkpoint.model import Checkpoint
from w4afp8.checkpoint.native_layout import NATIVE_VERSION
from w4afp8.checkpoint.native_writer import NativeWriter
from w4afp8.checkpoint.progress import show_progress
from w4afp8.checkpoint.rounding import log_rounding
from w4afp8.checkpoint.writers import CompressedTensorsWriter, Shard, Target, Writer
from w4afp8.quant.weights import check_choice

_WRITTEN_SUFFIX = ".written"  # a whole file that no reader opens yet
_NOTE_SUFFIX = ".note.json"
_OWN_SUFFIXES = (".safetensors", _NOTE_SUFFIX, _WRITTEN_SUFFIX, UNFINISHED_SUFFIX)
# Of what the writers make of the same source: raise it when that changes, but NATIVE_VERSION where
# the native format does.
_RULES_VERSION = 1


@dataclass(frozen=True)
class ConvertReport:
    """What `convert` did.

    Attributes:
        path: the new folder.
        files: safetensors files in it.
        reused: of those, files that an earlier run had written.
        nbytes: of all its safetensors files.
        errors: by layer, the largest quantisation error of an expert (`ExpertWeights.error`); 0
            where nothing was rounded.
        float32_scales: compressed-tensors scales that are no bfloat16 numbers, and so are float32:
            a program that holds scales in bfloat16 rounds them.
    """

    path: Path
    files: int
    reused: int
    nbytes: int
    errors: Mapping[int, float]
    float32_scales: int


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: Target = "native",
    shard_bytes: int = 1 << 30,
    progress: bool = True,
    **options: Any,
) -> ConvertReport:
    """Writes a checkpoint's mixture-of-experts layers in another format.

    Codes and scales stay what they are, bit for bit. Tensors of other layers are left out. Where
    weights were rounded, the largest error of each layer is logged as a warning of the logger
    "w4afp8.checkpoint", which Python prints on standard error. A source that is wrong leaves
    nothing behind.

    Args:
        source: a checkpoint that `open_checkpoint` opens.
        destination: a folder that does not exist.
        to: "native" or "compressed-tensors".
        shard_bytes: of a file of compressed-tensors, about; the native format has a file a layer.
        progress: show a bar on standard error.
        **options: of `open_checkpoint`, for sources that are not in 4 bits.

    Returns:
        ConvertReport: what was written.

    Raises:
        CheckpointError: the source cannot be read, the destination exists, another process writes
            it, or the target format cannot hold the source.
        OSError: a file cannot be written.

    Examples:
        >>> import numpy as np, tempfile
        >>> from safetensors.numpy import save_file
        >>> from w4afp8.checkpoint import convert
        >>> shapes = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
        >>> weights = {
        ...     f"model.layers.0.mlp.experts.0.{name}.weight": np.ones(shape, np.float32)
        ...     for name, shape in shapes.items()
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(weights, f"{folder}/model.safetensors")
        ...     report = convert(f"{folder}/model.safetensors", f"{folder}/native", progress=False)
        ...     report.path.name, report.files, report.reused, sorted(report.errors)
        ('native', 1, 0, [0])
    """
    check_choice("to", to, Target)
    checkpoint, destination = open_checkpoint(source, **options), Path(destination)
    writer: Writer = NativeWriter() if to == "native" else CompressedTensorsWriter(shard_bytes)
    shards = writer.shards(checkpoint)
    if destination.exists() or destination.is_symlink():
        raise CheckpointError(destination, "expected a name that is free, got one that exists")
    job = _job(checkpoint, to=to, shard_bytes=shard_bytes, **options)
    with _unfinished_folder(destination) as folder:
        with show_progress("convert", _experts(shards), shown=progress) as advance:
            notes, reused = _write_shards(folder, writer, checkpoint, shards, job, advance)
        headers = _finish(folder, destination, list(notes), writer.config(checkpoint))
    errors = _largest_errors(shards, list(notes.values()))
    for index, error in errors.items():
        log_rounding(checkpoint.path, index, error)
    return ConvertReport(
        path=destination,
        files=len(shards),
        reused=reused,
        nbytes=sum(header.file_bytes for header in headers.values()),
        errors=errors,
        float32_scales=_count_float32_scales(headers) if to == "compressed-tensors" else 0,
    )


def _experts(shards: list[Shard]) -> int:
    return sum(len(shard.experts) for shard in shards)


def _job(checkpoint: Checkpoint, **options: Any) -> str:
    """Hash of everything that the files depend on; a source's files by name, size and time."""
    path = checkpoint.path
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file.name, file.stat()) for file in files if file.is_file()]
    content = {
        "rules": [_RULES_VERSION, NATIVE_VERSION],
        "source": [str(path.resolve()), [(n, s.st_size, s.st_mtime_ns) for n, s in states]],
        "layers": [asdict(layer) for layer in checkpoint.layers],
        "options": {name: str(value) for name, value in options.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def _unfinished_folder(destination: Path) -> Iterator[Path]:
    """The folder to write to, held against other processes."""
    folder = destination.with_name(destination.name + UNFINISHED_SUFFIX)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(folder, descriptor)
        try:
            yield folder
        except CheckpointError:
            # A wrong source stays wrong until it changes, and a changed one is converted anew.
            _discard(folder)
            raise
    finally:
        os.close(descriptor)


def _lock(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointError(folder, "another process is writing there; wait for it") from error


def _discard(folder: Path) -> None:
    """Removes the folder and what runs of `convert` left in it; anything else stays."""
    _remove_traces(folder, [])
    for name in (INDEX_NAME, CONFIG_NAME):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _write_shards(
    folder: Path,
    writer: Writer,
    checkpoint: Checkpoint,
    shards: list[Shard],
    job: str,
    advance: Callable[[], None],
) -> tuple[dict[str, dict[str, Any]], int]:
    """Writes what is not there yet; returns the note of each file, and how many were there."""
    notes, reused = {}, 0
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        note = _note_of(folder, name, job)
        if note is not None:
            reused += 1
            for _ in shard.experts:
                advance()
        else:
            note = _write_shard(folder, name, writer, checkpoint, shard, job, advance)
        notes[name] = note
    return notes, reused


def _note_of(folder: Path, name: str, job: str) -> dict[str, Any] | None:
    """The note of a file that an earlier run of this job wrote, if its bytes are still those."""
    final, written = folder / name, folder / (name + _WRITTEN_SUFFIX)
    if final.exists():  # the earlier run was broken off while it gave the files their names
        os.replace(final, written)
    try:
        note = read_json_object(folder / (name + _NOTE_SUFFIX))
        same = note["job"] == job and note["sha256"] == sha256_of(written)
    except (CheckpointError, OSError, KeyError):
        return None
    return note if same else None


def _write_shard(
    folder: Path,
    name: str,
    writer: Writer,
    checkpoint: Checkpoint,
    shard: Shard,
    job: str,
    advance: Callable[[], None],
) -> dict[str, Any]:
    written = folder / (name + _WRITTEN_SUFFIX)
    with whole_file(written) as unfinished:
        error = writer.write(unfinished, checkpoint, shard, advance)
    note = {"job": job, "sha256": sha256_of(written), "error": error}
    write_json(folder / (name + _NOTE_SUFFIX), note)
    return note


def _finish(
    folder: Path, destination: Path, names: list[str], config: dict[str, Any]
) -> dict[str, Header]:
    """Gives the files and then the folder their names.

    The index comes first: until the last file has its name, it names one that is missing, and
    readers refuse the folder.
    """
    headers = {name: read_header(folder / (name + _WRITTEN_SUFFIX)) for name in names}
    size = sum(info.nbytes for header in headers.values() for info in header.tensors.values())
    index = {tensor: name for name, header in headers.items() for tensor in header.tensors}
    write_json(folder / INDEX_NAME, {"metadata": {"total_size": size}, "weight_map": index})
    write_json(folder / CONFIG_NAME, config)
    for name in names:
        os.replace(folder / (name + _WRITTEN_SUFFIX), folder / name)
    _remove_traces(folder, names)
    sync(folder)
    os.rename(folder, destination)
    sync(destination.parent)
    return headers


def _remove_traces(folder: Path, names: list[str]) -> None:
    """Removes notes, and files of earlier runs that cut the experts otherwise."""
    own = [file for suffix in _OWN_SUFFIXES for file in folder.glob(f"model-*-of-*{suffix}")]
    for file in own:
        if file.name not in names:
            file.unlink()


def _largest_errors(shards: list[Shard], notes: list[dict[str, Any]]) -> dict[int, float]:
    errors: dict[int, float] = {}
    for shard, note in zip(shards, notes, strict=True):
        index = shard.layer.index
        errors[index] = max(errors.get(index, 0.0), float(note["error"]))
    return errors


def _count_float32_scales(headers: Mapping[str, Header]) -> int:
    return sum(
        info.dtype == "F32"
        for header in headers.values()
        for name, info in header.tensors.items()
        if name.endswith(".weight_scale")
    )
