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
"""The format is recognised from config and names, and options go where they mean something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint, write_tensors
from checkpoint_samples import (
    BY_NAME,
    CASES,
    PREFIX,
    Case,
    draw_experts,
    spell,
)

from w4afp8.checkpoint import Checkpoint, CheckpointError, open_checkpoint

pytestmark = pytest.mark.cpu_only

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
FORMATS = {"gptq_v2": "gptq", "deepseek": "deepseek-w4afp8"}


def tensors_of(case: Case) -> dict[str, Any]:
    return spell(case, draw_experts(case, np.random.default_rng(0)))


def floats(prefix: str, experts: int = 2, hidden: int = 32, inter: int = 64) -> dict[str, Any]:
    shapes = {
        "gate_proj": (inter, hidden),
        "up_proj": (inter, hidden),
        "down_proj": (hidden, inter),
    }
    return {
        f"{prefix}.experts.{number}.{name}.weight": np.ones(shape, np.float32)
        for number in range(experts)
        for name, shape in shapes.items()
    }


@every_case
def test_format(case: Case, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors_of(case), case.config))
    assert checkpoint.format == FORMATS.get(case.name, case.name.split()[0])


@pytest.mark.parametrize("name", ["gptq", "gptq channels", "awq", "fastdeploy groups", "deepseek"])
def test_without_a_config(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    write_tensors(tmp_path / "w.safetensors", tensors_of(case))
    for path in (tmp_path, tmp_path / "w.safetensors"):
        checkpoint = open_checkpoint(path)
        assert checkpoint.format == FORMATS.get(case.name, case.name.split()[0])
        assert checkpoint.layers[0].group_size == case.group_size


def test_the_older_config_of_gptq(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tensors_of(BY_NAME["gptq"]), {})
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 3, "desc_act": False}))
    with pytest.raises(CheckpointError, match=r"quantization_config\.bits: expected 4, got 3"):
        open_checkpoint(folder)


@pytest.mark.parametrize("declared", [None, 64])
def test_one_group_a_row_is_a_channel_unless_the_config_says_a_group(
    declared: int | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    case = Case("gptq", BY_NAME["gptq"].spell, group_size=-1, hidden=64, intermediate=64)
    config = {"quantization_config": {"quant_method": "gptq", "group_size": declared}}
    tensors = spell(case, draw_experts(case, rng))
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, config))
    assert checkpoint.layers[0].group_size == (-1 if declared is None else 64)
    scale = checkpoint.read_expert(checkpoint.layers[0], 0).down.scale
    assert scale.shape == ((1, 64) if declared is None else (1, 64, 1))


@pytest.mark.parametrize(
    ("prefix", "index"),
    [
        ("model.layers.7.mlp", 7),
        ("model.language_model.layers.12.mlp", 12),
        ("model.layers.5.block_sparse_moe", 5),
        ("mlp", 0),
        ("tower.2.layers.11.ffn", 11),
    ],
)
def test_index_of_a_layer(prefix: str, index: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, floats(prefix), {}))
    assert [(layer.index, layer.prefix) for layer in checkpoint.layers] == [(index, prefix)]


def make_three(folder: Path) -> Checkpoint:
    tensors = {"model.layers.1.mlp.shared_experts.gate_proj.weight": np.ones((4, 4), np.float32)}
    for prefix in ("model.layers.10.mlp", "model.layers.2.mlp", "mtp.layers.2.mlp"):
        tensors |= floats(prefix)
    return open_checkpoint(write_checkpoint(folder, tensors, {}))


def test_layers_are_in_order(tmp_path: Path) -> None:
    names = [(layer.index, layer.prefix) for layer in make_three(tmp_path).layers]
    assert names == [
        (2, "model.layers.2.mlp"),
        (2, "mtp.layers.2.mlp"),
        (10, "model.layers.10.mlp"),
    ]


@pytest.mark.parametrize("layer", [2, 3, "model.layers.3.mlp"])
def test_a_layer_that_is_not_one(layer: Any, tmp_path: Path) -> None:
    checkpoint = make_three(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"layer: expected one of 2 \(model\.layers\.2\.mlp\)"
    ):
        checkpoint.layer(layer)
    assert checkpoint.layer("mtp.layers.2.mlp").prefix == "mtp.layers.2.mlp"
    assert checkpoint.layer(10).prefix == "model.layers.10.mlp"


def test_more_than_ten_experts_are_in_order(tmp_path: Path) -> None:
    tensors = floats(PREFIX, experts=12)
    for number in range(12):
        tensors[f"{PREFIX}.experts.{number}.down_proj.weight"] *= number
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, {}))
    for number in (0, 1, 2, 10, 11):
        scale = checkpoint.read_expert(checkpoint.layers[0], number).down.scale
        # absmax / 7, and 1 for zeros
        assert (scale == (np.float32(number) / np.float32(7) if number else 1)).all()


def test_formats_may_differ_between_layers(tmp_path: Path) -> None:
    """Some tools leave a layer as it was."""
    tensors = tensors_of(BY_NAME["deepseek"]) | floats("model.layers.9.mlp")
    folder = write_checkpoint(tmp_path, tensors, {})
    checkpoint = open_checkpoint(folder, weight_format="mxfp4")
    assert checkpoint.format == "deepseek-w4afp8 and float"
    assert [layer.weight_format for layer in checkpoint.layers] == ["int4", "mxfp4"]
    assert [layer.exact for layer in checkpoint.layers] == [True, False]
    assert checkpoint.read_expert(checkpoint.layers[0], 0).error == 0


@pytest.mark.parametrize(
    "option",
    [
        {"weight_format": "int4"},
        {"group_size": 32},
        {"rounding": "mse"},
        {"scale_dtype": "float32"},
    ],
)
def test_options_without_anything_to_quantise(option: dict[str, Any], tmp_path: Path) -> None:
    for name in ("awq", "gpt-oss"):
        case = BY_NAME[name]
        folder = write_checkpoint(tmp_path / name, tensors_of(case), case.config)
        message = f"expected no {next(iter(option))} .its weights are 4-bit: {name}., got "
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(folder, **option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"weight_format": "int8"}, "weight_format: expected one of int4, mxfp4, got 'int8'"),
        ({"rounding": "up"}, "rounding: expected one of"),
        ({"scale_dtype": "float16"}, "scale_dtype: expected one of float32, bfloat16"),
        ({"scale_dtype": "bfloat16"}, "scale_dtype: expected float32 without groups of int4"),
        (
            {"weight_format": "mxfp4", "scale_dtype": "bfloat16"},
            "scale_dtype: expected float32 without groups of int4",
        ),
        (
            {"weight_format": "mxfp4", "rounding": "mse"},
            "rounding: expected the default with mxfp4, got 'mse'",
        ),
        ({"group_size": 48}, "group_size: expected -1, 32, 64 or a multiple of 128"),
        ({"group_size": 64}, "group_size: expected a divisor of in_features 32, got 64"),
    ],
)
def test_wrong_options(option: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, floats(PREFIX), {})
    with pytest.raises(ValueError, match=message):
        open_checkpoint(folder, **option)


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, "swiglu"),
        ({"hidden_act": "silu"}, "swiglu"),
        ({"model_type": "gpt_oss"}, "swiglu_oai"),
        ({"text_config": {"model_type": "gpt_oss", "swiglu_limit": 7.0}}, "swiglu_oai"),
    ],
)
def test_activation(config: dict[str, Any], activation: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, floats(PREFIX), config))
    assert checkpoint.layers[0].activation == activation
