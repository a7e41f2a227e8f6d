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
"""W4AFP8MoEFFN saved, loaded, traced, converted, copied and moved: the same bits come out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from safetensors.paddle import load_file, save_file

from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.testing.tensors import tensor_bits

pytestmark = pytest.mark.cpu_only

HIDDEN, INTERMEDIATE, EXPERTS = 64, 96, 4
FORMATS: dict[str, dict[str, Any]] = {
    "int4": {},
    "int4 groups": {"group_size": 32},
    "int4 groups, bfloat16 scales": {"group_size": 32, "scale_dtype": "bfloat16"},
    "mxfp4": {"weight_format": "mxfp4"},
}
# Types of the weights, of the scales and the router, and of the record of the format.
KEPT = {paddle.uint8, paddle.float32, paddle.int32}


def make_layer(dtype: str = "bfloat16", **format_options: Any) -> W4AFP8MoEFFN:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    return W4AFP8MoEFFN.from_float(
        normal(EXPERTS, 2 * INTERMEDIATE, HIDDEN),
        normal(EXPERTS, HIDDEN, INTERMEDIATE),
        topk=2,
        gate_weight=normal(HIDDEN, EXPERTS),
        correction_bias=normal(EXPERTS),
        up_gate_bias=normal(EXPERTS, 2 * INTERMEDIATE),
        down_bias=normal(EXPERTS, HIDDEN),
        dtype=dtype,
        **format_options,
    )


def make_empty(dtype: str = "bfloat16", **format_options: Any) -> W4AFP8MoEFFN:
    return W4AFP8MoEFFN(
        HIDDEN,
        INTERMEDIATE,
        EXPERTS,
        2,
        dtype=dtype,
        has_router=True,
        has_correction_bias=True,
        has_up_gate_bias=True,
        has_down_bias=True,
        **format_options,
    )


def make_x(tokens: int = 7, dtype: str = "bfloat16") -> paddle.Tensor:
    x = np.random.default_rng(1).standard_normal((tokens, HIDDEN)).astype(np.float32)
    return paddle.to_tensor(x).astype(dtype)


def assert_same(actual: paddle.Tensor, expected: paddle.Tensor) -> None:
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(tensor_bits(actual), tensor_bits(expected))


def state_bits(layer: W4AFP8MoEFFN, *, without_biases: bool = False) -> dict[str, np.ndarray]:
    return {
        name: tensor_bits(tensor)
        for name, tensor in layer.state_dict().items()
        if not (without_biases and name.endswith("proj.bias"))
    }


@pytest.mark.parametrize("format_options", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_safetensors_round_trip(tmp_path: Path, dtype: str, format_options: dict) -> None:
    layer, loaded = make_layer(dtype, **format_options), make_empty(dtype, **format_options)
    save_file(dict(layer.state_dict()), tmp_path / "layer.safetensors")
    missing, unexpected = loaded.set_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert (missing, unexpected) == ([], [])
    x = make_x(dtype=dtype)
    assert not np.array_equal(tensor_bits(layer(x)), 0 * tensor_bits(layer(x)))
    assert_same(loaded(x), layer(x))


def test_paddle_save_round_trip(tmp_path: Path) -> None:
    layer, loaded = make_layer(), make_empty()
    paddle.save(layer.state_dict(), str(tmp_path / "layer.pdparams"))
    loaded.set_state_dict(paddle.load(str(tmp_path / "layer.pdparams")))
    assert_same(loaded(make_x()), layer(make_x()))


@pytest.mark.parametrize("format_options", FORMATS.values(), ids=FORMATS.keys())
def test_traced_saved_and_loaded(tmp_path: Path, format_options: dict) -> None:
    layer = make_layer(**format_options)
    layer.eval()
    spec = [paddle.static.InputSpec([None, HIDDEN], "bfloat16")]
    traced = paddle.jit.to_static(layer, input_spec=spec, full_graph=True)
    paddle.jit.save(traced, str(tmp_path / "layer"))
    loaded = paddle.jit.load(str(tmp_path / "layer"))
    plain = make_layer(**format_options)
    for tokens in (1, 7, 130, 0):
        x = make_x(tokens)
        assert_same(traced(x), plain(x))
        assert_same(loaded(x), plain(x))


@pytest.mark.parametrize("full_graph", [False, True])
def test_traced_without_a_file(full_graph: bool) -> None:
    layer = make_layer()
    layer.eval()
    traced = paddle.jit.to_static(layer, full_graph=full_graph)
    for tokens in (3, 8):
        assert_same(traced(make_x(tokens)), make_layer()(make_x(tokens)))


def test_traced_with_logits_and_leading_dimensions(tmp_path: Path) -> None:
    layer = make_layer()
    layer.eval()
    spec = [
        paddle.static.InputSpec([None, None, HIDDEN], "bfloat16"),
        paddle.static.InputSpec([None, EXPERTS], "float32"),
    ]
    paddle.jit.save(layer, str(tmp_path / "layer"), input_spec=spec)
    loaded = paddle.jit.load(str(tmp_path / "layer"))
    x, logits = make_x(6).reshape([2, 3, HIDDEN]), paddle.randn([6, EXPERTS])
    out = loaded(x, logits)
    assert out.shape == x.shape
    assert_same(out, make_layer()(x, logits))


Model = paddle.nn.Layer
CONVERSIONS: dict[str, Callable[[Model, str], Any]] = {
    "to": lambda model, dtype: model.to(dtype=dtype),
    "to a paddle.dtype": lambda model, dtype: model.to(dtype=getattr(paddle, dtype)),
    "type": lambda model, dtype: model.type(dtype),
    "each layer": lambda model, dtype: model.apply(
        lambda layer: layer._to_impl(dtype=dtype, floating_only=True, include_sublayers=False)
    ),
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS.keys())
@pytest.mark.parametrize("inside", [False, True], ids=["itself", "in a model"])
@pytest.mark.parametrize("format_options", FORMATS.values(), ids=FORMATS.keys())
def test_conversion_changes_the_activations_only(
    convert: Callable[[Model, str], Any], inside: bool, format_options: dict
) -> None:
    layer = make_layer("bfloat16", **format_options)
    before = state_bits(layer, without_biases=True)
    convert(paddle.nn.Sequential(layer) if inside else layer, "float16")
    assert_converted(layer, before, **format_options)


def assert_converted(
    layer: W4AFP8MoEFFN, before: dict[str, np.ndarray], **format_options: Any
) -> None:
    """`layer` is what make_layer made, now with float16 activations."""
    assert layer.activation_dtype == "float16"
    for name, bits in state_bits(layer, without_biases=True).items():
        np.testing.assert_array_equal(bits, before[name], err_msg=name)
    twin = make_empty("float16", **format_options)
    state = dict(make_layer("bfloat16", **format_options).state_dict())
    for name in ("up_gate_proj.bias", "down_proj.bias"):
        state[name] = state[name].astype("float16")
    twin.set_state_dict(state)
    assert_same(layer(make_x(dtype="float16")), twin(make_x(dtype="float16")))


def test_methods_named_after_types() -> None:
    layer = make_layer()
    before = state_bits(layer, without_biases=True)
    assert_converted(layer.float16(), before)
    assert layer.bfloat16().activation_dtype == "bfloat16"
    assert_converted(layer.half(), before)
    assert layer.astype("bfloat16").activation_dtype == "bfloat16"
    assert_converted(layer.astype("float16"), before)


def test_a_model_converted_by_name_agrees_with_its_other_layers() -> None:
    """Paddle itself decides whether bfloat16() converts anything on this machine."""
    layer, other = make_layer("float16"), paddle.nn.LayerNorm(HIDDEN)
    paddle.nn.Sequential(layer, other).bfloat16()
    converted = other.weight.dtype == paddle.bfloat16
    assert layer.activation_dtype == ("bfloat16" if converted else "float16")


def test_amp_decorate_ruins_nothing() -> None:
    layer = make_layer()
    before = state_bits(layer, without_biases=True)
    paddle.amp.decorate(paddle.nn.Sequential(layer), level="O2", dtype="bfloat16")
    after = state_bits(layer, without_biases=True)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert_same(layer(make_x()), make_layer()(make_x()))


def test_astype_of_a_model_leaves_the_layer_as_it_is() -> None:
    layer = make_layer()
    expected = layer(make_x())
    paddle.nn.Sequential(layer).astype("float16")
    assert_same(layer(make_x()), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint8"])
@pytest.mark.parametrize("inside", [False, True], ids=["itself", "in a model"])
def test_other_types_are_refused_and_ruin_nothing(dtype: str, inside: bool) -> None:
    layer = make_layer()
    expected = layer(make_x())
    model = paddle.nn.Sequential(layer) if inside else layer
    with pytest.raises(ValueError, match=f"dtype: expected bfloat16 or float16.*got {dtype}"):
        model.to(dtype=dtype)
    assert_same(layer(make_x()), expected)


def test_float_is_refused() -> None:
    with pytest.raises(ValueError, match="expected bfloat16 or float16"):
        make_layer().float()
    with pytest.raises(ValueError, match="expected bfloat16 or float16"):
        make_layer().astype("float32")


def test_there_and_back_again() -> None:
    layer = make_layer()
    expected = layer(make_x())
    assert_same(layer.float16().bfloat16()(make_x()), expected)


def test_moving_keeps_everything() -> None:
    layer = make_layer(**FORMATS["mxfp4"])
    before, expected = state_bits(layer), layer(make_x())
    for place in ("cpu", paddle.CPUPlace()):
        layer.to(device=place)
    assert layer.activation_dtype == "bfloat16"
    after = state_bits(layer)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert_same(layer(make_x()), expected)


def test_deepcopy_is_independent() -> None:
    layer = make_layer()
    expected = layer(make_x())
    other = copy.deepcopy(layer)
    assert_same(other(make_x()), expected)
    layer.up_gate_proj.weight_scale.zero_()
    layer.float16()
    assert_same(other(make_x()), expected)


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_automatic_mixed_precision_changes_nothing(level: str) -> None:
    layer = make_layer()
    expected = layer(make_x())
    with paddle.amp.auto_cast(level=level, dtype="bfloat16"):
        assert_same(layer(make_x()), expected)


def test_state_is_buffers_only() -> None:
    layer = make_layer(**FORMATS["mxfp4"])
    assert layer.parameters() == []
    kinds = {t.dtype for name, t in layer.state_dict().items() if not name.endswith("proj.bias")}
    assert kinds == KEPT
