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
"""Operators whose bytes are the same on the CPU and on the GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from w4afp8 import ops
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.shapes import GEMM_SHAPES, LinearShape
from w4afp8.testing.tensors import float_tensor, int_tensor, tensor_bits

pytestmark = pytest.mark.usefixtures("route")

CPU = paddle.CPUPlace()
# Odd and even, below and above a warp's, a block's and the registers' share of a row.
FEATURES = (1, 7, 8, 100, 256, 2880, 7168, 16384, 40001, 40008)


def hostile_rows(features: int, seed: int = 0) -> Any:
    """Rows of every size, and rows with NaN, infinities, zeros and the smallest numbers."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((16, features), np.float32)
    x *= np.exp2(rng.integers(-30, 12, (16, 1))).astype(np.float32)
    x[0] = 0.0
    x[1] = -0.0
    x[2] *= np.float32(2.0**-100)
    x[3] = np.where(rng.random(features) < 0.5, np.nan, x[3])
    x[4, -1] = np.inf
    x[5, 0] = -np.inf
    x[6] = np.nan
    x[7] = np.float32(2.0**-149)
    x[8] = 1.0
    # Exactly between two FP8 numbers: 17 / 16 rounds to 1, 19 / 16 to 1.25.
    x[9] = np.resize(np.array([448.0, 17 / 16, 19 / 16, -17 / 16], np.float32), features)
    return x


def assert_same(on_gpu: Any, on_cpu: Any, what: str) -> None:
    for i, (gpu, cpu) in enumerate(zip(on_gpu, on_cpu, strict=True)):
        assert gpu.dtype == cpu.dtype
        assert_bits_equal(tensor_bits(gpu), tensor_bits(cpu), f"{what}, output {i}")


@pytest.mark.parametrize("weight_format", ["int4", "mxfp4"])
@pytest.mark.parametrize("shape", GEMM_SHAPES, ids=str)
def test_pack_and_unpack(place: Any, shape: LinearShape, weight_format: Any) -> None:
    rng = np.random.default_rng(0)
    size = (3, shape.out_features, shape.in_features // 2)
    codes = rng.integers(0, 256, size, dtype=np.uint8)
    packed = [
        ops.pack_weight(int_tensor(codes, "uint8", where), weight_format=weight_format)
        for where in (place, CPU)
    ]
    assert_same(packed[:1], packed[1:], "pack_weight")
    back = ops.unpack_weight(
        packed[0],
        weight_format=weight_format,
        out_features=shape.out_features,
        in_features=shape.in_features,
    )
    assert_bits_equal(tensor_bits(back), codes, "unpack_weight")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("features", FEATURES)
def test_quant_per_token(place: Any, features: int, dtype: str) -> None:
    x = hostile_rows(features)
    results = [ops.quant_per_token(float_tensor(x, dtype, where)) for where in (place, CPU)]
    assert_same(*results, f"{features} features")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("features", FEATURES)
def test_activation_quant_of_what_is_activated(place: Any, features: int, dtype: str) -> None:
    x = hostile_rows(features)
    results = [
        ops.activation_quant(
            float_tensor(x, dtype, where),
            int_tensor([len(x)], "int32", where),
            activation="none",
        )
        for where in (place, CPU)
    ]
    assert_same(*results, f"{features} features")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "sizes",  # tokens, hidden, experts, topk
    [(1, 8, 1, 1), (5, 100, 4, 2), (16, 7168, 256, 8), (700, 256, 1024, 32), (3000, 64, 7, 3)],
)
def test_moe_dispatch(place: Any, sizes: tuple[int, ...], dtype: str) -> None:
    tokens, hidden, experts, topk = sizes
    rng = np.random.default_rng(tokens)
    x = np.resize(hostile_rows(hidden), (tokens, hidden))
    ids = rng.integers(0, experts, (tokens, topk))  # may name an expert twice
    ids[rng.random(ids.shape) < 0.05] = -1
    ids[rng.random(ids.shape) < 0.05] = experts
    results = [
        ops.moe_dispatch(
            float_tensor(x, dtype, where), int_tensor(ids, "int32", where), experts=experts
        )
        for where in (place, CPU)
    ]
    (permuted, scale, *sums), (cpu_permuted, cpu_scale, *cpu_sums) = results
    assert_same(sums, cpu_sums, "tokens and row_index")
    rows = int(cpu_sums[0].numpy()[-1])  # what lies behind was never written
    pairs = ((permuted, cpu_permuted), (scale, cpu_scale))
    for what, (gpu, cpu) in zip(("permuted", "scale"), pairs, strict=True):
        assert_bits_equal(tensor_bits(gpu)[:rows], tensor_bits(cpu)[:rows], what)


