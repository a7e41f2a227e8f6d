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
"""Paddle's names give what W4AFP8MoEFFN gives, bit for bit, dygraph and traced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec

from w4afp8._routes import force_route
from w4afp8.incubate.nn.functional import fused_moe, moe_dispatch, moe_ffn, moe_reduce
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.testing.compare import FLOAT32_UNIT, OUTPUT_UNIT, assert_bits_equal, assert_within
from w4afp8.testing.tensors import float_tensor, int_tensor, tensor_bits, to_place, values_of

EXPERTS, HIDDEN, INTERMEDIATE = 4, 96, 64


@dataclass(frozen=True)
class Case:
    """A layer, and how its scales are handed over."""

    weight_format: str = "int4"
    group_size: int = -1
    scale_dtype: str = "float32"
    dtype: str = "bfloat16"
    topk: int = 2
    norm_topk_prob: bool = True
    has_biases: bool = False
    shape: tuple[int, ...] = (9,)
    as_pair: bool = False

    def layer(self, place: Any) -> W4AFP8MoEFFN:
        rng = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray:
            return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

        biases = {
            "up_gate_bias": normal(EXPERTS, 2 * INTERMEDIATE),
            "down_bias": normal(EXPERTS, HIDDEN),
        }
        layer = W4AFP8MoEFFN.from_float(
            normal(EXPERTS, 2 * INTERMEDIATE, HIDDEN),
            normal(EXPERTS, HIDDEN, INTERMEDIATE),
            gate_weight=normal(HIDDEN, EXPERTS) * 10,
            topk=self.topk,
            weight_format=self.weight_format,
            group_size=self.group_size,
            scale_dtype=self.scale_dtype,
            dtype=self.dtype,
            norm_topk_prob=self.norm_topk_prob,
            **(biases if self.has_biases else {}),
        )
        layer.to(device=place)
        return layer

    def x(self, place: Any) -> paddle.Tensor:
        values = np.random.default_rng(1).standard_normal((*self.shape, HIDDEN))
        return float_tensor(values, self.dtype, place)

    def scale(self, projection: Any) -> Any:
        if self.as_pair:
            return projection.weight_scale, projection.group_scale
        groups = projection.group_scale
        return projection.weight_scale if groups is None else groups

    def operands(self, layer: W4AFP8MoEFFN) -> dict[str, Any]:
        up_gate, down = layer.up_gate_proj, layer.down_proj
        return {
            "ffn1_weight": up_gate.weight,
            "ffn2_weight": down.weight,
            "ffn1_bias": up_gate.bias,
            "ffn1_scale": self.scale(up_gate),
            "ffn2_scale": self.scale(down),
            "quant_method": "w4afp8",
        }

    def fused_operands(self, layer: W4AFP8MoEFFN) -> dict[str, Any]:
        return {
            **self.operands(layer),
            "ffn2_bias": layer.down_proj.bias,
            "moe_topk": self.topk,
            "norm_topk_prob": self.norm_topk_prob,
        }


CASES = {
    "per channel": Case(),
    "int4 groups": Case(group_size=32),
    "int4 groups in bfloat16, as a pair": Case(group_size=32, scale_dtype="bfloat16", as_pair=True),
    "mxfp4": Case("mxfp4", as_pair=True),
    "float16": Case(dtype="float16", has_biases=True),
    "float16 groups": Case(dtype="float16", group_size=32),
    "not normalised": Case(topk=3, norm_topk_prob=False, has_biases=True),
    "batch of sequences": Case(shape=(2, 3)),
    "no token": Case(shape=(0,)),
}


@pytest.mark.parametrize("name", CASES)
def test_fused_moe_is_the_layer(place: Any, name: str) -> None:
    case = CASES[name]
    layer, x = case.layer(place), case.x(place)
    out = fused_moe(x, layer.router.weight, **case.fused_operands(layer))
    expected = layer(x)
    assert (out.dtype, out.place) == (x.dtype, x.place)
    assert_bits_equal(tensor_bits(out), tensor_bits(expected), name)


def in_three_steps(case: Case, layer: W4AFP8MoEFFN, x: Any) -> Any:
    logits = layer.router.logits_of(x, None)
    permuted, sums, rows, weights, ids = moe_dispatch(x, logits, case.topk)
    y = moe_ffn(permuted, sums, **case.operands(layer))
    return moe_reduce(y, weights, rows, ids, routed_scaling_factor=1.0)


@pytest.mark.parametrize(
    "name", ["per channel", "int4 groups", "mxfp4", "float16 groups", "no token"]
)
def test_three_steps_are_the_layer_without_normalisation(place: Any, name: str) -> None:
    case = CASES[name]
    layer, x = case.layer(place), case.x(place)
    layer.router.norm_topk_prob = False
    out = in_three_steps(case, layer, x)
    assert out.place == x.place
    assert_bits_equal(tensor_bits(out), tensor_bits(layer(x)), name)


@pytest.mark.parametrize(("first", "second"), [("per channel", "mxfp4"), ("mxfp4", "int4 groups")])
def test_projections_of_two_formats(place: Any, first: str, second: str) -> None:
    cases = CASES[first], CASES[second]
    layers = [case.layer(place) for case in cases]
    x = cases[0].x(place)
    permuted, sums, *_ = moe_dispatch(x, layers[0].router.logits_of(x, None), 2)
    operands = cases[0].operands(layers[0])
    operands["ffn2_weight"] = layers[1].down_proj.weight
    operands["ffn2_scale"] = cases[1].scale(layers[1].down_proj)
    out = moe_ffn(permuted, sums, **operands)
    with force_route("registered"):
        expected = moe_ffn(permuted, sums, **operands)
    assert_bits_equal(tensor_bits(out), tensor_bits(expected))


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", ["int4 groups", "mxfp4", "not normalised", "batch of sequences"])
def test_fused_moe_traced(place: Any, name: str) -> None:
    case = CASES[name]
    layer, x = case.layer(place), case.x(place)
    operands = case.fused_operands(layer)
    gate_weight = layer.router.weight

    def run(x: Any) -> Any:
        return fused_moe(x, gate_weight, **operands)

    spec = InputSpec([-1] * len(case.shape) + [HIDDEN], case.dtype)
    traced = paddle.jit.to_static(run, input_spec=[spec], full_graph=True)
    assert_bits_equal(tensor_bits(traced(x)), tensor_bits(run(x)), name)


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", ["per channel", "int4 groups", "float16 groups"])
def test_three_steps_traced(place: Any, name: str) -> None:
    case = CASES[name]
    layer, x = case.layer(place), case.x(place)

    def run(x: Any) -> Any:
        return in_three_steps(case, layer, x)

    spec = InputSpec([-1, HIDDEN], case.dtype)
    traced = paddle.jit.to_static(run, input_spec=[spec], full_graph=True)
    for rows in (x, x[:1]):
        assert_bits_equal(tensor_bits(traced(rows)), tensor_bits(run(rows)), name)


@pytest.mark.parametrize("topk_only_mode", [False, True])
def test_dispatch_copies_rows_in_order(place: Any, topk_only_mode: bool) -> None:
    rng = np.random.default_rng(0)
    tokens, topk = 11, 3
    x = float_tensor(rng.standard_normal((tokens, 40)), "bfloat16", place)
    gating = rng.permuted(np.tile(np.arange(EXPERTS) / 8, (tokens, 1)), axis=1)
    permuted, sums, rows, weights, ids = moe_dispatch(
        x, float_tensor(gating, "float32", place), topk, False, topk_only_mode
    )
    chosen = np.argsort(-gating, axis=1)[:, :topk]
    assert ids.numpy().tolist() == chosen.tolist()
    assert sums.dtype == paddle.int64
    assert sums.tolist() == np.cumsum(np.bincount(chosen.ravel(), minlength=EXPERTS)).tolist()
    row = rows.numpy().T
    assert sorted(row.ravel().tolist()) == list(range(tokens * topk))
    # Row r belongs to the expert whose range of rows holds r.
    assert (np.searchsorted(sums.numpy(), row, side="right") == chosen).all()
    copies = tensor_bits(permuted)[row.ravel()].reshape(tokens, topk, 40)
    assert (copies == tensor_bits(x)[:, None]).all()
    scores = gating if topk_only_mode else np.exp(gating) / np.exp(gating).sum(1, keepdims=True)
    expected = np.take_along_axis(scores, chosen, axis=1)
    # exp, the sum of 4 and the division: a few units each, 2^-20 is 16.
    assert_within(weights.numpy(), expected, 2.0**-20 * expected)


@pytest.mark.parametrize("norm_topk_prob", [False, True])
@pytest.mark.parametrize("bias_shape", [None, (EXPERTS, 40), (EXPERTS, 1, 40)])
def test_reduce(place: Any, norm_topk_prob: bool, bias_shape: Any) -> None:
    rng = np.random.default_rng(0)
    tokens, topk, factor = 7, 3, 2.5
    y = values_of(
        tensor_bits(float_tensor(rng.standard_normal((21, 40)), "bfloat16", place)), "bfloat16"
    )
    weights = rng.uniform(0.1, 1, (tokens, topk)).astype(np.float32)
    rows = rng.permutation(21).reshape(topk, tokens)
    ids = np.stack([rng.permutation(EXPERTS)[:topk] for _ in range(tokens)])
    bias = np.rint(8 * rng.standard_normal((EXPERTS, 40))) / 8
    out = moe_reduce(
        float_tensor(y, "bfloat16", place),
        float_tensor(weights, "float32", place),
        int_tensor(rows, "int32", place),
        int_tensor(ids, "int32", place),
        None if bias_shape is None else float_tensor(bias.reshape(bias_shape), "float32", place),
        norm_topk_prob,
        factor,
    )
    scaled = weights.astype(np.float64) * factor
    if norm_topk_prob:
        scaled /= weights.astype(np.float64).sum(axis=1, keepdims=True)
    terms = y.astype(np.float64)[rows.T] + (0 if bias_shape is None else bias[ids])
    expected = (scaled[..., None] * terms).sum(axis=1)
    # A weight: topk - 1 additions, a division, the factor. The sum: a product and an addition for
    # each of 2 * topk terms, y's and the bias's.
    parts = np.abs(y)[rows.T] + (0 if bias_shape is None else np.abs(bias[ids]))
    magnitude = (scaled[..., None] * parts).sum(axis=1)
    error = (topk + 1 + 2 * topk + 1) * FLOAT32_UNIT * magnitude
    relative, least = OUTPUT_UNIT["bfloat16"]
    bound = error + np.maximum(relative * (np.abs(expected) + error), least)
    assert_within(values_of(tensor_bits(out), "bfloat16"), expected, bound)


@pytest.mark.parametrize("topk_only_mode", [False, True])
def test_no_tokens(place: Any, topk_only_mode: bool) -> None:
    x = float_tensor(np.zeros((0, 40)), "bfloat16", place)
    gating = float_tensor(np.zeros((0, EXPERTS)), "float32", place)
    dispatched = moe_dispatch(x, gating, 2, False, topk_only_mode)
    permuted, sums, rows, weights, ids = dispatched
    bias = float_tensor(np.ones((EXPERTS, 40)), "float32", place)
    outputs = [moe_reduce(permuted, weights, rows, ids, b, True, 2.5) for b in (None, bias)]
    assert sums.tolist() == [0] * EXPERTS
    assert [list(out.shape) for out in outputs] == [[0, 40]] * 2
    assert {str(tensor.place) for tensor in (*dispatched, *outputs)} == {str(place)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "None"}, "quant_method: expected 'w4afp8' .*, got 'None'"),
        ({"quant_method": "weight_only_int4"}, "quant_method: expected 'w4afp8'"),
        ({"group_moe": True}, "group_moe: expected False"),
        ({"moe_topk": 5}, "topk: expected"),
        ({"ffn1_scale": None}, "ffn1_scale: expected float32 .*, got None"),
        ({"ffn2_scale": np.ones(4, "f")}, "ffn2_scale: expected .*, got Tensor of 1 dim"),
        ({"ffn1_scale": np.ones((4, 5, 128), "f")}, "ffn1_scale: .* divide in_features 96"),
        ({"ffn1_weight": np.zeros((4, 64, 64), np.uint8)}, "weight: expected"),
    ],
)
def test_refusals(place: Any, changes: dict[str, Any], message: str) -> None:
    case = Case()
    layer, x = case.layer(place), case.x(place)
    given = {
        name: to_place(paddle.to_tensor(value), place) if isinstance(value, np.ndarray) else value
        for name, value in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        fused_moe(x, layer.router.weight, **{**case.fused_operands(layer), **given})


def test_other_activations_are_refused(place: Any) -> None:
    case = Case()
    layer, x = case.layer(place), float_tensor(np.ones((2, HIDDEN)), "float32", place)
    with pytest.raises(ValueError, match="x: dtype: expected bfloat16 or float16"):
        fused_moe(x, layer.router.weight, **case.fused_operands(layer))
    sums = int_tensor([0, 1, 2, 2], "int64", place)
    with pytest.raises(ValueError, match="permute_input: dtype: expected bfloat16 or float16"):
        moe_ffn(x, sums, **case.operands(layer))
    with pytest.raises(ValueError, match="quant_method: expected 'w4afp8'"):
        moe_ffn(case.x(place), sums, layer.up_gate_proj.weight, layer.down_proj.weight)
