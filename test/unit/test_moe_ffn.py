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
"""W4AFP8MoEFFN against a float64 reference, and exactly where the arithmetic is exact."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import paddle
import pytest
from moe_reference import MoEWeights, Routing, reference, route_tokens

from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.quant import QuantizedWeight, quantize
from w4afp8.quant.codes import CODE_VALUES, join_nibbles
from w4afp8.testing.compare import Accumulator
from w4afp8.testing.tensors import float_tensor, tensor_bits, to_place, values_of

FORMATS = [("int4", -1), ("int4", 32), ("int4", 64), ("mxfp4", 32)]


@dataclass(frozen=True)
class Case:
    """One layer and how many tokens it gets."""

    tokens: int = 9
    hidden: int = 64
    intermediate: int = 64
    experts: int = 4
    weight_format: str = "int4"
    group_size: int = -1
    activation: str = "swiglu"
    dtype: str = "bfloat16"
    routing: Routing = field(default_factory=lambda: Routing(topk=2))
    has_biases: bool = False
    has_correction_bias: bool = False
    hadamard_block_size: int = -1
    has_shared_output: bool = False
    logits: str = "random"  # "router": the layer's own; "last": all tokens to the last experts


CASES = {
    "plain": Case(),
    **{f"{f} group {g}": Case(weight_format=f, group_size=g) for f, g in FORMATS[1:]},
    "small": Case(intermediate=32, hidden=96),
    "float16": Case(dtype="float16"),
    "gelu": Case(activation="gelu", has_biases=True),
    "swiglu_oai": Case(activation="swiglu_oai", has_biases=True),
    "swiglu with biases": Case(has_biases=True),
    "mxfp4 float16 gelu": Case(weight_format="mxfp4", dtype="float16", activation="gelu"),
    "sigmoid": Case(routing=Routing(3, "sigmoid", True, 2.5), has_correction_bias=True),
    "not normalised": Case(routing=Routing(2, "softmax", False, 1.5)),
    "correction bias": Case(has_correction_bias=True, tokens=33),
    "own router": Case(logits="router", has_correction_bias=True),
    "one expert": Case(experts=1, routing=Routing(1)),
    "empty experts": Case(experts=8, logits="last"),
    "many experts": Case(experts=512, hidden=32, intermediate=32, routing=Routing(16)),
    "one token": Case(tokens=1),
    "padded sizes": Case(hidden=160, intermediate=96, weight_format="mxfp4"),
    "groups of experts": Case(
        experts=16, routing=Routing(3, "sigmoid", True, 2.5, 4, 2), has_correction_bias=True
    ),
    "rotated": Case(hadamard_block_size=32, intermediate=96, has_biases=True),
    "rotated, mxfp4": Case(hadamard_block_size=64, weight_format="mxfp4", dtype="float16"),
    "shared output": Case(has_shared_output=True),
}


def build(case: Case, rng: np.random.Generator) -> tuple[W4AFP8MoEFFN, MoEWeights, dict[str, Any]]:
    """A layer of random weights, their dequantised values, and the router's tensors."""
    gates = 1 if case.activation == "gelu" else 2

    def normal(*shape: int, size: float = 1.0) -> np.ndarray:
        return (size * rng.standard_normal(shape)).astype(np.float32)

    e, h, i = case.experts, case.hidden, case.intermediate
    up_gate, down = normal(e, gates * i, h, size=h**-0.5), normal(e, h, i, size=i**-0.5)
    # Multiples of 1/16 below 4 are exact in bfloat16 and float16.
    sizes = (gates * i, h)
    biases = [np.rint(16 * normal(e, n).clip(-3, 3)).astype(np.float32) / 16 for n in sizes]
    router = {
        "gate_weight": normal(h, e) if case.logits == "router" else None,
        "correction_bias": normal(e, size=0.3) if case.has_correction_bias else None,
    }
    layer = W4AFP8MoEFFN.from_float(
        up_gate,
        down,
        topk=case.routing.topk,
        weight_format=case.weight_format,
        group_size=case.group_size,
        activation=case.activation,
        dtype=case.dtype,
        scoring=case.routing.scoring,
        norm_topk_prob=case.routing.norm_topk_prob,
        routed_scaling_factor=case.routing.routed_scaling_factor,
        n_group=case.routing.n_group,
        topk_group=case.routing.topk_group,
        hadamard_block_size=case.hadamard_block_size,
        up_gate_bias=biases[0] if case.has_biases else None,
        down_bias=biases[1] if case.has_biases else None,
        **router,
    )
    quantized = [
        quantize(w, weight_format=case.weight_format, group_size=case.group_size)
        for w in (up_gate, down)
    ]
    used = [b.astype(np.float64) * case.has_biases for b in biases]
    return layer, MoEWeights(*quantized, *used), router


