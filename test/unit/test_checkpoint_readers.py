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
"""Each format gives back the codes and scales that were spelled in it, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from checkpoint_samples import (
    BY_NAME,
    CASES,
    EXPERTS,
    PREFIX,
    Case,
    Matrix,
    bias_of,
    draw_experts,
    pairs_of,
    spell,
    stored_scale_to_multiplier,
)
from numpy.typing import NDArray

from w4afp8.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from w4afp8.checkpoint.numbers import E4M3_VALUES
from w4afp8.quant import QuantizedWeight, dequantize, quantize

pytestmark = pytest.mark.cpu_only

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def assert_is(weight: QuantizedWeight, matrices: list[Matrix], case: Case) -> None:
    codes = np.concatenate([pairs_of(matrix.codes) for matrix in matrices])
    scale = stored_scale_to_multiplier(case, np.concatenate([m.scale for m in matrices]))
    scale = scale[:, 0] if case.group_size == -1 else scale
    assert weight.weight_format == case.weight_format
    assert weight.group_size == case.group_size
    assert np.array_equal(weight.codes, codes[None])
    assert weight.scale.dtype == scale.dtype
    assert weight.scale.tobytes() == scale.tobytes()


def opened(case: Case, folder: Path, seed: int = 0) -> tuple[list[Any], Checkpoint]:
    experts = draw_experts(case, np.random.default_rng(seed))
    return experts, open_checkpoint(write_checkpoint(folder, spell(case, experts), case.config))


@every_case
def test_codes_and_scales(case: Case, tmp_path: Path) -> None:
    experts, checkpoint = opened(case, tmp_path)
    for number, expert in enumerate(experts):
        read = checkpoint.read_expert(checkpoint.layers[0], number)
        assert_is(read.up_gate, [expert["gate"], expert["up"]], case)
        assert_is(read.down, [expert["down"]], case)
        assert read.error == 0
        checkpoint.release()


@every_case
def test_layer(case: Case, tmp_path: Path) -> None:
    _, checkpoint = opened(case, tmp_path)
    (layer,) = checkpoint.layers
    assert (layer.index, layer.prefix, layer.experts) == (3, PREFIX, EXPERTS)
    assert (layer.hidden_size, layer.intermediate_size) == (case.hidden, case.intermediate)
    assert (layer.weight_format, layer.group_size) == (case.weight_format, case.group_size)
    assert layer.scale_dtype == ("bfloat16" if case.scale_type == ml_dtypes.bfloat16 else "float32")
    assert layer.activation == ("swiglu_oai" if case.name == "gpt-oss" else "swiglu")
    assert layer.has_bias == case.has_bias
    assert layer.exact
    assert checkpoint.path == tmp_path
    assert checkpoint.layer(3) is checkpoint.layer(PREFIX) is layer


@pytest.mark.parametrize("name", ["gpt-oss", "gptq"])
def test_biases(name: str, tmp_path: Path) -> None:
    _, checkpoint = opened(BY_NAME[name], tmp_path)
    layer = checkpoint.layers[0]
    for number in range(EXPERTS):
        read = checkpoint.read_expert(layer, number)
        if name == "gpt-oss":  # gate and up in turn there
            rows = bias_of(number, "gate_up_proj", 2 * layer.intermediate_size)
            first = [rows[0::2], rows[1::2]]
        else:
            first = [bias_of(number, p, layer.intermediate_size) for p in ("gate_proj", "up_proj")]
        assert np.array_equal(read.up_gate_bias, np.concatenate(first).astype(np.float32))
        down = bias_of(number, "down_proj", layer.hidden_size)
        assert np.array_equal(read.down_bias, down.astype(np.float32))


def test_static_scales_of_activations(tmp_path: Path) -> None:
    _, deepseek = opened(BY_NAME["deepseek"], tmp_path / "deepseek")
    read = deepseek.read_expert(deepseek.layers[0], 0)
    assert (read.up_gate_input_scale, read.down_input_scale) == (0.25, 0.25)
    _, fastdeploy = opened(BY_NAME["fastdeploy channels"], tmp_path / "fastdeploy")
    read = fastdeploy.read_expert(fastdeploy.layers[0], 0)
    assert (read.up_gate_input_scale, read.down_input_scale) == (0.125, 0.125)  # 56 / 448
    _, gptq = opened(BY_NAME["gptq"], tmp_path / "gptq")
    read = gptq.read_expert(gptq.layers[0], 0)
    assert (read.up_gate_input_scale, read.down_input_scale) == (None, None)


def test_the_larger_scale_of_gate_and_up(tmp_path: Path) -> None:
    case = BY_NAME["deepseek"]
    tensors = spell(case, draw_experts(case, np.random.default_rng(0)))
    tensors[f"{PREFIX}.experts.0.w3.input_scale"] = np.float32([4.0])
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, {}))
    assert checkpoint.read_expert(checkpoint.layers[0], 0).up_gate_input_scale == 4


def float_weights(dtype: Any, hidden: int = 128, intermediate: int = 256) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    shapes = {"gate_proj": (intermediate, hidden), "up_proj": (intermediate, hidden)}
    shapes["down_proj"] = (hidden, intermediate)
    return {
        f"{PREFIX}.experts.{number}.{name}.weight": rng.standard_normal(shape).astype(dtype)
        for number in range(EXPERTS)
        for name, shape in shapes.items()
    }


def assert_quantised(
    checkpoint: Checkpoint, values: dict[str, NDArray[np.float32]], **options: Any
) -> None:
    """`values`: the weights by their names, exactly."""
    for number in range(EXPERTS):
        read = checkpoint.read_expert(checkpoint.layers[0], number)
        gate, up, down = (
            values[f"{PREFIX}.experts.{number}.{name}.weight"][None]
            for name in ("gate_proj", "up_proj", "down_proj")
        )
        up_gate = np.concatenate([gate, up], axis=1)
        errors = 0.0
        for weight, original in ((read.up_gate, up_gate), (read.down, down)):
            expected = quantize(original, **options)
            assert np.array_equal(weight.codes, expected.codes)
            assert np.array_equal(weight.scale, expected.scale)
            errors += float(np.square(dequantize(weight) - original, dtype=np.float64).sum())
        norm = float(np.square(up_gate, dtype=np.float64).sum())
        norm += float(np.square(down, dtype=np.float64).sum())
        # Sums of up to 2^16 positive float64 terms in another order: 2^16 * 2^-53 of the sum.
        assert read.error == pytest.approx((errors / norm) ** 0.5, rel=2.0**-36)
        assert 0.02 < read.error < 0.3


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_format": "mxfp4"},
        {"group_size": 128, "scale_dtype": "bfloat16", "rounding": "absmax/7.5"},
    ],
    ids=["int4", "mxfp4", "groups"],
)
def test_float_weights_are_quantised(dtype: Any, options: dict[str, Any], tmp_path: Path) -> None:
    tensors = float_weights(dtype)
    write_checkpoint(tmp_path, tensors, {"hidden_act": "silu"})
    checkpoint = open_checkpoint(tmp_path, **options)
    assert checkpoint.format == "float"
    assert not checkpoint.layers[0].exact
    values = {name: array.astype(np.float32) for name, array in tensors.items()}
    assert_quantised(checkpoint, values, **options)


def test_fp8_blocks_are_quantised(tmp_path: Path) -> None:
    tensors, values = {}, {}
    for name, array in float_weights(np.float32, 160, 288).items():
        weight = array.astype(ml_dtypes.float8_e4m3fn)
        out, in_features = weight.shape
        blocks = (-(-out // 128), -(-in_features // 128))  # the last ones are cut
        scale = np.random.default_rng(2).uniform(0.5, 2, blocks).astype(np.float32)
        tensors |= {name: weight, f"{name}_scale_inv": scale}
        whole = np.kron(scale, np.ones((128, 128), np.float32))[:out, :in_features]
        values[name] = weight.astype(np.float32) * whole
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, config), group_size=32)
    assert checkpoint.format == "fp8-block"
    assert_quantised(checkpoint, values, group_size=32)


def test_e4m3_is_that_of_ml_dtypes() -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(E4M3_VALUES, expected, equal_nan=True)
    assert np.array_equal(np.signbit(E4M3_VALUES[[0, 128]]), [False, True])


def test_an_expert_that_does_not_exist(tmp_path: Path) -> None:
    for name in ("deepseek", "gpt-oss"):
        _, checkpoint = opened(BY_NAME[name], tmp_path / name)
        for number in (-1, EXPERTS):
            with pytest.raises(CheckpointError, match=f"expert: expected 0 to 1, got {number}"):
                checkpoint.read_expert(checkpoint.layers[0], number)
