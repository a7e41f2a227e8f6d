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
"""FastDeploy's flow, dispatch, experts, reduce, against the float64 reference of moe_reference.py.

Its bounds hold as they stand where FastDeploy's factors are exact. A dynamic weight scale is
s / 440 times 512: s is 440 times a short number here. dequant_scale is rounded once, which is one
of the four roundings that the bound allows after a product, as there is no bias. A static weight
scale is s * largest / 448 times 512; `largest`, of the activations, is 448 times a power of two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastdeploy_block import EXPERTS, TOPK, Case, expert_operands, in_scale, static_reference
from moe_reference import (
    Routing,
    reference,
    route_tokens,
)

from w4afp8 import ops
from w4afp8.fastdeploy import moe_expert_dispatch, moe_expert_ffn, moe_expert_reduce
from w4afp8.testing import float8
from w4afp8.testing.compare import Accumulator, assert_within
from w4afp8.testing.tensors import (
    float_tensor,
    tensor_bits,
    values_of,
)

CASES = {
    "dynamic": Case(),
    "groups": Case(hidden=256, group_size=128),
    "correction bias": Case(has_correction_bias=True),
    "shape that is not compiled in": Case(hidden=160, intermediate=96),
    "one token": Case(tokens=1),
    "static": Case(unit=2.0**-3),
    "static, another shape": Case(hidden=96, intermediate=160, unit=2.0**-3),
    "static, swigluoai": Case(unit=2.0**-3, activation="swigluoai"),
    "swigluoai": Case(activation="swigluoai"),
    "float16": Case(dtype="float16"),
    "static, float16": Case(unit=2.0**-3, dtype="float16"),
}


def run(case: Case, x: Any, logits: Any, bias: Any, place: Any) -> Any:
    scale = in_scale(case, place)
    dispatched = moe_expert_dispatch(x, logits, bias, scale, TOPK, False, "w4afp8", False)
    up_gate, down, up_gate_scale, down_scale = expert_operands(case, case.weights(), place)
    y = moe_expert_ffn(
        dispatched.permute_input,
        dispatched.tokens_expert_prefix_sum,
        up_gate,
        down,
        dispatched.dequant_scale if scale is None else None,
        None,
        up_gate_scale,
        down_scale,
        scale,
        dispatched.expert_idx_per_token.cast("int64"),
        dispatched.max_tokens_per_expert,
        *("w4afp8", False, -1, -1),
        case.activation,
        out_dtype=case.dtype,
    )
    return moe_expert_reduce(
        y,
        dispatched.topk_weight,
        dispatched.permute_indices_per_token,
        dispatched.topk_idx,
        None,
        True,
        1.0,
    )


@pytest.mark.parametrize("name", CASES)
def test_flow(place: Any, accumulator: Accumulator, name: str) -> None:
    case = CASES[name]
    rng = np.random.default_rng(1)
    x = float_tensor(rng.standard_normal((case.tokens, case.hidden)), case.dtype, place)
    logits = rng.standard_normal((case.tokens, EXPERTS)).astype(np.float32)
    bias = rng.standard_normal(EXPERTS).astype(np.float32) if case.has_correction_bias else None
    bias_tensor = None if bias is None else float_tensor(bias, "float32", place)
    out = run(case, x, float_tensor(logits, "float32", place), bias_tensor, place)

    rows = values_of(tensor_bits(x), case.dtype)
    routed = route_tokens(
        logits.astype(np.float64), Routing(TOPK), None if bias is None else bias.astype(np.float64)
    )
    if case.unit is None:
        options = {"dtype": case.dtype, "accumulator": accumulator}
        activation = case.activation.replace("swigluoai", "swiglu_oai")
        expected = reference(rows, case.weights(), *routed, activation=activation, **options)
    else:
        expected = static_reference(case, rows, *routed, accumulator)
    assert (str(out.dtype), out.place) == (f"paddle.{case.dtype}", x.place)
    expected.assert_matches(values_of(tensor_bits(out), case.dtype))
    # A bound as large as the outputs would hold nothing.
    assert np.median(expected.element_bound()) < np.abs(expected.out).max() / 2


@pytest.mark.parametrize("name", ["dynamic", "static", "static, swigluoai", "swigluoai"])
def test_no_tokens(place: Any, name: str) -> None:
    case = replace(CASES[name], tokens=0)
    x = float_tensor(np.zeros((0, case.hidden)), "bfloat16", place)
    logits = float_tensor(np.zeros((0, EXPERTS)), "float32", place)
    out = run(case, x, logits, None, place)
    assert (list(out.shape), out.place) == ([0, case.hidden], x.place)


@pytest.mark.parametrize("scale", [None, [0.1, 0.2, 0.3, 0.4]])
@pytest.mark.parametrize("tokens", [0, 5])
def test_dispatch_outputs_are_where_the_input_is(place: Any, tokens: int, scale: Any) -> None:
    x = float_tensor(np.ones((tokens, 64)), "bfloat16", place)
    logits = float_tensor(np.ones((tokens, EXPERTS)), "float32", place)
    in_scale = None if scale is None else float_tensor(scale, "float32", place)
    found = moe_expert_dispatch(x, logits, None, in_scale, TOPK, False, "w4afp8", False)
    assert {str(tensor.place) for tensor in found} == {str(place)}


def test_dispatch_outputs(place: Any) -> None:
    rng = np.random.default_rng(3)
    x = float_tensor(rng.standard_normal((5, 64)), "bfloat16", place)
    logits = float_tensor(rng.standard_normal((5, EXPERTS)), "float32", place)
    found = moe_expert_dispatch(x, logits, None, None, TOPK, False, "w4afp8", False)
    rows, ids = found.permute_indices_per_token.numpy().T, found.topk_idx.numpy()
    assert [str(t.dtype)[7:] for t in found] == [
        *("float8_e4m3fn", "int64", "int32", "float32", "int32", "int32", "float32", "int64")
    ]
    assert (found.expert_idx_per_token.numpy()[rows] == ids).all()
    counts = np.bincount(ids.ravel(), minlength=EXPERTS)
    assert found.tokens_expert_prefix_sum.tolist() == np.cumsum(counts).tolist()
    assert found.max_tokens_per_expert.tolist() == [counts.max()]
    _, scale = ops.quant_per_token(x)
    wanted_scale = scale.numpy()[:, None] * np.float32(440)
    assert (found.dequant_scale.numpy()[rows] == wanted_scale).all()
    # x = q * dequant_scale / 440, to half a step of FP8 at its largest number: 16 / 448 of absmax.
    values = float8.decode(tensor_bits(found.permute_input))
    values *= found.dequant_scale.numpy()[:, None].astype(np.float64) / 440
    wanted = values_of(tensor_bits(x), "bfloat16").astype(np.float64)
    bound = np.abs(wanted).max(axis=1)[:, None, None] * (16 / 448 + 2.0**-20)
    assert_within(values[rows], wanted[:, None].repeat(TOPK, 1), bound)


def test_static_dispatch_is_bitwise(place: Any) -> None:
    """Each expert its own scale; NaN stays, and what is too large saturates."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal((6, 64)).astype(np.float32)
    values[1, 3], values[2, 4], values[3, 5] = np.nan, np.inf, -1e6
    x = float_tensor(values, "bfloat16", place)
    logits = float_tensor(rng.standard_normal((6, EXPERTS)), "float32", place)
    scale = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    found = moe_expert_dispatch(
        *(x, logits, None, float_tensor(scale, "float32", place)),
        *(TOPK, False, "w4afp8", False),
    )
    rounded = values_of(tensor_bits(x), "bfloat16")
    for token, (ids, rows) in enumerate(
        zip(found.topk_idx.tolist(), found.permute_indices_per_token.numpy().T, strict=True)
    ):
        for expert, row in zip(ids, rows, strict=True):
            expected = float8.encode(rounded[token] * (scale[expert] * np.float32(448)))
            bits = tensor_bits(found.permute_input)[row]
            is_nan = (expected & 0x7F) == float8.NAN
            assert ((bits & 0x7F == float8.NAN) == is_nan).all()
            assert (bits == expected)[~is_nan].all()
