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
"""The checkpoints under test/data/checkpoints, and what their tensors stand for (README there)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).resolve().parents[1] / "data" / "checkpoints"
PROJECTIONS = ("up_gate", "down")


@dataclass(frozen=True)
class CheckpointCase:
    """What a reader must find in a fixture.

    `least` is the least int4 code in it; the other codes up to 7 all occur.
    """

    name: str
    format: str
    experts: int
    hidden_size: int
    intermediate_size: int
    weight_format: str = "int4"
    group_size: int = -1
    scale_dtype: str = "float32"
    activation: str = "swiglu"
    has_bias: bool = False
    layers: tuple[int, ...] = (0,)
    least: int = -8

    @property
    def path(self) -> Path:
        return DATA / self.name


EXACT = (
    CheckpointCase(
        "compressed_tensors_group",
        "compressed-tensors",
        2,
        256,
        128,
        group_size=128,
        scale_dtype="bfloat16",
    ),
    CheckpointCase("compressed_tensors_channel", "compressed-tensors", 3, 96, 64),
    CheckpointCase(
        "compressed_tensors_mxfp4", "compressed-tensors", 3, 96, 64, "mxfp4", 32, layers=(0, 1)
    ),
    CheckpointCase("gptq_v1", "gptq", 3, 96, 64, group_size=32),
    CheckpointCase("gptq_v2", "gptq", 3, 96, 64),
    CheckpointCase("awq", "awq", 3, 96, 64, group_size=32),
    CheckpointCase(
        "gpt_oss",
        "gpt-oss",
        3,
        160,
        64,
        "mxfp4",
        32,
        activation="swiglu_oai",
        has_bias=True,
        layers=(0, 1),
    ),
    CheckpointCase("deepseek_w4afp8", "deepseek-w4afp8", 3, 256, 128, group_size=128, layers=(1,)),
    CheckpointCase("fastdeploy", "fastdeploy", 1, 256, 128, group_size=128),
    CheckpointCase("fastdeploy_offset", "fastdeploy", 2, 128, 64, least=-7),
    CheckpointCase(
        "fastdeploy_sign_magnitude", "fastdeploy", 1, 256, 128, group_size=128, least=-7
    ),
)
# Weights of more than 4 bits, quantised by the reader.
ROUNDED = ("bfloat16", "fp8_block")


def exact_layers() -> list[tuple[CheckpointCase, int]]:
    return [(case, layer) for case in EXACT for layer in case.layers]


def name_layer(value: object) -> str:
    """Of a parametrised test."""
    return value.name if isinstance(value, CheckpointCase) else str(value)


def expected_arrays(name: str, layer: int) -> dict[str, NDArray[Any]]:
    """The arrays of a fixture's layer, by their names in the README without the index."""
    with np.load(DATA / f"{name}.npz") as arrays:
        prefix = f"{layer}."
        return {k.removeprefix(prefix): arrays[k] for k in arrays.files if k.startswith(prefix)}


def assert_same_values(
    values: NDArray[np.float32], expected: dict[str, NDArray[Any]], projection: str, expert: int
) -> None:
    """Raises AssertionError unless all values ``[out, in]`` are the fixture's, bit for bit."""
    # Rows as numbers first: they say more than a hash that differs.
    rows = values[expected[f"{projection}.rows"]]
    np.testing.assert_array_equal(rows, expected[f"{projection}.values"][expert])
    digest = hashlib.sha256(values.astype("<f4").tobytes()).digest()
    assert digest == expected[f"{projection}.sha256"][expert].tobytes()