def make_logits(case: Case, rng: np.random.Generator) -> np.ndarray:
    logits = rng.standard_normal((case.tokens, case.experts)).astype(np.float32)
    if case.logits == "last":
        logits[:, -case.routing.topk :] += 20
    return logits


def values(tensor: paddle.Tensor) -> np.ndarray:
    """What a bfloat16 or float16 tensor holds, as float32."""
    dtype = "bfloat16" if tensor.dtype == paddle.bfloat16 else "float16"
    return values_of(tensor_bits(tensor), dtype).astype(np.float32)


def random_x(rng: np.random.Generator, *shape: int, dtype: str = "bfloat16", place: Any) -> Any:
    return float_tensor(rng.standard_normal(shape), dtype, place)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_float64(case: Case, place: Any, accumulator: Accumulator) -> None:
    rng = np.random.default_rng(7)
    layer, weights, router = build(case, rng)
    layer.to(device=place)
    x = random_x(rng, case.tokens, case.hidden, dtype=case.dtype, place=place)
    if case.logits == "router":
        logits, given = values(x).astype(np.float64) @ router["gate_weight"], None
    else:
        logits = make_logits(case, rng)
        given = to_place(paddle.to_tensor(logits), place)
    topk_weights, topk_ids = route_tokens(
        logits.astype(np.float64), case.routing, router["correction_bias"]
    )
    like_x = random_x(rng, case.tokens, case.hidden, dtype=case.dtype, place=place)
    shared = like_x if case.has_shared_output else None
    expected = reference(
        values(x),
        weights,
        topk_weights,
        topk_ids,
        activation=case.activation,
        dtype=case.dtype,
        accumulator=accumulator,
        hadamard_block_size=case.hadamard_block_size,
        shared_output=None if shared is None else values(shared).astype(np.float64),
    )
    # test_moe_reference.py: mistakes are further away than the bound, if that is well below 1.
    assert expected.norm_bound() < 0.25 * np.linalg.norm(expected.out)
    expected.assert_matches(values(layer(x, given, shared_output=shared)))


def one_hot_codes(weight_format: str, columns: np.ndarray, values: np.ndarray, width: int) -> Any:
    """Codes ``[experts, out, width / 2]`` with `values` at `columns` (both ``[experts, out]``)."""
    table = {float(v): c for c, v in reversed(list(enumerate(CODE_VALUES[weight_format])))}
    codes = np.zeros((*columns.shape, width), np.uint8)
    chosen = np.vectorize(table.__getitem__, otypes=[np.uint8])(values.astype(float))
    np.put_along_axis(codes, columns[..., None], chosen[..., None], axis=2)
    return join_nibbles(codes)


