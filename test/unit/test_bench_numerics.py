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
"""The benchmark of numerics, run with the CPU kernel: what it reports is what is there."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import paddle
import pytest

from w4afp8.bench import numerics
from w4afp8.quant.quantize import dequantize
from w4afp8.testing import float8
from w4afp8.testing.compare import FLOAT32_UNIT

pytestmark = pytest.mark.cpu_only

CPU = paddle.CPUPlace()
IN_FEATURES = 512


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "IN_FEATURES", (256, IN_FEATURES))


def make_problem(data: Any, weight_format: Any, group_size: int) -> numerics.Problem:
    rng = np.random.default_rng(0)
    x = numerics.quantized_activations(data, rng)
    weight = numerics.quantized_weight(data, weight_format, group_size, rng)
    return numerics.problem_of(x, weight, IN_FEATURES)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("data", numerics.DATA)
@pytest.mark.parametrize(("weight_format", "group_size"), numerics.FORMATS)
def test_problem_is_cut_and_scaled(data: Any, weight_format: Any, group_size: int) -> None:
    problem = make_problem(data, weight_format, group_size)
    assert problem.x.shape == (numerics.TOKENS, IN_FEATURES)
    assert 0.5 <= problem.size < 1
    expected = float8.decode(problem.x) @ dequantize(problem.weight)[0].T.astype(np.float64)
    # Scaled by powers of two, so the same sums but for their order in float64.
    np.testing.assert_allclose(problem.product, expected, atol=IN_FEATURES * 2.0**-52 * 1e3)
    if data == "positive":
        assert (problem.product > 0).all()


@pytest.mark.usefixtures("short")
def test_activations_use_the_whole_type() -> None:
    bits = numerics.quantized_activations("heavy-tailed", np.random.default_rng(0))
    assert (np.abs(float8.decode(bits)).max(axis=1) == float8.LARGEST).all()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("weight_format", "group_size"), numerics.FORMATS)
def test_cpu_kernel_rounds_and_does_nothing_else(weight_format: Any, group_size: int) -> None:
    problem = make_problem("normal", weight_format, group_size)
    for values in numerics.measure(problem, CPU):
        # float32 sums: n + 2 roundings of a partial sum, which for data of both signs stays below
        # a few times the result's size; 4 is generous where sqrt(n) additions would be the mean.
        assert values["accumulator"] < 4 * np.sqrt(IN_FEATURES) * FLOAT32_UNIT
        assert values["error"] == pytest.approx(values["rounding"], rel=1e-3)
        assert values["tiles_agree"]


@pytest.mark.usefixtures("short")
def test_rounding_is_that_of_the_type() -> None:
    problem = make_problem("normal", "int4", -1)
    found = {v["out_dtype"]: v["rounding"] for v in numerics.measure(problem, CPU)}
    # sqrt(0.541 / 3) of half a unit (GemmCase.error_bound): 1.66e-3 and 2.07e-4; 128 * 128 samples
    # scatter by less than 2%.
    assert found["bfloat16"] == pytest.approx(0.4247 * 2.0**-8, rel=0.02)
    assert found["float16"] == pytest.approx(0.4247 * 2.0**-11, rel=0.02)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("share", [1e-5, 1e-3])
def test_an_error_of_the_sums_is_found(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight scale that is off by `share` makes every sum wrong by that much."""
    problem = make_problem("normal", "int4", -1)
    operator = numerics.Operator(problem, CPU, {})
    wrong = operator._packed.weight_scale * (1 + share)
    packed = dataclasses.replace(operator._packed, weight_scale=wrong)
    monkeypatch.setattr(operator, "_packed", packed)
    # Resolved to 2^-23 of the result, and the product with the scale is rounded to float32.
    assert numerics.accumulator_error(operator, problem) == pytest.approx(share, rel=0.02)


def test_promise_is_for_normal_data_and_the_default() -> None:
    values = {"rounding": 1e-3, "accumulation": "default"}
    assert numerics.bound_of("normal", values) == 2e-3
    assert numerics.bound_of("positive", values) is None
    assert numerics.bound_of("normal", {**values, "accumulation": "float32"}) is None
