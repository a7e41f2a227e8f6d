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
"""Readers against checkpoints that the ecosystems' own packages wrote and decoded."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fixture_files import (
    DATA,
    EXACT,
    PROJECTIONS,
    ROUNDED,
    CheckpointCase,
    assert_same_values,
    exact_layers,
    expected_arrays,
    name_layer,
)
from safetensors import safe_open

from w4afp8.checkpoint import open_checkpoint
from w4afp8.quant import QuantizedWeight, dequantize, pack, quantize, unpack
from w4afp8.quant.codes import split_nibbles

pytestmark = pytest.mark.cpu_only


def raw_tensors(name: str) -> dict[str, np.ndarray]:
    """All tensors of a fixture in one file, as safetensors' own reader and ml_dtypes have them."""
    file = DATA / name / "model.safetensors"
    with safe_open(file, framework="paddle") as tensors:
        return {key: _as_numpy(tensors.get_tensor(key)) for key in tensors.keys()}  # noqa: SIM118


def _as_numpy(tensor: Any) -> np.ndarray:
    types = {"bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}
    name = str(tensor.dtype).removeprefix("paddle.")
    return tensor.numpy().view(types[name]) if name in types else tensor.numpy()


@pytest.mark.parametrize("case", EXACT, ids=name_layer)
def test_recognises_the_format(case: CheckpointCase) -> None:
    checkpoint = open_checkpoint(case.path)
    assert checkpoint.format == case.format
    assert tuple(info.index for info in checkpoint.layers) == case.layers
    for info in checkpoint.layers:
        assert info.exact
        for field in (
            "experts",
            "hidden_size",
            "intermediate_size",
            "weight_format",
            "group_size",
            "scale_dtype",
            "activation",
            "has_bias",
        ):
            assert getattr(info, field) == getattr(case, field), field


@pytest.mark.parametrize(("case", "layer"), exact_layers(), ids=name_layer)
def test_values_are_the_packages(case: CheckpointCase, layer: int) -> None:
    checkpoint = open_checkpoint(case.path)
    expected = expected_arrays(case.name, layer)
    for expert in range(case.experts):
        weights = checkpoint.read_expert(checkpoint.layer(layer), expert)
        assert weights.error == 0
        for name in PROJECTIONS:
            values = dequantize(getattr(weights, name))[0]
            assert_same_values(values, expected, name, expert)
            bias = getattr(weights, f"{name}_bias")
            assert (bias is not None) == case.has_bias
            if bias is not None:
                np.testing.assert_array_equal(bias, expected[f"{name}_bias"][expert])


@pytest.mark.parametrize(("case", "layer"), exact_layers(), ids=name_layer)
def test_every_code_occurs(case: CheckpointCase, layer: int) -> None:
    """Otherwise the other tests would prove less than they seem to."""
    checkpoint = open_checkpoint(case.path)
    codes: set[int] = set()
    for expert in range(case.experts):
        weights = checkpoint.read_expert(checkpoint.layer(layer), expert)
        for name in PROJECTIONS:
            codes |= set(split_nibbles(getattr(weights, name).codes).flat)
    unused = {8} if case.weight_format == "int4" and case.least == -7 else set()
    assert codes == set(range(16)) - unused


@pytest.mark.parametrize("name", ["compressed_tensors_mxfp4", "gpt_oss"])
def test_extreme_exponents_survive_packing(name: str) -> None:
    """2^-127 and 2^127, in one output channel and alone."""
    checkpoint = open_checkpoint(DATA / name)
    for expert in range(checkpoint.layer(1).experts):
        weights = checkpoint.read_expert(checkpoint.layer(1), expert)
        both = [getattr(weights, projection) for projection in PROJECTIONS]
        for weight in both:
            assert_same_weights(unpack(pack(weight)), weight)
        spreads = [np.ptp(weight.scale.astype(int), axis=2).max() for weight in both]
        assert max(spreads) == 254


def assert_same_weights(actual: QuantizedWeight, expected: QuantizedWeight) -> None:
    np.testing.assert_array_equal(actual.codes, expected.codes)
    np.testing.assert_array_equal(actual.scale, expected.scale)
    for field in ("weight_format", "group_size", "scale_dtype"):
        assert getattr(actual, field) == getattr(expected, field), field


def test_static_activation_scales() -> None:
    """The larger of gate's and up's; FastDeploy stores the largest magnitude, 448 times the scale.

    float32 divided by 448 in double precision is rounded once more at most: half a unit of 2^-24.
    """
    tensors = raw_tensors("deepseek_w4afp8")
    checkpoint = open_checkpoint(DATA / "deepseek_w4afp8")
    for expert in range(3):
        w1, w2, w3 = (
            float(tensors[f"model.layers.1.mlp.experts.{expert}.w{i}.input_scale"])
            for i in (1, 2, 3)
        )
        weights = checkpoint.read_expert(checkpoint.layer(1), expert)
        got = (weights.up_gate_input_scale, weights.down_input_scale)
        assert got == (max(w1, w3), w2)

    tensors = raw_tensors("fastdeploy")
    checkpoint = open_checkpoint(DATA / "fastdeploy")
    weights = checkpoint.read_expert(checkpoint.layer(0), 0)
    for name, scale in (
        ("up_gate_proj", weights.up_gate_input_scale),
        ("down_proj", weights.down_input_scale),
    ):
        largest = tensors[f"ernie.layers.0.mlp.experts.0.{name}.activation_scale"][0]
        assert scale == pytest.approx(float(largest) / 448, rel=2.0**-24, abs=0)


def source_values(name: str, expert: int) -> dict[str, np.ndarray]:
    """float32 weights of an expert: bfloat16, or E4M3 times the scale of its block of 32 x 64."""
    tensors = raw_tensors(name)
    values = {}
    for projection in ("gate_proj", "up_proj", "down_proj"):
        key = f"model.layers.0.mlp.experts.{expert}.{projection}.weight"
        values[projection] = tensors[key].astype(np.float32)
        if name == "fp8_block":
            scale = tensors[f"{key}_scale_inv"].repeat(32, axis=0).repeat(64, axis=1)
            values[projection] *= scale
    up_gate = np.concatenate([values["gate_proj"], values["up_proj"]])
    return {"up_gate": up_gate, "down": values["down_proj"]}


@pytest.mark.parametrize(
    ("weight_format", "group_size"), [("int4", -1), ("int4", 32), ("mxfp4", 32)]
)
@pytest.mark.parametrize("name", ROUNDED)
def test_rounds_the_packages_values(name: str, weight_format: Any, group_size: int) -> None:
    checkpoint = open_checkpoint(DATA / name, weight_format=weight_format, group_size=group_size)
    (info,) = checkpoint.layers
    assert not info.exact
    expected = expected_arrays(name, 0)
    for expert in range(info.experts):
        weights = checkpoint.read_expert(info, expert)
        squares = np.zeros(2)
        for projection, values in source_values(name, expert).items():
            assert_same_values(values, expected, projection, expert)
            rounded = quantize(values[None], weight_format=weight_format, group_size=group_size)
            assert_same_weights(getattr(weights, projection), rounded)
            difference = dequantize(rounded)[0] - values
            squares += [np.square(a, dtype=np.float64).sum() for a in (difference, values)]
        # Sums of at most 2^15 squares in another order: 2^15 double precision units.
        np.testing.assert_allclose(weights.error**2, squares[0] / squares[1], rtol=2.0**-37)
        assert weights.error > 0


def test_the_fixtures_are_complete_and_small() -> None:
    folders = {path.name for path in DATA.iterdir() if path.is_dir()}
    assert folders == {case.name for case in EXACT} | set(ROUNDED)
    readme = (DATA / "README.md").read_text()
    assert all(f"| `{name}` |" in readme for name in folders)
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 2**20