@pytest.mark.parametrize("padding", [1, 300])
def test_moe_dispatch_to_padded_rows(place: Any, padding: int) -> None:
    rng = np.random.default_rng(padding)
    ids = rng.integers(0, 50, (2000, 6))
    results = [
        ops.moe_dispatch(
            float_tensor(np.resize(hostile_rows(256), (2000, 256)), "bfloat16", where),
            int_tensor(ids, "int32", where),
            experts=40,
            token_padding=padding,
            first_expert=7,
        )
        for where in (place, CPU)
    ]
    (permuted, scale, *counts), (cpu_permuted, cpu_scale, *cpu_counts) = results
    assert_same(counts, cpu_counts, "counts and row_index")
    live = np.arange(padding) < cpu_counts[0].numpy()[:, None]
    for gpu, cpu in ((permuted, cpu_permuted), (scale, cpu_scale)):
        assert_bits_equal(tensor_bits(gpu)[live], tensor_bits(cpu)[live])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("topk", [1, 5, 17])
@pytest.mark.parametrize("hidden", [1, 100, 2880, 7168])
def test_moe_combine(place: Any, hidden: int, topk: int, dtype: str) -> None:
    rng = np.random.default_rng(hidden)
    y = rng.standard_normal((90, hidden), np.float32)
    weights = rng.random((40, topk), np.float32)
    rows = rng.integers(-2, 95, (40, topk))  # some outside
    shared = rng.standard_normal((40, hidden), np.float32)
    for has_shared in (False, True):
        results = [
            ops.moe_combine(
                float_tensor(y, dtype, where),
                float_tensor(weights, "float32", where),
                int_tensor(rows, "int32", where),
                shared_output=float_tensor(shared, dtype, where) if has_shared else None,
            )
            for where in (place, CPU)
        ]
        assert_same(results[:1], results[1:], "moe_combine")


def test_moe_combine_of_many_tokens(place: Any) -> None:
    rng = np.random.default_rng(0)
    y = rng.standard_normal((900, 5000), np.float32)
    weights, rows = rng.random((1500, 3), np.float32), rng.integers(-200, 900, (1500, 3))
    results = [
        ops.moe_combine(
            float_tensor(y, "bfloat16", where),
            float_tensor(weights, "float32", where),
            int_tensor(rows, "int32", where),
        )
        for where in (place, CPU)
    ]
    assert_same(results[:1], results[1:], "moe_combine")


@pytest.mark.parametrize(
    ("features", "size"), [(40, 8), (2048, 512), (2880, 64), (4096, 4096), (16384, 16384)]
)
def test_hadamard(place: Any, features: int, size: int) -> None:
    # gelu of 8 and more is the number itself, in float32: the bytes are those of the transform.
    rng = np.random.default_rng(size)
    h = rng.uniform(8, 16, (9, features)) * np.exp2(rng.integers(0, 20, (9, features)))
    results = [
        ops.activation_quant(
            float_tensor(h, "bfloat16", where),
            int_tensor([9], "int32", where),
            activation="gelu",
            hadamard_block_size=size,
        )
        for where in (place, CPU)
    ]
    assert_same(*results, f"{features} features in blocks of {size}")


def test_moe_route_with_ties_and_nan(place: Any) -> None:
    # Powers of two and equal logits: every score is exact, or NaN.
    logits = np.zeros((5, 300), np.float32)
    logits[1, 250:] = np.nan
    logits[2] = np.nan
    logits[3] = -np.inf
    logits[4, 7] = np.inf
    cases: Any = (("softmax", 1), ("sigmoid", 1), ("softmax", 6), ("sigmoid", 30))
    for score, n_group in cases:
        ids = [
            ops.moe_route(
                float_tensor(logits, "float32", where),
                topk=32,
                score=score,
                n_group=n_group,
                topk_group=max(1, n_group // 5),
            )[1]
            for where in (place, CPU)
        ]
        assert_same(ids[:1], ids[1:], score)
