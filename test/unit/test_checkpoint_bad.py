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
"""Checkpoints that are wrong, or that cannot be read exactly: refused by file and tensor name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint_samples import (
    BY_NAME,
    CASES,
    PREFIX,
    Case,
    Tensors,
    draw_experts,
    spell,
    write_checkpoint,
)

from w4afp8.checkpoint import CheckpointError, load_moe_ffn, open_checkpoint

pytestmark = pytest.mark.cpu_only

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
FIRST = f"{PREFIX}.experts.1.up_proj"


def tensors_of(case: Case) -> Tensors:
    return spell(case, draw_experts(case, np.random.default_rng(0)))


def assert_refused(folder: Path, message: str, *, tensor: str | None = None) -> None:
    """Opening or loading fails, by the name of a file and `tensor`."""
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        load_moe_ffn(folder, layer=3, topk=1, progress=False)
    assert str(caught.value).startswith(str(caught.value.path))
    assert caught.value.path.is_relative_to(folder)
    if tensor is not None:
        assert caught.value.tensor == tensor
        assert f": {tensor}: " in str(caught.value)


@every_case
def test_every_tensor_is_needed(case: Case, tmp_path: Path) -> None:
    tensors = tensors_of(case)
    optional = (".g_idx", ".input_scale", ".activation_scale")
    for name in [name for name in tensors if not name.endswith(optional)]:
        rest = {other: values for other, values in tensors.items() if other != name}
        with pytest.raises(CheckpointError, match=re.escape(PREFIX)) as caught:
            open_checkpoint(write_checkpoint(tmp_path, rest, case.config))
        assert str(tmp_path) in str(caught.value)


@every_case
def test_every_dtype_is_checked(case: Case, tmp_path: Path) -> None:
    tensors = tensors_of(case)
    for name, values in tensors.items():
        wrong = tensors | {name: np.zeros(values.shape, np.int16)}
        with pytest.raises(CheckpointError, match=r"expected .*, got ") as caught:
            load_moe_ffn(write_checkpoint(tmp_path, wrong, case.config), layer=3, topk=1)
        assert caught.value.tensor is not None
        assert caught.value.tensor.startswith(PREFIX)


@every_case
def test_every_shape_is_checked(case: Case, tmp_path: Path) -> None:
    tensors = tensors_of(case)
    for name, values in tensors.items():
        for shape in ([*values.shape, 1], [3, *values.shape[1:]], [0, *values.shape[1:]]):
            # FastDeploy's scales of whole channels are right with a second dimension too.
            if case.name.startswith("fastdeploy") and shape == [len(values), 1]:
                continue
            wrong = tensors | {name: np.zeros(shape, values.dtype)}
            with pytest.raises(CheckpointError, match=r"expected .*, got "):
                load_moe_ffn(write_checkpoint(tmp_path, wrong, case.config), layer=3, topk=1)


SCALES = {
    "compressed-tensors groups": "weight_scale",
    "compressed-tensors float16": "weight_scale",
    "deepseek": "weight_scale_inv",
    "gptq": "scales",
    "awq": "scales",
    "fastdeploy channels": "weight_scale",
    "fastdeploy offset groups": "weight_scale",
}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "expected finite numbers, got nan at ["),
        (np.inf, "expected finite numbers, got inf at ["),
        (-0.5, "expected scales of at least 0, got -0.5 at ["),
    ],
)
@pytest.mark.parametrize("name", SCALES)
def test_scales(name: str, value: float, message: str, tmp_path: Path) -> None:
    case, tensors = BY_NAME[name], tensors_of(BY_NAME[name])
    projection = "down_proj"
    tensor = f"{PREFIX}.experts.1.{projection}.{SCALES[name]}"
    tensors[tensor] = tensors[tensor].copy()
    tensors[tensor].reshape(-1)[1] = value
    assert_refused(write_checkpoint(tmp_path, tensors, case.config), message, tensor=tensor)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("compressed-tensors mxfp4", f"{FIRST}.weight_scale"),
        ("gpt-oss", f"{PREFIX}.experts.down_proj_scales"),
    ],
)
def test_e8m0_that_is_nan(name: str, tensor: str, tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME[name])
    tensors[tensor].reshape(-1)[-1] = 255
    folder = write_checkpoint(tmp_path, tensors, {})
    assert_refused(folder, "expected E8M0 bytes of 0..254, got 255 at [", tensor=tensor)


@dataclass(frozen=True)
class Bad:
    """A change that makes a right checkpoint wrong, and what is said of it."""

    case: str
    tensor: str
    change: Callable[[Any], Any]
    message: str


def at(index: Any, value: Any) -> Callable[[Any], Any]:
    """Sets one element."""

    def change(values: Any) -> Any:
        values = values.copy()
        values[index] = value
        return values

    return change


NO_ACT_ORDER = "(act-order cannot be honoured), got "
TENSORS = {
    "act-order": Bad(
        "gptq",
        f"{FIRST}.g_idx",
        lambda g: g[::-1],
        f"expected group 0 for in_feature 0 {NO_ACT_ORDER}1",
    ),
    "one weight in another group": Bad(
        "gptq_v2", f"{FIRST}.g_idx", at(5, 1), f"expected group 0 for in_feature 5 {NO_ACT_ORDER}1"
    ),
    "a zero point of AWQ": Bad(
        "awq",
        f"{FIRST}.qzeros",
        at((1, 2), -0x77777777 - 2),
        "expected the zero point 8 everywhere (stored as 8), got 7 stored in word [1, 2]",
    ),
    "zero points of GPTQ": Bad(
        "gptq",
        f"{FIRST}.qzeros",
        lambda z: np.full_like(z, 0x66666666),
        "expected the zero point 8 everywhere (stored as 7), got 6 stored in word [0, 0]",
    ),
    "zero points of the other version": Bad(
        "gptq_v2",
        f"{FIRST}.qzeros",
        lambda z: np.full_like(z, 0x77777777),
        "(stored as 8), got 7 stored in word [0, 0]: only symmetric weights can be read",
    ),
    "codes of 8 bits": Bad(
        "compressed-tensors groups",
        f"{FIRST}.weight_shape",
        lambda shape: shape // np.array([1, 2]),
        "expected [32, 64] for 4-bit codes, got [32, 32]",
    ),
    "a code of neither spelling": Bad(
        "fastdeploy offset",
        f"{PREFIX}.experts.1.down_proj.weight",
        at((0, 0), 0x0F),
        "expected the layer's spelling of codes, got another",
    ),
    "a sign of a code of neither spelling": Bad(
        "fastdeploy signs",
        f"{PREFIX}.experts.1.up_gate_proj.weight",
        at((0, 0), 0x0F),
        "expected the layer's spelling of codes, got another",
    ),
    "a bias that is NaN": Bad(
        "gpt-oss",
        f"{PREFIX}.experts.gate_up_proj_bias",
        at((1, 3), np.nan),
        "expected finite numbers, got nan at [3]",
    ),
    "a scale of activations that is 0": Bad(
        "deepseek",
        f"{PREFIX}.experts.0.w2.input_scale",
        at(0, 0),
        "expected a positive scale, got 0",
    ),
    "scales of activations in a row": Bad(
        "fastdeploy channels",
        f"{PREFIX}.experts.0.down_proj.activation_scale",
        lambda _: np.ones(7, np.float32),
        "expected shape [1] or [], got [7]",
    ),
}


@pytest.mark.parametrize("bad", TENSORS.values(), ids=TENSORS.keys())
def test_tensors(bad: Bad, tmp_path: Path) -> None:
    case = BY_NAME[bad.case]
    tensors = tensors_of(case)
    tensors[bad.tensor] = bad.change(tensors[bad.tensor])
    folder = write_checkpoint(tmp_path, tensors, case.config)
    assert_refused(folder, bad.message, tensor=bad.tensor)


def scheme(**weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"weights": weights}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}


def method(name: str, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": name} | more}


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
        {"quantization_config": {"hadamard_block_size": 512}},
        "hadamard_block_size: expected -1 (the layer does not rotate its activations), got 512",
    ),
    "another activation": (
        "deepseek",
        {"hidden_act": "relu"},
        "hidden_act: expected silu or swish",
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


def test_codes_that_tell_no_spelling(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["fastdeploy offset"])
    codes = {n: np.full_like(v, 0x77) for n, v in tensors.items() if n.endswith(".weight")}
    folder = write_checkpoint(tmp_path, tensors | codes, {})
    assert_refused(folder, "expected a code 0 or 15, which tells the spelling, got none anywhere")
    both = {name: np.full_like(values, 0x0F) for name, values in codes.items()}
    folder = write_checkpoint(tmp_path, tensors | both, {})
    assert_refused(folder, "expected codes of 0 to 14 or of 1 to 15, got both 0 and 15")


def float_tensors(value: float, dtype: Any = np.float32) -> Tensors:
    shapes = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
    names = {f"{PREFIX}.experts.0.{name}.weight": shape for name, shape in shapes.items()}
    return {name: np.full(shape, value).astype(dtype) for name, shape in names.items()}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_float_weights_that_are_nan(dtype: Any, tmp_path: Path) -> None:
    tensors = float_tensors(np.nan, dtype)
    if dtype == ml_dtypes.float8_e4m3fn:
        tensors |= {f"{name}_scale_inv": np.ones((1, 1), np.float32) for name in tensors}
    folder = write_checkpoint(tmp_path, tensors, {})
    assert_refused(folder, "gate_proj.weight: expected finite numbers, got nan at [0, 0]")


def test_fp8_products_that_overflow(tmp_path: Path) -> None:
    tensors = float_tensors(448, ml_dtypes.float8_e4m3fn)
    tensors |= {f"{name}_scale_inv": np.full((1, 1), 1e37, np.float32) for name in tensors}
    folder = write_checkpoint(tmp_path, tensors, {})
    assert_refused(folder, "gate_proj.weight: expected finite products, got infinity")


@pytest.mark.parametrize("block", [[128], "128", [0, 128], [True, 1]])
def test_blocks_that_are_none(block: Any, tmp_path: Path) -> None:
    tensors = float_tensors(1, ml_dtypes.float8_e4m3fn)
    tensors |= {f"{name}_scale_inv": np.ones((1, 1), np.float32) for name in tensors}
    folder = write_checkpoint(tmp_path, tensors, method("fp8", weight_block_size=block))
    assert_refused(folder, "weight_block_size: expected two positive integers, got ")


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
