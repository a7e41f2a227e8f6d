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
"""The quantisation method on a layer like FastDeploy's, from a checkpoint's tensors to outputs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from fastdeploy_block import EXPERTS, TOPK, Case, static_reference
from fastdeploy_flow import values_of_codes
from moe_reference import Routing, reference, route_tokens

from w4afp8 import ops
from w4afp8._routes import force_route
from w4afp8.fastdeploy import W4AFP8MoEMethod, moe_expert_ffn, quant_method
from w4afp8.fastdeploy.experts import run_projections
from w4afp8.quant.codes import join_nibbles
from w4afp8.testing.compare import Accumulator
from w4afp8.testing.tensors import (
    float8_tensor,
    float_tensor,
    int_tensor,
    tensor_bits,
    values_of,
)

NAMES = ("up_gate_proj", "down_proj")
CASES = {
    "dynamic": Case(),
    "dynamic groups": Case(hidden=256, intermediate=128, group_size=128),
    "static": Case(unit=2.0**-3),
    "shape that is not compiled in": Case(hidden=96, intermediate=160),
    "dynamic, rotated": Case(hadamard_block_size=128),
    "static, rotated": Case(unit=2.0**-3, hadamard_block_size=32),
}


class FusedMoE(paddle.nn.Layer):
    """What the method reads of FastDeploy's layer."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.num_local_experts, self.top_k = EXPERTS, TOPK
        self.hidden_size, self.moe_intermediate_size = case.hidden, case.intermediate
        self.with_bias, self.is_quantized, self.activation = False, True, "swiglu"
        self.gate_correction_bias, self.topk_method = None, "greedy"
        self.moe_quant_config = SimpleNamespace(moe_dynamic_quant=case.unit is None)
        self.weight_key_map = {
            f"{name}_expert_{kind}_key": f"experts.{{}}.{name}.{field}"
            for name in NAMES
            for kind, field in (("weight_scale", "weight_scale"), ("in_scale", "activation_scale"))
        }

    def extract_moe_ffn_weights(self, state: dict[str, Any]) -> Any:
        experts = list(range(EXPERTS))
        weights = [[state.pop(f"experts.{e}.{n}.quant_weight") for e in experts] for n in NAMES]
        return *weights, experts, None


def checkpoint(case: Case, place: Any) -> dict[str, Any]:
    """A scale is 7 times a multiplier: the largest magnitude of the weights."""
    state = {}
    weights = case.weights()
    for name, weight in zip(NAMES, (weights.up_gate, weights.down), strict=True):
        pairs = join_nibbles((values_of_codes(weight) & 15).astype(np.uint8))
        for e in range(EXPERTS):
            key = f"experts.{e}.{name}"
            state[f"{key}.quant_weight"] = int_tensor(pairs[e].T.view(np.int8), "int8", place)
            state[f"{key}.weight_scale"] = float_tensor(7 * weight.scale[e], "float32", place)
            if case.unit is not None:
                largest = np.array([448 * case.units()[e]])
                state[f"{key}.activation_scale"] = float_tensor(largest, "float32", place)
    return state


def loaded(case: Case, place: Any) -> tuple[W4AFP8MoEMethod, FusedMoE]:
    config = SimpleNamespace(hadamard_block_size=case.hadamard_block_size)
    layer, method, state = FusedMoE(case), W4AFP8MoEMethod(config), checkpoint(case, place)
    method.create_weights(layer, output_dim=1)
    layer.to(device=place)
    method.process_loaded_weights(layer, state)
    method.process_weights_after_loading(layer)
    assert not state, "every tensor of the checkpoint is used"
    assert {str(parameter.place) for parameter in layer.parameters()} == {str(place)}
    assert layer.up_gate_proj_weight.output_dim == 1
    return method, layer


def tokens_of(case: Case, place: Any) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    x = float_tensor(rng.standard_normal((case.tokens, case.hidden)), "bfloat16", place)
    return x, rng.standard_normal((case.tokens, EXPERTS)).astype(np.float32)


