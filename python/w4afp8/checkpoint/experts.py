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
"""Finds the experts of a checkpoint by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.files import SafetensorsFiles

Role = Literal["gate", "up", "down", "up_gate"]

_ROLES: dict[str, Role] = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "up_gate_proj": "up_gate",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
}
_NAME = re.compile(
    rf"(?P<prefix>.+)\.experts\.(?P<expert>\d+)\.(?P<projection>{'|'.join(_ROLES)})\.(?P<field>\w+)",
    re.ASCII,
)
_LAYER_NUMBER = re.compile(r"\.(\d{1,9})(?=\.)", re.ASCII)
# Which projections an expert may consist of.
_COMPLETE = (frozenset({"gate", "up", "down"}), frozenset({"up_gate", "down"}))


@dataclass(frozen=True)
class LayerTensors:
    """Names of a layer's tensors.

    Attributes:
        index: of the layer in the model: the last number in its prefix, 0 where there is none.
        prefix: what all names begin with.
        experts: for each expert, for each of its projections, the tensor of each field
            ("weight", "weight_scale", ...).
    """

    index: int
    prefix: str
    experts: tuple[Mapping[Role, Mapping[str, str]], ...]


def find_layers(files: SafetensorsFiles) -> list[LayerTensors]:
    """All layers whose experts have tensors of their own, in the order of their indices.

    Raises:
        CheckpointError: an expert or a projection is missing, or there twice.
    """
    found: dict[str, dict[str, dict[Role, dict[str, str]]]] = {}
    for name in files.tensors:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        experts = found.setdefault(match["prefix"], {})
        role = _ROLES[match["projection"]]
        fields = experts.setdefault(match["expert"], {}).setdefault(role, {})
        if match["field"] in fields:
            raise files.error(name, f"expected it once, got {fields[match['field']]} too")
        fields[match["field"]] = name
    layers = [
        LayerTensors(layer_index(prefix), prefix, _in_order(files, prefix, experts))
        for prefix, experts in found.items()
    ]
    return sorted(layers, key=lambda layer: (layer.index, layer.prefix))


def layer_index(prefix: str) -> int:
    """The number of the layer whose tensors' names begin with `prefix`."""
    numbers = _LAYER_NUMBER.findall(f".{prefix}.")
    return int(numbers[-1]) if numbers else 0


def _in_order(
    files: SafetensorsFiles, prefix: str, experts: dict[str, dict[Role, dict[str, str]]]
) -> tuple[Mapping[Role, Mapping[str, str]], ...]:
    """The experts 0, 1, 2, ..., each complete."""
    ordered = []
    for number in range(len(experts)):
        place = f"{prefix}.experts.{number}"
        expert = experts.get(str(number))
        if expert is None:
            # A number with zeros before it is no other's number, so it is named here too.
            others = sorted(set(experts) - {str(n) for n in range(len(experts))})
            message = f"expected {len(experts)} experts from 0 on, got number {others[0]:.20}"
            raise CheckpointError(_file_of(files, experts[others[0]]), message, tensor=place)
        if frozenset(expert) not in _COMPLETE:
            message = f"expected gate, up and down projections, got {', '.join(sorted(expert))}"
            raise CheckpointError(_file_of(files, expert), message, tensor=place)
        ordered.append(expert)
    return tuple(ordered)


def _file_of(files: SafetensorsFiles, expert: Mapping[Role, Mapping[str, str]]) -> str:
    name = next(iter(next(iter(expert.values())).values()))
    return str(files.info(name).file)
