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
"""Routing against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.testing.compare import assert_within
from w4afp8.testing.tensors import bits_of, float_tensor, tensor_bits, values_of

pytestmark = pytest.mark.usefixtures("route")

# Float32 scores: exp within a few units u = 2^-24 of a difference of at most 2^5 that carries one
# more u, the sum and the division: 2^6 u.
SCORE_ERROR = 2.0**-18


def scores_of(logits: NDArray[Any], score: str) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    if score == "sigmoid":
        return 1 / (1 + np.exp(-x))
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def run(place: Any, logits: NDArray[Any], topk: int, dtype: str = "float32", **options: Any) -> Any:
    bias = options.pop("correction_bias", None)
    weights, ids = ops.moe_route(
        float_tensor(logits, dtype, place),
        topk=topk,
        correction_bias=None if bias is None else float_tensor(bias, "float32", place),
        **options,
    )
    assert weights.shape == ids.shape == [len(logits), topk]
    assert str(ids.dtype) == "paddle.int32"
    assert str(weights.dtype) == "paddle.float32"
    return tensor_bits(weights).view(np.float32), tensor_bits(ids).view(np.int32)


def check(
    place: Any,
    values: NDArray[Any],
    topk: int,
    *,
    dtype: str = "float32",
    score: str = "softmax",
    norm: bool = True,
    factor: float = 1.0,
    bias: NDArray[np.float32] | None = None,
) -> None:
    logits = values_of(bits_of(values, dtype), dtype)
    options = {"score": score, "norm_topk_prob": norm, "routed_scaling_factor": factor}
    weights, ids = run(place, logits, topk, dtype, correction_bias=bias, **options)
    scores = scores_of(logits, score)
    keys = scores if bias is None else scores + bias
    assert all(len(set(row)) == topk for row in ids.tolist())

    # The keys of the chosen in falling order, as far as float32 tells them apart.
    best = -np.sort(-keys, axis=1)[:, :topk]
    largest = np.abs(scores).max(initial=0) + (0 if bias is None else np.abs(bias).max())
    error = SCORE_ERROR * largest
    assert_within(np.take_along_axis(keys, ids, 1), best, np.full(best.shape, 2 * error), "keys")

    expected = np.take_along_axis(scores, ids, 1)
    if norm:
        expected = expected / expected.sum(axis=1, keepdims=True)
    expected = expected * factor
    assert_within(weights, expected, 3 * SCORE_ERROR * np.abs(expected), "weights")


@pytest.mark.parametrize(
    ("experts", "topk"),
    [(1, 1), (5, 2), (8, 8), (32, 4), (33, 6), (128, 8), (160, 6), (256, 8), (1000, 32), (1024, 1)],
)
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_sizes(place: Any, experts: int, topk: int, score: str) -> None:
    logits = np.random.default_rng(0).standard_normal((37, experts)) * 3
    check(place, logits, topk, score=score)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_options(place: Any, dtype: str, norm: bool, score: str) -> None:
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((50, 64)) * 2
    bias = rng.standard_normal(64).astype(np.float32)
    check(place, logits, 6, dtype=dtype, norm=norm, score=score, factor=2.5, bias=bias)


def test_bias_chooses_but_does_not_weigh(place: Any) -> None:
    bias = np.zeros(8, np.float32)
    bias[6] = 100
    weights, ids = run(place, np.zeros((3, 8)), 2, correction_bias=bias, norm_topk_prob=False)
    assert ids.tolist() == [[6, 0]] * 3
    assert weights.tolist() == [[0.125, 0.125]] * 3


@pytest.mark.parametrize("experts", [4, 40, 300])
def test_ties_go_to_the_lower_expert(place: Any, experts: int) -> None:
    logits = np.zeros((2, experts))
    logits[1, [1, experts - 1]] = 1
    _, ids = run(place, logits, 4)
    assert ids[0].tolist() == [0, 1, 2, 3]
    assert ids[1].tolist() == [1, experts - 1, *[e for e in range(4) if e != 1][:2]]


def test_equal_logits_give_equal_weights(place: Any) -> None:
    weights, ids = run(place, np.full((5, 4), 3.0), 4, routed_scaling_factor=4.0)
    assert ids.tolist() == [[0, 1, 2, 3]] * 5
    assert weights.tolist() == [[1.0] * 4] * 5


def test_ids_stay_experts_whatever_the_logits(place: Any) -> None:
    logits = np.random.default_rng(2).standard_normal((6, 40))
    logits[0] = np.nan
    logits[1, 7] = np.nan
    logits[2, 7] = np.inf
    logits[3] = -np.inf
    logits[4, ::2] = -np.inf
    for score in ("softmax", "sigmoid"):
        weights, ids = run(place, logits, 5, score=score)
        assert ((ids >= 0) & (ids < 40)).all()
        assert all(len(set(row)) == 5 for row in ids.tolist())
        assert np.isnan(weights[0]).all()
        assert np.isfinite(weights[[4, 5]]).all()


def test_huge_logits(place: Any) -> None:
    check(place, np.array([[3e38, -3e38, 0, 1], [-3e38, -3e38, -3e38, -2e38]]), 1)


def test_no_tokens(place: Any) -> None:
    check(place, np.zeros((0, 8)), 2, bias=np.zeros(8, np.float32), norm=False)