def gate_of(logits: Any, place: Any) -> Any:
    """A gate that gives these logits, whatever it is asked."""
    return lambda _: float_tensor(logits, "float32", place)


@pytest.mark.parametrize("name", CASES)
def test_apply_tp(place: Any, accumulator: Accumulator, name: str) -> None:
    """Static scales take two roundings more than the bound counts, 2^-23 of what bfloat16 rounds
    by 2^-8: less than the second order that it leaves out.
    """
    case = CASES[name]
    method, layer = loaded(case, place)
    x, logits = tokens_of(case, place)
    out = method.apply_tp(layer, x, gate_of(logits, place))
    rows = values_of(tensor_bits(x), "bfloat16")
    routed = route_tokens(logits.astype(np.float64), Routing(TOPK))
    if case.unit is None:
        options = {"dtype": "bfloat16", "accumulator": accumulator}
        options["hadamard_block_size"] = case.hadamard_block_size
        expected = reference(rows, case.weights(), *routed, activation="swiglu", **options)
    else:
        expected = static_reference(case, rows, *routed, accumulator)
    assert out.place == x.place
    expected.assert_matches(values_of(tensor_bits(out), "bfloat16"))


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].unit is None])
@pytest.mark.parametrize("tokens", [1, 9, 200])
def test_one_call_has_the_bits_of_the_operators(place: Any, name: str, tokens: int) -> None:
    case = replace(CASES[name], tokens=tokens)
    method, layer = loaded(case, place)
    x, logits = tokens_of(case, place)
    out = method.apply_tp(layer, x, gate_of(logits, place))
    with force_route("registered"):
        weights, ids = ops.moe_route(float_tensor(logits, "float32", place), topk=TOPK)
        expected = method._local_experts(layer, x, ids, weights)
    np.testing.assert_array_equal(tensor_bits(out), tensor_bits(expected))


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_weights_that_change_between_calls(place: Any, name: str) -> None:
    """In their memory, and by parameters that take the place of others."""
    case = CASES[name]
    method, layer = loaded(case, place)
    x, logits = tokens_of(case, place)
    before = tensor_bits(method.apply_tp(layer, x, gate_of(logits, place)))
    scale, weight = layer.up_gate_proj_weight_scale, layer.down_proj_weight
    scale.set_value(scale * 2)
    weight.set_value(np.roll(weight.numpy(), 1, axis=1))
    inside = tensor_bits(method.apply_tp(layer, x, gate_of(logits, place)))
    zeros = paddle.nn.initializer.Constant(0)
    other = layer.create_parameter(weight.shape, dtype="int8", default_initializer=zeros)
    other.set_value(np.roll(weight.numpy(), 1, axis=0))
    layer.down_proj_weight = other
    replaced = tensor_bits(method.apply_tp(layer, x, gate_of(logits, place)))
    fresh, same = loaded(case, place)
    same.up_gate_proj_weight_scale.set_value(scale)
    same.down_proj_weight.set_value(weight)
    between = tensor_bits(fresh.apply_tp(same, x, gate_of(logits, place)))
    same.down_proj_weight.set_value(other)
    expected = tensor_bits(fresh.apply_tp(same, x, gate_of(logits, place)))
    assert (before != inside).any()
    assert (inside != replaced).any()
    np.testing.assert_array_equal(inside, between)
    np.testing.assert_array_equal(replaced, expected)


@pytest.mark.parametrize("name", ["dynamic", "static", "static, rotated"])
def test_apply_tp_to_no_tokens(place: Any, name: str) -> None:
    case = replace(CASES[name], tokens=0)
    method, layer = loaded(case, place)
    x, logits = tokens_of(case, place)
    out = method.apply_tp(layer, x, gate_of(logits, place))
    assert (list(out.shape), out.place) == ([0, case.hidden], x.place)


