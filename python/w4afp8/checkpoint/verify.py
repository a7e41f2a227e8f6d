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
"""Do two checkpoints hold the same numbers? Compared expert by expert, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from w4afp8.checkpoint.model import Checkpoint, ExpertWeights, MoELayerInfo, RouterWeights
from w4afp8.checkpoint.native_layout import ROUTER_TENSORS
from w4afp8.checkpoint.progress import show_progress
from w4afp8.quant import dequantize

_COMPARED_FIELDS = (
    *("experts", "hidden_size", "intermediate_size", "activation", "hadamard_block_size"),
)
_OPTIONAL_OF_EXPERTS = ("up_gate_bias", "down_bias", "up_gate_input_scale", "down_input_scale")


@dataclass(frozen=True)
class Difference:
    """Where one tensor of one expert, or of the router, differs most.

    Attributes:
        layer: index of the layer.
        expert: index of the expert; None for the router.
        tensor: "up_gate" (gate rows first), "down", or one of their biases and input scales;
            "weight", "bias" or "correction_bias" of the router.
        count: elements whose bits differ.
        size: elements of the tensor.
        place: index of the element that differs most.
        first: its value in the first checkpoint.
        second: its value in the second.
    """

    layer: int
    expert: int | None
    tensor: str
    count: int
    size: int
    place: tuple[int, ...]
    first: float
    second: float

    @property
    def worst(self) -> float:
        """How far apart the two values are; 0 where only the sign of a zero differs."""
        return abs(self.first - self.second)

    def __str__(self) -> str:
        return (
            f"{_place(self.layer, self.expert)}, {self.tensor}{list(self.place)}: "
            f"{self.first!r} against {self.second!r} ({self.count} of {self.size} differ)"
        )


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        experts: experts compared.
        values: weights compared.
        mismatches: sentences on layers, sizes or tensors that only one of the two has.
        differences: tensors whose values differ, the worst first.
    """

    experts: int
    values: int
    mismatches: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def same(self) -> bool:
        return not self.mismatches and not self.differences


def verify(first: Checkpoint, second: Checkpoint, *, progress: bool = True) -> VerifyReport:
    """Dequantises both checkpoints and compares every weight, bias, input scale and router.

    Bit by bit: 0 and -0 differ. Formats, scales and names may be others, as long as the weights
    that they stand for are the same float32 numbers.

    Args:
        first: an open checkpoint.
        second: another.
        progress: show a bar on standard error.

    Returns:
        VerifyReport: with `same` true where nothing differs.

    Raises:
        CheckpointError: a tensor cannot be read.

    Examples:
        >>> import numpy as np, tempfile
        >>> from safetensors.numpy import save_file
        >>> from w4afp8.checkpoint import open_checkpoint, verify
        >>> shapes = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
        >>> weights = {
        ...     f"model.layers.0.mlp.experts.0.{name}.weight": np.full(shape, 1.1, np.float32)
        ...     for name, shape in shapes.items()
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(weights, f"{folder}/model.safetensors")
        ...     int4 = open_checkpoint(folder)
        ...     mxfp4 = open_checkpoint(folder, weight_format="mxfp4")
        ...     verify(int4, int4, progress=False).same, verify(int4, mxfp4, progress=False).same
        (True, False)
    """
    mismatches: list[str] = []
    differences: list[Difference] = []
    experts = values = 0
    pairs = list(_pairs(first, second, mismatches))
    total = sum(a.experts for a, _ in pairs)
    with show_progress("verify", total, shown=progress) as advance:
        for own, other in pairs:
            routers = (first.read_router(own), second.read_router(other))
            differences += _compare_routers(own.index, *routers, mismatches)
            for expert in range(own.experts):
                a, b = first.read_expert(own, expert), second.read_expert(other, expert)
                differences += _compare(own.index, expert, a, b, mismatches)
                experts, values = experts + 1, values + a.up_gate.codes.size * 2
                values += a.down.codes.size * 2
                for checkpoint in (first, second):
                    checkpoint.release()
                advance()
    differences.sort(key=lambda difference: -difference.worst)
    return VerifyReport(experts, values, tuple(mismatches), tuple(differences))


def _pairs(
    first: Checkpoint, second: Checkpoint, mismatches: list[str]
) -> Iterator[tuple[MoELayerInfo, MoELayerInfo]]:
    """Layers of one index and of the same sizes; what has no counterpart is a mismatch."""
    own, others = _by_index(first), _by_index(second)
    for key in sorted(own.keys() | others.keys()):
        if key not in own or key not in others:
            where = second.path if key not in own else first.path
            mismatches.append(f"layer {key[0]}: only in {where}")
            continue
        unequal = [
            f"{name} {getattr(own[key], name)} against {getattr(others[key], name)}"
            for name in _COMPARED_FIELDS
            if getattr(own[key], name) != getattr(others[key], name)
        ]
        mismatches += [f"layer {key[0]}: {text}" for text in unequal]
        if not unequal:
            yield own[key], others[key]


def _by_index(checkpoint: Checkpoint) -> dict[tuple[int, int], MoELayerInfo]:
    """Layers by index and, among those of one index, by the order of their names.

    Names differ from format to format, so that only their order can tell such layers apart.
    """
    layers: dict[tuple[int, int], MoELayerInfo] = {}
    for layer in sorted(checkpoint.layers, key=lambda layer: layer.prefix):
        number = sum(index == layer.index for index, _ in layers)
        layers[layer.index, number] = layer
    return layers


def _compare(
    layer: int, expert: int, a: ExpertWeights, b: ExpertWeights, mismatches: list[str]
) -> Iterator[Difference]:
    # One projection at a time bounds the memory for float weights.
    for name in ("up_gate", "down"):
        values = [dequantize(getattr(weights, name))[0] for weights in (a, b)]
        yield from _difference(layer, expert, name, *values)
    yield from _compare_optional(layer, expert, _OPTIONAL_OF_EXPERTS, a, b, mismatches)


def _compare_routers(
    layer: int, a: RouterWeights | None, b: RouterWeights | None, mismatches: list[str]
) -> Iterator[Difference]:
    yield from _compare_optional(layer, None, ROUTER_TENSORS, a, b, mismatches)


def _compare_optional(
    layer: int, expert: int | None, names: Sequence[str], a: Any, b: Any, mismatches: list[str]
) -> Iterator[Difference]:
    """Compares attributes that may be None."""
    for name in names:
        own, other = getattr(a, name, None), getattr(b, name, None)
        if (own is None) != (other is None):
            which = "second" if own is None else "first"
            mismatches.append(f"{_place(layer, expert)}: {name} only in the {which}")
        elif own is not None:
            yield from _difference(layer, expert, name, np.float32(own), np.float32(other))


def _place(layer: int, expert: int | None) -> str:
    return f"layer {layer}, " + ("router" if expert is None else f"expert {expert}")


def _difference(
    layer: int, expert: int | None, tensor: str, a: ArrayLike, b: ArrayLike
) -> Iterator[Difference]:
    first, second = (np.atleast_1d(np.asarray(values, dtype=np.float32)) for values in (a, b))
    differs = first.view(np.uint32) != second.view(np.uint32)
    count = int(differs.sum())
    if not count:
        return
    apart = np.abs(first.astype(np.float64) - second)
    place = np.unravel_index(np.where(differs, apart, -1).argmax(), first.shape)
    yield Difference(
        layer=layer,
        expert=expert,
        tensor=tensor,
        count=count,
        size=first.size,
        place=tuple(int(i) for i in place),
        first=float(first[place]),
        second=float(second[place]),
    )
