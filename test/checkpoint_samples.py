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
"""Small checkpoints in every format, spelled element by element from the formats' descriptions.

A test draws codes and scales, writes them as an ecosystem would, and expects them back. Nothing
here uses the readers or the tables that they use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from checkpoint_files import Tensors
from numpy.typing import NDArray

PREFIX = "model.layers.3.mlp"
EXPERTS = 2


@dataclass(frozen=True, eq=False)
class Matrix:
    """Codes 0..15 one by one ``[out, in]``, what multiplies them ``[out, groups]``."""

    codes: NDArray[np.uint8]
    scale: NDArray[Any]


Expert = Mapping[str, Matrix]  # of "gate", "up" and "down"


@dataclass(frozen=True)
class Case:
    """A format: how its tensors are spelled, and what may be drawn for it."""

    name: str
    spell: Callable[[str, Matrix], Tensors]  # name of a projection to its tensors
    config: dict[str, Any] = field(default_factory=dict)
    weight_format: str = "int4"
    group_size: int = 32
    hidden: int = 64
    intermediate: int = 32
    scale_type: Any = np.float32
    fused: bool = False  # gate and up in one projection
    smallest_code: int = -8
    has_bias: bool = False

    def sizes(self) -> dict[str, tuple[int, int]]:
        """out_features and in_features of each projection."""
        first = (self.intermediate, self.hidden)
        return {"gate": first, "up": first, "down": first[::-1]}

    def groups(self, in_features: int) -> int:
        return 1 if self.group_size == -1 else in_features // self.group_size


def draw_experts(case: Case, rng: np.random.Generator) -> list[Expert]:
    """Random experts; each code that the format has occurs."""
    return [
        {name: _draw_matrix(case, rng, *size) for name, size in case.sizes().items()}
        for _ in range(EXPERTS)
    ]


def _draw_matrix(case: Case, rng: np.random.Generator, out: int, in_features: int) -> Matrix:
    shape = (out, case.groups(in_features))
    if case.weight_format == "mxfp4":
        codes = rng.integers(0, 16, (out, in_features), np.uint8)
        return Matrix(codes, rng.integers(100, 140, shape, np.uint8))
    values = rng.integers(case.smallest_code, 8, (out, in_features))
    scale = rng.uniform(0.001, 0.1, shape).astype(case.scale_type)
    return Matrix((values & 15).astype(np.uint8), scale)


def values_of(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """int4 codes as numbers."""
    return (codes.astype(np.int64) ^ 8) - 8


def pairs_of(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Checkpoint order: the even element in the low nibble."""
    return codes[:, 0::2] + 16 * codes[:, 1::2]


