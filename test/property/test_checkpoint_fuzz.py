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
"""Mutated checkpoints either load to what their bytes say, or are refused with CheckpointError.

What the bytes say is decided without the readers: the weights that were read are spelled again
element by element, and must give the tensors that safetensors' own library finds in the file.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Tensors, write_checkpoint
from checkpoint_mutations import OF_JSON, OF_TENSORS
from checkpoint_samples import (
    CASES,
    PREFIX,
    Case,
    Expert,
    Matrix,
    draw_experts,
    spell,
    spell_deepseek,
    spell_fastdeploy,
    spell_fastdeploy_static,
    spell_offset,
    spell_sign_magnitude,
)
from numpy.typing import NDArray
from safetensors.numpy import load_file

from w4afp8.checkpoint import (
    Checkpoint,
    CheckpointError,
    ExpertWeights,
    MoELayerInfo,
    convert,
    open_checkpoint,
)
from w4afp8.quant import QuantizedWeight, pack, quantize
from w4afp8.quant.codes import split_nibbles
from w4afp8.testing.tensors import tensor_bits

pytestmark = pytest.mark.cpu_only

SHORT, LONG = 300, 12_000
LONGEST_SECONDS = 10.0
MOST_NEW_BYTES = 256 * 2**20  # far above what such small files need, far below what they can claim


@dataclass(frozen=True)
class Victim:
    """A right checkpoint in memory, by file names."""

    case: Case
    files: dict[str, bytes]


def spell_floats(name: str, matrix: Matrix) -> Tensors:
    values = matrix.codes.astype(np.float32) * matrix.scale.repeat(32, axis=1)
    return {f"{name}.weight": values}


FLOATS = Case("float", spell_floats)
NATIVE = Case("native", spell_deepseek, hidden=128, intermediate=128)  # no padding, see below


def make_victims(folder: Path) -> list[Victim]:
    victims = []
    for case in (*CASES, FLOATS, NATIVE):
        tensors = spell(case, draw_experts(case, np.random.default_rng(0)))
        tensors[f"{PREFIX}.gate.weight"] = np.ones((2, case.hidden), np.float32)
        source = write_checkpoint(folder / case.name, tensors, case.config | {"hidden_act": "silu"})
        index = {"weight_map": dict.fromkeys(tensors, "model.safetensors"), "metadata": {}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        if case is NATIVE:
            source = convert(source, folder / "converted", progress=False).path
        victims.append(Victim(case, {file.name: file.read_bytes() for file in source.iterdir()}))
    return victims


def write_mutated(folder: Path, victim: Victim, rng: np.random.Generator) -> Path:
    """Writes the victim with one of its files mutated; returns the file of tensors."""
    for file in folder.iterdir():
        file.unlink()
    (tensors,) = (name for name in victim.files if name.endswith(".safetensors"))
    others = [name for name in victim.files if name != tensors]
    chosen = rng.choice([tensors] * 6 + others)
    mutations = OF_TENSORS if chosen == tensors else OF_JSON
    mutate = mutations[rng.integers(len(mutations))]
    for name, data in victim.files.items():
        (folder / name).write_bytes(mutate(rng, data) if name == chosen else data)
    return folder / tensors


def matrix_of(weight: QuantizedWeight, rows: slice) -> Matrix:
    scale = weight.scale[0, rows]
    return Matrix(split_nibbles(weight.codes[0, rows]), scale.reshape(len(scale), -1))


def expert_of(read: ExpertWeights) -> Expert:
    half = read.up_gate.out_features // 2
    return {
        "gate": matrix_of(read.up_gate, slice(half)),
        "up": matrix_of(read.up_gate, slice(half, None)),
        "down": matrix_of(read.down, slice(None)),
    }


def assert_read_right(case: Case, checkpoint: Checkpoint, stored: Tensors) -> None:
    """What was read, spelled again, is what the file holds."""
    (layer,) = checkpoint.layers
    read = [checkpoint.read_expert(layer, number) for number in range(layer.experts)]
    if case in (FLOATS, NATIVE):
        (assert_quantised if case is FLOATS else assert_packed)(layer, read, stored)
        return
    # Bias and activation scales are not spelled from what was read.
    for name, values in spell(case, [expert_of(expert) for expert in read]).items():
        if not name.endswith(("bias", "input_scale", "activation_scale", "g_idx")):
            assert same_bits(values, as_read(case, name, stored[name])), name


def as_read(case: Case, name: str, stored: NDArray[Any]) -> NDArray[Any]:
    """Stored scales after the one float32 operation that reading does to them."""
    if not name.endswith("weight_scale"):
        return stored
    if case.spell in (spell_fastdeploy, spell_fastdeploy_static):
        return stored / np.float32(7)
    if case.spell in (spell_offset, spell_sign_magnitude):
        return stored / np.float32(512) * np.float32(512)  # tiny ones lose bits
    return stored


def same_bits(ours: NDArray[Any], stored: NDArray[Any]) -> bool:
    """Floats by their values, which may be stored in a narrower type; else byte by byte."""
    if stored.dtype.kind in "iu":
        return ours.tobytes() == stored.tobytes()
    return ours.astype(np.float32).tobytes() == stored.astype(np.float32).tobytes()


def assert_packed(layer: MoELayerInfo, read: list[ExpertWeights], stored: Tensors) -> None:
    """What was read, packed again; codes in a padding, which no kernel reads, would be lost."""
    for number, expert in enumerate(read):
        for name, weight in (("up_gate_proj", expert.up_gate), ("down_proj", expert.down)):
            packed = pack(weight)
            for part in ("weight", "weight_scale", "group_scale"):
                tensor = getattr(packed, part)
                if tensor is not None:
                    values = stored[f"{layer.prefix}.{name}.{part}"][number]
                    assert tensor_bits(tensor).tobytes() == values.tobytes()


def assert_quantised(_: MoELayerInfo, read: list[ExpertWeights], stored: Tensors) -> None:
    for number, expert in enumerate(read):
        name = f"{PREFIX}.experts.{number}.{{}}_proj.weight"
        gate, up, down = (
            stored[name.format(part)].astype(np.float32)[None] for part in ("gate", "up", "down")
        )
        for weight, values in (
            (expert.up_gate, np.concatenate([gate, up], axis=1)),
            (expert.down, down),
        ):
            expected = quantize(values)
            assert np.array_equal(weight.codes, expected.codes)
            assert np.array_equal(weight.scale, expected.scale)


def run(folder: Path, mutations: int, seed: int) -> tuple[int, int]:
    """How many mutated checkpoints were loaded, and how many refused."""
    victims = make_victims(folder / "victims")
    (mutated := folder / "mutated").mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = 0
    for number in range(mutations):
        rng = np.random.default_rng([seed, number])
        victim = victims[number % len(victims)]
        file = write_mutated(mutated, victim, rng)
        start = time.monotonic()
        try:
            checkpoint = open_checkpoint(mutated)
            checkpoint.read_router(checkpoint.layers[0])
            assert_read_right(victim.case, checkpoint, load_file(file))
            loaded += 1
        except Exception as error:
            if not isinstance(error, CheckpointError) or str(mutated) not in str(error):
                message = f"mutation {number} of {victim.case.name}: {error!r}"
                raise AssertionError(message) from error
        assert time.monotonic() - start < LONGEST_SECONDS, f"mutation {number}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MOST_NEW_BYTES
    return loaded, mutations - loaded


def test_mutated_checkpoints(tmp_path: Path) -> None:
    loaded, refused = run(tmp_path, SHORT, seed=0)
    # Both happen often, or one of them is not tested.
    assert min(loaded, refused) > SHORT // 20


@pytest.mark.slow
def test_many_mutated_checkpoints(tmp_path: Path) -> None:
    loaded, refused = run(tmp_path, LONG, seed=1)
    assert min(loaded, refused) > LONG // 20
