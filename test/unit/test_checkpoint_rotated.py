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
"""Checkpoints whose second projection is rotated: FastDeploy's, and ours converted from them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from checkpoint_samples import BY_NAME, draw_experts, spell

from w4afp8.checkpoint import (
    CheckpointError,
    convert,
    inspect,
    load_moe_ffn,
    open_checkpoint,
    verify,
)
from w4afp8.checkpoint.table import print_summary

pytestmark = pytest.mark.cpu_only

CASE = BY_NAME["fastdeploy offset groups"]  # intermediate 256


def rotated(folder: Path, quantization: dict[str, Any]) -> Path:
    tensors = spell(CASE, draw_experts(CASE, np.random.default_rng(0)))
    return write_checkpoint(folder, tensors, {"quantization_config": quantization})


@pytest.mark.parametrize(
    ("quantization", "block"),
    [
        ({"hadamard_block_size": 256}, 256),
        ({"moe_quant_type": "w4afp8"}, 128),  # FastDeploy's default
        ({"moe_quant_type": "w4afp8", "hadamard_block_size": -1}, -1),
        ({"hadamard_block_size": 0}, -1),
        ({}, -1),
    ],
    ids=str,
)
def test_the_layer_rotates_as_the_config_says(
    quantization: dict[str, Any], block: int, tmp_path: Path
) -> None:
    source = rotated(tmp_path / "source", quantization)
    native = convert(source, tmp_path / "native", progress=False).path
    for folder in (source, native):
        layer = load_moe_ffn(folder, layer=3, topk=2, progress=False)
        assert layer.hadamard_block_size == block
    assert verify(open_checkpoint(source), open_checkpoint(native), progress=False).same


def test_a_rotation_is_compared(tmp_path: Path) -> None:
    first, second = (
        open_checkpoint(rotated(tmp_path / str(block), {"hadamard_block_size": block}))
        for block in (64, 128)
    )
    report = verify(first, second, progress=False)
    assert report.mismatches == ("layer 3: hadamard_block_size 64 against 128",)


def test_compressed_tensors_know_no_rotation(tmp_path: Path) -> None:
    source = rotated(tmp_path / "source", {"hadamard_block_size": 64})
    with pytest.raises(CheckpointError, match=r"layer 3: expected .* got hadamard_block_size 64"):
        convert(source, tmp_path / "other", to="compressed-tensors", progress=False)
    assert not (tmp_path / "other").exists()


def test_the_table_says_it(tmp_path: Path) -> None:
    summary = inspect(
        open_checkpoint(rotated(tmp_path, {"hadamard_block_size": 64})), progress=False
    )
    assert summary.layers[0].hadamard_block_size == 64
    text = io.StringIO()
    print_summary(summary, file=text)
    assert "swiglu, rotated by 64" in text.getvalue()
