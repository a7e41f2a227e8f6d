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
"""What a fixture is, and how it is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

Float32 = NDArray[np.float32]

# Rows of each projection that are stored as numbers, so that a failure shows more than a hash.
SAMPLED_ROWS = 2


@dataclass(frozen=True)
class Sizes:
    """Of one mixture-of-experts layer."""

    hidden: int
    intermediate: int
    experts: int
    topk: int = 2

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """``(out_features, in_features)`` of the three linear layers of an expert."""
        up = (self.intermediate, self.hidden)
        return {"gate_proj": up, "up_proj": up, "down_proj": (self.hidden, self.intermediate)}


@dataclass(frozen=True, eq=False)
class LayerValues:
    """What a layer's tensors stand for, as the ecosystem's own code says.

    Attributes:
        up_gate: float32 ``[experts, 2 * intermediate, hidden]``, the gate's rows first.
        down: float32 ``[experts, hidden, intermediate]``.
        block: further arrays: biases; of the layers that are run, input ``x``, ``logits`` and
            output ``out``, see blocks.py.
    """

    up_gate: Float32
    down: Float32
    block: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Fixture:
    """One checkpoint.

    Attributes:
        name: of its folder.
        made_by: packages whose code wrote the tensors and computed the values.
        config: of config.json.
        tensors: of the safetensors files.
        layers: expected values, by the layer's index.
        shards: number of files; more than one have an index.
    """

    name: str
    made_by: tuple[str, ...]
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    layers: dict[int, LayerValues]
    shards: int = 1


def normal_weights(
    rng: np.random.Generator, shape: tuple[int, int], *, group_size: int
) -> torch.Tensor:
    """bfloat16 weights of a layer: each group has a size of its own, so that none fits another."""
    out_features, in_features = shape
    groups = in_features // group_size
    spread = np.exp2(rng.uniform(-2, 2, (out_features, groups, 1)))
    weight = rng.standard_normal((out_features, groups, group_size)) * spread
    return torch.from_numpy(weight.reshape(shape) * in_features**-0.5).to(torch.bfloat16)


def weight_groups(weight: torch.Tensor, group_size: int | None) -> torch.Tensor:
    """``[out, in]`` to ``[out, groups, group_size]``; None or -1 are all of a row."""
    size = weight.shape[1] if group_size in (None, -1) else group_size
    return weight.reshape(weight.shape[0], -1, size)


def stack_experts(experts: list[dict[str, torch.Tensor]]) -> tuple[Float32, Float32]:
    """Float32 of gate and up together, and of down, from ``{gate,up,down}_proj`` of each expert."""
    for values in experts:
        assert all(value.dtype == torch.float32 for value in values.values())
    up_gate = [torch.cat([values["gate_proj"], values["up_proj"]]) for values in experts]
    return torch.stack(up_gate).numpy(), torch.stack([e["down_proj"] for e in experts]).numpy()


def expert_prefix(layer: int, expert: int) -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}"


def write(fixture: Fixture, folder: Path) -> None:
    """Writes ``<name>/`` (config.json and safetensors) and ``<name>.npz`` with the values."""
    target = folder / fixture.name
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    text = json.dumps(fixture.config, indent=2, sort_keys=True) + "\n"
    (target / "config.json").write_text(text)
    tensors = {name: tensor.contiguous() for name, tensor in sorted(fixture.tensors.items())}
    if fixture.shards == 1:
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    else:
        _write_shards(tensors, target, fixture.shards)
    arrays: dict[str, Any] = {}
    for index, layer in fixture.layers.items():
        arrays |= {f"{index}.{name}": array for name, array in _summary(layer).items()}
    np.savez_compressed(folder / f"{fixture.name}.npz", allow_pickle=False, **arrays)


def _write_shards(tensors: dict[str, torch.Tensor], target: Path, shards: int) -> None:
    # Dealt out one by one: the tensors of an expert lie in different files.
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, target / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _summary(layer: LayerValues) -> dict[str, NDArray[Any]]:
    """SHA-256 of all values of each expert (float32, little-endian), and a few rows of them."""
    summary = dict(layer.block)
    for name, values in (("up_gate", layer.up_gate), ("down", layer.down)):
        assert values.dtype == np.float32
        hashes = [hashlib.sha256(expert.astype("<f4").tobytes()).digest() for expert in values]
        summary[f"{name}.sha256"] = np.array([list(digest) for digest in hashes], np.uint8)
        rows = np.linspace(0, values.shape[1] - 1, SAMPLED_ROWS).astype(np.int64)
        summary[f"{name}.rows"] = rows
        summary[f"{name}.values"] = values[:, rows]
    return summary