@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_float16_tokens_are_taken(place: Any, name: str) -> None:
    """Multiples of 1/8, which bfloat16 and float16 both hold."""
    case = CASES[name]
    method, layer = loaded(case, place)
    x, logits = tokens_of(case, place)
    eighths = np.rint(8 * values_of(tensor_bits(x), "bfloat16")) / 8
    one, other = (
        method.apply_tp(layer, float_tensor(eighths, dtype, place), gate_of(logits, place))
        for dtype in ("bfloat16", "float16")
    )
    np.testing.assert_array_equal(tensor_bits(other), tensor_bits(one))


def test_groups_of_experts(place: Any, accumulator: Accumulator) -> None:
    """FastDeploy's noaux_tc: sigmoids, a bias ``[1, experts]``, the best groups by two experts."""
    case = Case(tokens=30)
    method, layer = loaded(case, place)
    layer.topk_method, layer.n_group, layer.topk_group = "noaux_tc", 2, 1
    layer.renormalize, layer.routed_scaling_factor = True, 2.5
    bias = np.array([0.3, -0.2, 0.0, 0.1])
    layer.gate_correction_bias = float_tensor(bias[None], "float32", place)
    x, logits = tokens_of(case, place)
    out = method.apply_tp(layer, x, gate_of(logits, place))
    routing = Routing(TOPK, "sigmoid", True, 2.5, n_group=2, topk_group=1)
    routed = route_tokens(logits.astype(np.float64), routing, bias)
    assert set(routed[1][:, 0] // 2) == {0, 1}
    assert (routed[1][:, 0] // 2 == routed[1][:, 1] // 2).all()
    rows = values_of(tensor_bits(x), "bfloat16")
    options = {"dtype": "bfloat16", "accumulator": accumulator}
    expected = reference(rows, case.weights(), *routed, activation="swiglu", **options)
    expected.assert_matches(values_of(tensor_bits(out), "bfloat16"))


class PrefillRunner:
    """One of two devices: the experts below 2 are here; sends what it has."""

    ep_engine = SimpleNamespace(async_finish=False)

    def __init__(self, ids: Any, weights: Any, counts: list[int] | None = None) -> None:
        self.ids, self.weights, self.counts = ids, weights, counts

    def moe_select(self, layer: Any, logits: Any) -> Any:
        return self.ids, self.weights

    def dispatch(self, x: Any, ids: Any, weights: Any) -> Any:
        here = paddle.where(ids < 2, ids, paddle.full_like(ids, -1))
        return x, here, weights, self.counts, "handle", None

    def combine(self, out: Any, handle: str, weights: Any) -> Any:
        assert handle == "handle"
        return out, None


@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_apply_ep_prefill_leaves_out_what_is_elsewhere(place: Any, name: str) -> None:
    method, layer = loaded(CASES[name], place)
    x, logits = tokens_of(CASES[name], place)
    routed = route_tokens(logits.astype(np.float64), Routing(TOPK))
    weights = float_tensor(routed[0], "float32", place)
    ids = int_tensor(routed[1], "int64", place)
    method.ep_prefill_runner = PrefillRunner(ids, weights)
    out = method.apply_ep_prefill(layer, x, gate_of(logits, place))
    local = weights * (ids < 2).astype("float32")
    expected = method._local_experts(layer, x, ids.astype("int32"), local)
    assert (routed[1] >= 2).any()
    np.testing.assert_array_equal(tensor_bits(out), tensor_bits(expected))


@pytest.mark.parametrize(("counts", "hint"), [([5, 4, 0, 0], 3), (None, -1)])
def test_the_hint_of_ep_prefill_is_the_mean_of_what_came(
    counts: list[int] | None, hint: int, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def recording(*operands: Any, **options: Any) -> Any:
        seen.append(options["max_tokens"])
        return run_projections(*operands, **options)

    monkeypatch.setattr(quant_method, "run_projections", recording)
    method, layer = loaded(CASES["dynamic"], place)
    x, logits = tokens_of(CASES["dynamic"], place)
    ids, weights = route_tokens(logits.astype(np.float64), Routing(TOPK))[::-1]
    routed = int_tensor(ids, "int64", place), float_tensor(weights, "float32", place)
    method.ep_prefill_runner = PrefillRunner(*routed, counts)
    method.apply_ep_prefill(layer, x, gate_of(logits, place))
    assert seen == [hint]


class DecodeRunner(PrefillRunner):
    """Rows padded to 8 for each expert, as `moe_expert_dispatch` quantises them."""

    def dispatch(self, x: Any, ids: Any, weights: Any, **options: Any) -> Any:
        assert options == {"expertwise_scale": None, "use_fp8": True, "quant_group_size": -1}
        values, scale = ops.quant_per_token(x)
        bits = np.zeros((EXPERTS, 8, x.shape[1]), np.uint8)
        scales = np.zeros((EXPERTS, 8), np.float32)
        self.places = [np.nonzero((ids.numpy() == e).any(axis=1))[0] for e in range(EXPERTS)]
        for e, tokens in enumerate(self.places):
            bits[e, : len(tokens)] = tensor_bits(values)[tokens]
            scales[e, : len(tokens)] = scale.numpy()[tokens] * np.float32(440)
        counts = int_tensor([len(p) for p in self.places], "int32", x.place)
        padded = float8_tensor(bits, x.place), float_tensor(scales, "float32", x.place)
        return padded, counts, "handle"

    def combine(self, y: Any, ids: Any, weights: Any, handle: str, **options: Any) -> Any:  # type: ignore[override]
        found = np.zeros((ids.shape[0], y.shape[2]))
        y = values_of(tensor_bits(y), "bfloat16")
        for e, tokens in enumerate(self.places):
            weight = (weights.numpy() * (ids.numpy() == e)).sum(axis=1)[tokens]
            found[tokens] += weight[:, None] * y[e, : len(tokens)].astype(np.float64)
        return found


def test_apply_ep_decode(place: Any, accumulator: Accumulator) -> None:
    case = Case(tokens=6)
    method, layer = loaded(case, place)
    x, logits = tokens_of(case, place)
    weights, ids = route_tokens(logits.astype(np.float64), Routing(TOPK))
    method.ep_decoder_runner = DecodeRunner(
        int_tensor(ids, "int64", place), float_tensor(weights, "float32", place)
    )
    out = method.apply_ep_decode(layer, x, gate_of(logits, place))
    rows = values_of(tensor_bits(x), "bfloat16")
    options = {"dtype": "bfloat16", "accumulator": accumulator}
    expected = reference(rows, case.weights(), weights, ids, activation="swiglu", **options)
    expected.assert_matches(out)


@pytest.mark.cpu_only
def test_the_layers_scales_are_no_arguments_of_the_operators() -> None:
    _, layer = loaded(CASES["dynamic"], paddle.CPUPlace())
    scales = layer.up_gate_proj_weight_scale, layer.down_proj_weight_scale
    weights = layer.up_gate_proj_weight, layer.down_proj_weight
    x = paddle.zeros([4, 128]).astype("float8_e4m3fn")
    tokens = paddle.to_tensor([1, 2, 3, 4], dtype="int64")
    settings = "w4afp8", False, -1, -1, "swiglu"
    with pytest.raises(ValueError, match="up_gate_proj_scale: expected float32"):
        moe_expert_ffn(x, tokens, *weights, None, None, *scales, None, None, None, *settings)


@pytest.mark.cpu_only
def test_refusals() -> None:
    rotated = W4AFP8MoEMethod(SimpleNamespace())  # FastDeploy's default
    with pytest.raises(ValueError, match=r"hadamard_block_size: expected -1 .*, got 128"):
        rotated.create_weights(FusedMoE(Case(intermediate=192)))
    layer, method = FusedMoE(Case()), W4AFP8MoEMethod(SimpleNamespace(hadamard_block_size=-1))
    layer.with_bias = True
    with pytest.raises(ValueError, match=r"layer\.with_bias: expected False, got True"):
        method.create_weights(layer)
    layer.with_bias, layer.is_quantized = False, False
    with pytest.raises(ValueError, match=r"layer\.is_quantized: expected True, got False"):
        method.create_weights(layer)
