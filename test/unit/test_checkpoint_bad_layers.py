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
"""Configs, sizes and sets of experts that are wrong: refused by file and tensor name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_checkpoints import FIRST, assert_refused, method, tensors_of
from checkpoint_files import Tensors, write_checkpoint
from checkpoint_samples import BY_NAME, PREFIX, Case

from w4afp8.checkpoint import CheckpointError, open_checkpoint

pytestmark = pytest.mark.cpu_only


def scheme(**weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"weights": weights}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}


CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "8 bits": ("compressed-tensors groups", scheme(num_bits=8), "num_bits: expected 4, got 8"),
    "asymmetric": (
        "compressed-tensors groups",
        scheme(symmetric=False),
        "symmetric: expected True, got False",
    ),
    "4-bit floats": ("compressed-tensors groups", scheme(type="float"), "type: expected 'int'"),
    "3 bits": ("gptq", method("gptq", bits=3), "quantization_config.bits: expected 4, got 3"),
    "a true number of bits": ("awq", method("awq", bits=True), "bits: expected 4, got True"),
    "another order": ("awq", method("awq", version="gemv"), "version: expected 'gemm' or 'GEMM'"),
    "marlin": (
        "gptq",
        method("gptq", checkpoint_format="marlin"),
        "checkpoint_format: expected 'gptq' or 'gptq_v2', got 'marlin'",
    ),
    "another method": ("compressed-tensors mxfp4", method("awq"), "quant_method: expected 'comp"),
    "a rotation": (
        "fastdeploy groups",
        {"quantization_config": {"hadamard_block_size": 96}},
        "hadamard_block_size: expected -1 or a power of two from 8 to 16384 that divides ",
    ),
    "a rotation by default": (
        "fastdeploy offset",
        {"quantization_config": {"moe_quant_type": "w4afp8"}},
        "hadamard_block_size: expected -1 or a power of two from 8 to 16384 that divides 64, got ",
    ),
    "a rotation of words": (
        "fastdeploy groups",
        {"quantization_config": {"hadamard_block_size": "-1"}},
        "hadamard_block_size: expected an int, got '-1'",
    ),
    "scales with more folded in": (
        "fastdeploy signs",
        {"quantization_config": {"hadamard_block_size": -1, "is_permuted": False}},
        "is_permuted: expected scales of the weights alone, got False",
    ),
    "another activation": (
        "deepseek",
        {"hidden_act": "relu"},
        "hidden_act: expected silu or swish",
    ),
    "fewer experts than there should be": (
        "deepseek",
        {"n_routed_experts": 3},
        "n_routed_experts: expected 2, the experts of model.layers.3.mlp, got 3",
    ),
    "more experts than there should be": (
        "gpt-oss",
        {"num_local_experts": 1},
        "num_local_experts: expected 2, the experts of model.layers.3.mlp, got 1",
    ),
    "a method that is no object": (
        "awq",
        {"quantization_config": "awq"},
        "quantization_config: expected a JSON object, got 'awq'",
    ),
    "another limit": ("gpt-oss", {"swiglu_limit": 5.0}, "swiglu_limit: expected 7.0, got 5.0"),
    "a limit of words": ("gpt-oss", {"swiglu_limit": "7"}, "swiglu_limit: expected 7.0, got '7'"),
}


@pytest.mark.parametrize(("name", "config", "message"), CONFIGS.values(), ids=CONFIGS.keys())
def test_configs(name: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert_refused(write_checkpoint(tmp_path, tensors_of(BY_NAME[name]), config), message)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}'])
def test_a_config_that_is_none(text: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tensors_of(BY_NAME["deepseek"]), {})
    (folder / "config.json").write_text(text)
    assert_refused(folder, "config.json: ")


def test_groups_that_do_not_divide(tmp_path: Path) -> None:
    case = BY_NAME["deepseek"]
    tensors = tensors_of(case)
    name = f"{FIRST}.weight_scale_inv"
    for groups, message in (
        (3, "expected 2 scales a row (group size 32), got 3"),
        (4, "expected 2 scales a row (group size 32), got 4"),
        (1, "expected 2 scales a row (group size 32), got 1"),
    ):
        tensors[name] = np.ones((32, groups), np.float32)
        folder = write_checkpoint(tmp_path, tensors, {})
        with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
            open_checkpoint(folder)
        assert caught.value.tensor is not None
        assert caught.value.tensor.startswith(FIRST)


def test_groups_that_the_kernels_do_not_have(tmp_path: Path) -> None:
    case = Case("deepseek", BY_NAME["deepseek"].spell, group_size=16)
    message = "group_size: expected -1, 32, 64 or a multiple of 128 for int4, got 16"
    assert_refused(write_checkpoint(tmp_path, tensors_of(case), {}), message)


@pytest.mark.parametrize(
    ("hidden", "intermediate", "message"),
    [
        (48, 32, "in_features: expected a positive multiple of 32, got 48"),
        (64, 48, "in_features: expected a positive multiple of 32, got 48"),
    ],
)
def test_sizes_that_the_kernels_do_not_have(
    hidden: int, intermediate: int, message: str, tmp_path: Path
) -> None:
    spelled = BY_NAME["deepseek"].spell
    case = Case("deepseek", spelled, group_size=-1, hidden=hidden, intermediate=intermediate)
    assert_refused(write_checkpoint(tmp_path, tensors_of(case), {}), message)


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new): values for name, values in tensors.items()}


def test_experts_that_are_missing(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["awq"])
    for new in ("experts.2.", "experts.01.", "experts.99999999999999999999."):
        folder = write_checkpoint(tmp_path, renamed(tensors, "experts.1.", new), {})
        message = f"expected 2 experts from 0 on, got number {new.split('.')[1][:20]}"
        assert_refused(folder, message, tensor=f"{PREFIX}.experts.1")


def test_an_expert_that_is_there_twice(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["deepseek"])
    tensors |= renamed(tensors, "experts.1.", "experts.01.")
    folder = write_checkpoint(tmp_path, tensors, {})
    assert_refused(folder, "expected 3 experts from 0 on, got number 01")


def test_a_projection_that_is_there_twice(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["deepseek"])
    tensors[f"{PREFIX}.experts.0.w1.weight"] = tensors[f"{PREFIX}.experts.0.gate_proj.weight"]
    assert_refused(write_checkpoint(tmp_path, tensors, {}), "expected it once, got ")


def test_projections_that_are_missing(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["awq"])
    rest = {name: values for name, values in tensors.items() if "experts.1.up_proj" not in name}
    message = "expected gate, up and down projections, got down, gate"
    folder = write_checkpoint(tmp_path, rest, {})
    assert_refused(folder, message, tensor=f"{PREFIX}.experts.1")


def test_experts_of_different_sizes(tmp_path: Path) -> None:
    wide = Case("awq", BY_NAME["awq"].spell, hidden=64, intermediate=64)
    others = {n: v for n, v in tensors_of(wide).items() if ".experts.1." in n}
    folder = write_checkpoint(tmp_path, tensors_of(BY_NAME["awq"]) | others, {})
    message = "beside the first expert's down projection [64, 32], got [64, 64]"
    assert_refused(folder, message)


def test_experts_of_different_formats(tmp_path: Path) -> None:
    others = {n: v for n, v in tensors_of(BY_NAME["awq"]).items() if ".experts.1." in n}
    tensors = {n: v for n, v in tensors_of(BY_NAME["deepseek"]).items() if ".experts.0." in n}
    folder = write_checkpoint(tmp_path, tensors | others, {})
    assert_refused(folder, "weight: expected this tensor (deepseek-w4afp8), got none")


def test_act_order_without_its_groups(tmp_path: Path) -> None:
    tensors = {n: v for n, v in tensors_of(BY_NAME["gptq"]).items() if not n.endswith("g_idx")}
    for is_ordered in (False, True):
        folder = write_checkpoint(tmp_path, tensors, method("gptq", desc_act=is_ordered))
        if is_ordered:
            assert_refused(folder, "qweight: expected g_idx beside it (desc_act), got none")
        else:
            assert open_checkpoint(folder).format == "gptq"


@pytest.mark.parametrize("order", [None, False, "weight", "group", "dynamic", True])
def test_act_order_of_compressed_tensors(order: Any, tmp_path: Path) -> None:
    case = BY_NAME["compressed-tensors groups"]
    folder = write_checkpoint(tmp_path, tensors_of(case), scheme(group_size=32, actorder=order))
    if order in ("group", "dynamic", True):
        assert_refused(
            folder, "weight_packed: expected weight_g_idx beside it (actorder), got none"
        )
    else:
        assert open_checkpoint(folder).layers[0].group_size == 32


@pytest.mark.parametrize("field", ["weight_zero_point", "weight_global_scale", "lora_a"])
def test_tensors_whose_meaning_is_unknown(field: str, tmp_path: Path) -> None:
    name = f"{FIRST}.{field}"
    tensors = tensors_of(BY_NAME["compressed-tensors groups"]) | {name: np.zeros(3, np.int8)}
    folder = write_checkpoint(tmp_path, tensors, {})
    assert_refused(folder, f"(compressed-tensors), got {field}", tensor=name)


def test_biases_of_some_projections(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["awq"]) | {f"{FIRST}.bias": np.zeros(32, np.float32)}
    folder = write_checkpoint(tmp_path, tensors, {})
    assert_refused(folder, "expected a bias for all projections or none", tensor=f"{FIRST}.bias")


def test_no_experts(tmp_path: Path) -> None:
    tensors = {"model.layers.0.mlp.gate_proj.weight": np.ones((4, 4), np.float32)}
    folder = write_checkpoint(tmp_path, tensors, {})
    assert_refused(folder, "expected experts named '....experts.0.gate_proj....'")


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((3, 64), {}, "mlp.gate.weight: expected shape [2, 64], got [3, 64]"),
        ((2, 64), {"scoring_func": 3}, "config.json: scoring_func: expected a str, got 3"),
        ((2, 64), {"norm_topk_prob": "no"}, "norm_topk_prob: expected a bool, got 'no'"),
    ],
)
def test_routers(shape: Any, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["awq"]) | {f"{PREFIX}.gate.weight": np.ones(shape, np.float32)}
    assert_refused(write_checkpoint(tmp_path, tensors, config), message)


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    case = BY_NAME["awq"]
    tensors = tensors_of(case)
    folder = write_checkpoint(tmp_path, tensors, case.config)
    shards = dict.fromkeys(tensors, "model.safetensors") | {FIRST: "gone.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert_refused(folder, "expected the file 'gone.safetensors' beside the index", tensor=FIRST)
