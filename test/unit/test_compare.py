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
"""The references and bounds that the other tests trust."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest

from w4afp8.bench.numerics import quantized_activations, rounded
from w4afp8.quant.quantize import dequantize, quantize
from w4afp8.quant.weights import WeightFormat
from w4afp8.testing import float8
from w4afp8.testing.compare import (
    CARRIED_EVERY,
    CPU_ACCUMULATOR,
    HOPPER_ACCUMULATOR,
    K_BLOCK,
    Summation,
    accumulation_error,
    assert_within,
    gemm_bound,
)
from w4afp8.testing.gemm_inputs import GemmProblem, random_inputs, reference
from w4afp8.testing.tensor_core import truncating_sum
from w4afp8.testing.tensors import bits_of, values_of

pytestmark = pytest.mark.cpu_only

ROOT = pathlib.Path(__file__).parents[2]


def test_float8_is_that_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    e4m3 = np.dtype(ml_dtypes.float8_e4m3fn)
    every = np.arange(256, dtype=np.uint8)
    decoded = every.view(e4m3).astype(np.float64)
    assert np.array_equal(float8.decode(every), decoded, equal_nan=True)
    for dtype in ("bfloat16", "float16"):
        values = values_of(np.arange(2**16, dtype=np.uint16), dtype).astype(np.float32)
        values = values[np.isfinite(values)].clip(-448, 448)
        assert (float8.encode(values) == values.astype(e4m3).view(np.uint8)).all()
    random = np.random.default_rng(0).standard_normal(10**5) * np.exp2(np.arange(10**5) % 20 - 12)
    random = random.astype(np.float32).clip(-448, 448)
    assert (float8.encode(random) == random.astype(e4m3).view(np.uint8)).all()
    assert float8.encode(np.array([np.nan, np.inf, -1e9])).tolist() == [0x7F, 0x7E, 0xFE]


def test_bfloat16_is_that_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(0).standard_normal(10**5).astype(np.float32)
    values[:3] = [np.inf, -0.0, 3.4e38]
    expected = values.astype(ml_dtypes.bfloat16)
    bits = bits_of(values, "bfloat16")
    assert (bits == expected.view(np.uint16)).all()
    assert (values_of(bits, "bfloat16") == expected.astype(np.float32)).all()


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("how", ["halves", 64, 128, 1664, 2816])
@pytest.mark.parametrize("in_features", [128, 1024, 8192])
def test_bound_holds_for_a_truncating_accumulator(
    positive: bool, how: Summation, in_features: int
) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((8, in_features)), rng.standard_normal((24, in_features))
    if positive:
        x, weight = np.abs(x), np.abs(weight)
    error = np.abs(truncating_sum(x, weight, how) - x @ weight.T)
    bound = accumulation_error(x, weight, how, HOPPER_ACCUMULATOR).bound()
    assert (error <= bound).all()
    # And it is no bound that anything would pass. Of a normal error the mean is 0.8 deviations; the
    # bound takes 8, L / 2 for the deviation of a uniform cut (0.58 of that) and 2^-13 M for L (0.72
    # of that on average): 8 / (0.8 * 0.58 * 0.72) = 24. Promotion adds float32's part. The bound of
    # halves counts a scale's rounding, which is none here: half of the last roundings.
    float32 = accumulation_error(x, weight, how, CPU_ACCUMULATOR).bound()
    own = bound - float32 if isinstance(how, int) else bound
    assert own.mean() <= (34 if how == "halves" else 24) * error.mean()


def times_rounding(weight_format: WeightFormat, in_features: int, how: Summation) -> float:
    """Error of a float16 product of normal data, its sums executed, over that of rounding alone."""
    rng = np.random.default_rng(0)
    x = quantized_activations("normal", rng)[:12]
    group_size = 32 if weight_format == "mxfp4" else -1
    values = rng.standard_normal((1, 48, in_features), np.float32)
    weight = quantize(values, weight_format=weight_format, group_size=group_size)
    factors, scale = dequantize(weight)[0].astype(np.float64), np.ones(48)
    if weight_format == "int4":  # the kernel multiplies codes
        scale = weight.scale.reshape(-1).astype(np.float64)
        factors = np.round(factors / scale[:, None])
    x_values = float8.decode(x[:, :in_features])
    exact, size = x_values @ factors.T * scale, 2.0**-12  # far from float16's ends
    sums = truncating_sum(x_values, factors, how) * scale
    error = np.linalg.norm(rounded(sums * size, "float16") - exact * size)
    return float(error / np.linalg.norm(rounded(exact * size, "float16") - exact * size))


def test_kernel_carries_as_often() -> None:
    source = (ROOT / "gpu_ops/grouped_gemm/dequant.cuh").read_text()
    blocks = re.findall(r"struct (\w+)Carried .*?kCarriedBlocks = (\d+)", source, re.DOTALL)
    assert {name.lower(): K_BLOCK * int(n) for name, n in blocks} == CARRIED_EVERY


@pytest.mark.parametrize("weight_format", CARRIED_EVERY)
def test_carried_sums_keep_float16(weight_format: WeightFormat) -> None:
    """docs/numerics.md promises twice the rounding; sums that are not carried do not keep it."""
    every = CARRIED_EVERY[weight_format]
    for in_features in (every, 8192):
        assert times_rounding(weight_format, in_features, every) < 2
    assert times_rounding(weight_format, 8192, 8192) > 2.5


@pytest.mark.parametrize("accumulator", [CPU_ACCUMULATOR, HOPPER_ACCUMULATOR])
def test_bound_notices_a_wrong_code(accumulator: object) -> None:
    inputs = random_inputs(GemmProblem((40,), 64, 128))
    right = reference(inputs)
    bound = gemm_bound(inputs, right, "bfloat16", accumulator)  # type: ignore[arg-type]
    assert_within(values_of(bits_of(right, "bfloat16"), "bfloat16"), right, bound)
    inputs.weight.codes[0, 5, 7] ^= 4  # one weight of 8192 is off by 4 steps
    wrong = values_of(bits_of(reference(inputs), "bfloat16"), "bfloat16")
    with pytest.raises(AssertionError, match="outside the bound"):
        assert_within(wrong, right, bound)