def words_of(nibbles: NDArray[Any], order: Sequence[int] = range(8)) -> NDArray[np.int32]:
    """``[rows, n]`` to int32 ``[rows, n / 8]``: the nibble at bits 4 * p is element order[p]."""
    words = np.zeros((nibbles.shape[0], nibbles.shape[1] // 8), np.int64)
    for position, element in enumerate(order):
        words |= nibbles[:, element::8].astype(np.int64) << 4 * position
    return words.astype(np.uint32).view(np.int32)


def spell_pack_quantized(name: str, matrix: Matrix) -> Tensors:
    return {
        f"{name}.weight_packed": words_of(values_of(matrix.codes) + 8),
        f"{name}.weight_scale": matrix.scale,
        f"{name}.weight_shape": np.array(matrix.codes.shape, np.int64),
    }


def spell_mxfp4(name: str, matrix: Matrix) -> Tensors:
    packed = pairs_of(matrix.codes)
    return {f"{name}.weight_packed": packed, f"{name}.weight_scale": matrix.scale}


def spell_deepseek(name: str, matrix: Matrix) -> Tensors:
    roles = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    base, _, projection = name.rpartition(".")
    return {
        f"{name}.weight": pairs_of(matrix.codes).view(np.int8),
        f"{name}.weight_scale_inv": matrix.scale,
        f"{base}.{roles[projection]}.input_scale": np.float32([0.5 if "w1" in name else 0.25]),
    }


def _spell_gptq(name: str, matrix: Matrix, stored_zero: int) -> Tensors:
    (out, in_features), groups = matrix.codes.shape, matrix.scale.shape[1]
    return {
        f"{name}.qweight": np.ascontiguousarray(words_of(values_of(matrix.codes) + 8).T),
        f"{name}.qzeros": words_of(np.full((groups, out), stored_zero)),
        f"{name}.scales": np.ascontiguousarray(matrix.scale.T),
        f"{name}.g_idx": (np.arange(in_features) // (in_features // groups)).astype(np.int32),
    }


def spell_gptq(name: str, matrix: Matrix) -> Tensors:
    return _spell_gptq(name, matrix, 7)


def spell_gptq_v2(name: str, matrix: Matrix) -> Tensors:
    return _spell_gptq(name, matrix, 8)


def spell_awq(name: str, matrix: Matrix) -> Tensors:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    out, groups = len(matrix.codes), matrix.scale.shape[1]
    return {
        f"{name}.qweight": words_of((values_of(matrix.codes) + 8).T, order),
        f"{name}.qzeros": words_of(np.full((groups, out), 8), order),
        f"{name}.scales": np.ascontiguousarray(matrix.scale.T),
    }


def spell_fastdeploy(name: str, matrix: Matrix) -> Tensors:
    """The scale of a matrix is what is stored here: the largest magnitude."""
    scale = matrix.scale[:, 0] if matrix.scale.shape[1] == 1 else matrix.scale
    return {
        f"{name}.quant_weight": np.ascontiguousarray(pairs_of(matrix.codes).T).view(np.int8),
        f"{name}.weight_scale": np.ascontiguousarray(scale),
    }


def spell_fastdeploy_static(name: str, matrix: Matrix) -> Tensors:
    """Beside a scale of activations the scales of groups are transposed."""
    tensors = spell_fastdeploy(name, matrix)
    scale = np.ascontiguousarray(tensors[f"{name}.weight_scale"].T)
    return tensors | {
        f"{name}.weight_scale": scale,
        f"{name}.activation_scale": np.float32([56.0]),
    }


def _spell_converted(name: str, matrix: Matrix, codes: NDArray[Any]) -> Tensors:
    out, in_features = codes.shape
    weight = np.zeros((out, in_features // 2), np.uint8)
    for k in range(in_features):
        block, place = k // 64, k % 64
        weight[:, 32 * block + place % 32] += (codes[:, k] << (4 if place < 32 else 0)).astype(
            np.uint8
        )
    scale = np.zeros_like(matrix.scale)
    for i in range(8):  # in every 16 rows
        scale[2 * i :: 16], scale[2 * i + 1 :: 16] = matrix.scale[i::16], matrix.scale[i + 8 :: 16]
    scale *= np.float32(512)
    if scale.shape[1] > 1:
        scale = scale.reshape(out // 128, 128, -1).transpose(0, 2, 1)
    else:
        scale = scale[:, 0]
    return {f"{name}.weight": weight, f"{name}.weight_scale": np.ascontiguousarray(scale)}


def spell_offset(name: str, matrix: Matrix) -> Tensors:
    return _spell_converted(name, matrix, values_of(matrix.codes) + 7)


def spell_sign_magnitude(name: str, matrix: Matrix) -> Tensors:
    values = values_of(matrix.codes)
    return _spell_converted(name, matrix, np.where(values > 0, values, 8 - values))


def spell_gpt_oss(experts: Sequence[Expert]) -> Tensors:
    """All experts at once: rows of gate and up in turn."""
    tensors: dict[str, list[NDArray[Any]]] = {}
    for number, expert in enumerate(experts):
        gate, up = expert["gate"], expert["up"]
        first = Matrix(_in_turn(gate.codes, up.codes), _in_turn(gate.scale, up.scale))
        for name, matrix in (("gate_up_proj", first), ("down_proj", expert["down"])):
            out, groups = matrix.scale.shape
            bias = bias_of(number, name, out)
            for part, values in (
                ("blocks", pairs_of(matrix.codes).reshape(out, groups, 16)),
                ("scales", matrix.scale),
                ("bias", bias),
            ):
                tensors.setdefault(f"{PREFIX}.experts.{name}_{part}", []).append(values)
    return {name: np.stack(values) for name, values in tensors.items()}


def bias_of(expert: int, projection: str, out: int) -> NDArray[Any]:
    """bfloat16 numbers that tell where they belong."""
    start = 8 * expert + len(projection)
    return (np.arange(start, start + out) / 16).astype(ml_dtypes.bfloat16)


def _in_turn(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    rows = np.empty((2 * len(first), *first.shape[1:]), first.dtype)
    rows[0::2], rows[1::2] = first, second
    return rows


def spell(case: Case, experts: Sequence[Expert]) -> Tensors:
    """All tensors of the checkpoint's one layer."""
    if case.name == "gpt-oss":
        return spell_gpt_oss(experts)
    tensors: Tensors = {}
    for number, expert in enumerate(experts):
        for projection, matrix in _projections(case, expert):
            name = f"{PREFIX}.experts.{number}.{projection}"
            tensors |= case.spell(name, matrix)
            if case.has_bias:
                tensors[f"{name}.bias"] = bias_of(number, projection, len(matrix.codes))
    return tensors


def _projections(case: Case, expert: Expert) -> Iterator[tuple[str, Matrix]]:
    if case.fused:
        first = (expert["gate"], expert["up"])
        codes, scale = (np.concatenate([getattr(m, f) for m in first]) for f in ("codes", "scale"))
        yield "up_gate_proj", Matrix(codes, scale)
    else:
        yield "gate_proj", expert["gate"]
        yield "up_proj", expert["up"]
    yield "down_proj", expert["down"]


def _quantized_by(method: str, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **more}}


def _scheme(size: int | None) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": size}
    return _quantized_by("compressed-tensors", config_groups={"group_0": {"weights": weights}})


_GPTQ_V2 = _quantized_by("gptq", bits=4, group_size=32, checkpoint_format="gptq_v2")
_BFLOAT16: Any = ml_dtypes.bfloat16
_CONVERTED: dict[str, Any] = {"fused": True, "smallest_code": -7, "hidden": 128}

CASES = (
    Case("compressed-tensors groups", spell_pack_quantized, _scheme(32), scale_type=_BFLOAT16),
    Case("compressed-tensors channels", spell_pack_quantized, _scheme(None), group_size=-1),
    Case("compressed-tensors float16", spell_pack_quantized, scale_type=np.float16),
    Case("compressed-tensors mxfp4", spell_mxfp4, weight_format="mxfp4"),
    Case("deepseek", spell_deepseek),
    Case("gpt-oss", spell_mxfp4, weight_format="mxfp4", hidden=96, has_bias=True),
    Case("gptq", spell_gptq, _quantized_by("gptq", bits=4, group_size=32), has_bias=True),
    Case("gptq_v2", spell_gptq_v2, _GPTQ_V2, scale_type=np.float16),
    Case("gptq channels", spell_gptq, group_size=-1, scale_type=np.float16),
    Case("awq", spell_awq, _quantized_by("awq", bits=4, version="gemm"), scale_type=np.float16),
    Case("fastdeploy channels", spell_fastdeploy_static, group_size=-1, fused=True),
    Case("fastdeploy static groups", spell_fastdeploy_static, fused=True, intermediate=64),
    Case("fastdeploy groups", spell_fastdeploy, fused=True),
    Case("fastdeploy offset", spell_offset, group_size=-1, **_CONVERTED, intermediate=64),
    Case("fastdeploy offset groups", spell_offset, group_size=128, **_CONVERTED, intermediate=256),
    Case("fastdeploy signs", spell_sign_magnitude, group_size=-1, **_CONVERTED, intermediate=64),
)
BY_NAME = {case.name: case for case in CASES}


def stored_scale_to_multiplier(case: Case, scale: NDArray[Any]) -> NDArray[Any]:
    """What multiplies a code, from what a checkpoint of this format stores."""
    if case.spell in (spell_fastdeploy, spell_fastdeploy_static):
        return scale / np.float32(7)
    return scale if scale.dtype == np.uint8 else scale.astype(np.float32)