def scales(weight_format: str, group_size: int, exponents: np.ndarray, width: int) -> np.ndarray:
    """Powers of two, one exponent for each channel ``[experts, out]``."""
    if group_size == -1:
        return np.exp2(exponents).astype(np.float32)
    groups = np.repeat(exponents[..., None], width // group_size, axis=2)
    if weight_format == "mxfp4":
        return (127 + groups).astype(np.uint8)
    return np.exp2(groups).astype(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("topk", [1, 4])
@pytest.mark.parametrize(("weight_format", "group_size"), FORMATS)
def test_exact_where_arithmetic_is(
    weight_format: str, group_size: int, topk: int, dtype: str, place: Any
) -> None:
    """Every step exact, so the result is known bit for bit.

    x holds integers up to 7, and a 7 in each row: its scale is 2^-6. The gate is 32 everywhere
    (its sigmoid is 1 in float32), up is a permutation of x, so the activation 32 x has the scale
    1/2. Down picks one channel and multiplies it by at most 4: at most 4 experts * 7 * 4 = 112
    units of 32, seven bits, fit both output types.
    """
    rng = np.random.default_rng(3)
    experts, size, tokens = 4, 64, 21
    order = np.stack([rng.permutation(size) for _ in range(2 * experts)]).reshape(2, experts, size)
    factor = rng.choice([1, 2, 3, 4, -2, -4], (experts, size))
    ones = np.ones((experts, size))
    up_gate = QuantizedWeight(
        codes=np.concatenate(
            [
                one_hot_codes(weight_format, np.zeros_like(order[0]), 4 * ones, size),
                one_hot_codes(weight_format, order[0], ones, size),
            ],
            axis=1,
        ),
        scale=scales(
            weight_format,
            group_size,
            np.concatenate([ones, 0 * ones], axis=1).astype(int),
            size,
        ),
        weight_format=weight_format,
        group_size=group_size,
    )
    exponents = np.broadcast_to(rng.integers(-3, 3, size), (experts, size))
    down = QuantizedWeight(
        codes=one_hot_codes(weight_format, order[1], factor, size),
        scale=scales(weight_format, group_size, exponents, size),
        weight_format=weight_format,
        group_size=group_size,
    )
    layer = W4AFP8MoEFFN.from_quantized(
        up_gate, down, topk=topk, dtype=dtype, routed_scaling_factor=float(topk)
    )
    x = rng.integers(-7, 8, (tokens, size)).astype(np.float32)
    x[:, 0], x[:, 1] = 4, 7
    chosen = rng.integers(0, 3, tokens)  # the last expert gets nothing where topk is 1
    logits = np.zeros((tokens, experts), np.float32)
    if topk == 1:
        logits[np.arange(tokens), chosen] = 50

    each = np.stack(
        [
            32.0 * x[:, order[0, e]][:, order[1, e]] * factor[e] * np.exp2(exponents[e])
            for e in range(experts)
        ]
    )
    expected = each.sum(axis=0) if topk == 4 else each[chosen, np.arange(tokens)]
    layer.to(device=place)
    out = layer(float_tensor(x, dtype, place), float_tensor(logits, "float32", place))
    np.testing.assert_array_equal(values(out), expected)


@pytest.fixture
def routed(place: Any) -> W4AFP8MoEFFN:
    """A small layer with a router, on the place of the test."""
    layer, _, _ = build(replace(CASES["own router"], has_biases=True), np.random.default_rng(0))
    layer.to(device=place)
    return layer


@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64), (0, 2, 64)])
def test_no_tokens(routed: W4AFP8MoEFFN, shape: tuple[int, ...], place: Any) -> None:
    out = routed(float_tensor(np.zeros(shape), "bfloat16", place))
    assert tuple(out.shape) == shape
    assert out.dtype == paddle.bfloat16


def test_leading_dimensions_and_strides_change_nothing(routed: W4AFP8MoEFFN, place: Any) -> None:
    x = random_x(np.random.default_rng(1), 6, 64, place=place)
    expected = values(routed(x))
    np.testing.assert_array_equal(values(routed(x.reshape([2, 3, 64]))).reshape(6, 64), expected)
    np.testing.assert_array_equal(values(routed(x.t().contiguous().t())), expected)
    np.testing.assert_array_equal(values(routed(x[0])), expected[0])


def test_tokens_do_not_influence_each_other(routed: W4AFP8MoEFFN, place: Any) -> None:
    x = random_x(np.random.default_rng(1), 6, 64, place=place)
    together = values(routed(x))
    alone = np.concatenate([values(routed(x[t : t + 1])) for t in range(6)])
    np.testing.assert_array_equal(together, alone)


def test_router_chooses_in_float32(place: Any) -> None:
    """1 and 1 + 2^-12 are one number in bfloat16 and float16; the biases tell who was chosen."""
    gate_weight = np.zeros((64, 2), np.float32)
    gate_weight[0] = 1, 1 + 2.0**-12
    layer = W4AFP8MoEFFN.from_float(
        np.zeros((2, 128, 64), np.float32),
        np.zeros((2, 64, 64), np.float32),
        topk=1,
        gate_weight=gate_weight,
        down_bias=np.stack([np.zeros(64), np.ones(64)]),
    )
    layer.to(device=place)
    x = np.array([[1.0], [-1.0]]) * np.ones(64)
    chosen = values(layer(float_tensor(x, "bfloat16", place)))
    np.testing.assert_array_equal(chosen[:, 0], [1, 0])
