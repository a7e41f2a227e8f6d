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
"""`MLAUpProjections`: attention both ways, tensor parallelism, states, conversions, traces."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import paddle
import pytest
from mla_attention import attention_bound, inputs_of, unabsorbed
from paddle.static import InputSpec

from w4afp8.layers import MLAUpProjections
from w4afp8.quant import QuantizedWeight, UpError, split_kv_b_proj
from w4afp8.testing.compare import CPU_ACCUMULATOR, assert_bits_equal, assert_within
from w4afp8.testing.mla import MLAProblem, random_kv_b_proj
from w4afp8.testing.tensors import float_tensor, tensor_bits, values_of

pytestmark = pytest.mark.cpu_only

CPU = paddle.CPUPlace()
P = MLAProblem(6, 8, 64, 128, 64)


def make(p: MLAProblem, kv_b_proj: QuantizedWeight, **options: Any) -> MLAUpProjections:
    return MLAUpProjections.from_kv_b_proj(
        kv_b_proj.codes[0], kv_b_proj.scale[0], heads=p.heads, nope=p.nope, v=p.v, **options
    )


def query(p: MLAProblem, dtype: str = "bfloat16", seed: int = 0) -> paddle.Tensor:
    rng = np.random.default_rng(seed)
    return float_tensor(rng.standard_normal((p.tokens, p.heads, p.nope + 32)), dtype, CPU)


def latent(p: MLAProblem, dtype: str = "bfloat16", seed: int = 1) -> paddle.Tensor:
    rng = np.random.default_rng(seed)
    return float_tensor(rng.standard_normal((p.tokens, p.heads, p.lora)), dtype, CPU)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("sizes", [(128, 512, 128), (64, 256, 64), (192, 768, 128)], ids=str)
def test_attention_is_the_same_absorbed_and_unabsorbed(sizes: tuple[int, ...], dtype: str) -> None:
    """A whole step in float64 but for our products, beside keys and values that are expanded."""
    p = MLAProblem(3, 3, *sizes)
    kv_b_proj = random_kv_b_proj(p, scales=(117, 121))
    step = inputs_of(p, dtype, cached=33)
    layer = make(p, kv_b_proj, dtype=dtype)

    def through(product: Any, x: np.ndarray) -> np.ndarray:
        out = product(float_tensor(x, dtype, CPU))
        return values_of(tensor_bits(out), dtype).astype(np.float64)

    q_latent = through(layer.absorb_q, step.q_nope)
    scores = np.einsum("thl,sl->ths", q_latent, step.cache) + step.rotary_scores()
    attended = np.einsum("ths,sl->thl", step.softmax(scores), step.cache)
    rounded = values_of(tensor_bits(float_tensor(attended, dtype, CPU)), dtype)
    result = through(layer.project_v, rounded)

    expected = unabsorbed(step, p, kv_b_proj)
    bound = attention_bound(step, p, kv_b_proj, dtype, CPU_ACCUMULATOR)
    assert_within(result, expected, bound)
    # The bound means something: it is far below the values, and a wrong head is far outside.
    assert np.median(bound) < 0.2 * np.median(np.abs(expected))
    assert (np.abs(np.roll(result, 1, axis=1) - expected) > bound).mean() > 0.5


@pytest.mark.parametrize(("heads", "world_size"), [(8, 1), (8, 2), (8, 4), (8, 8), (6, 3)])
def test_ranks_together_are_the_whole(heads: int, world_size: int) -> None:
    p = dataclasses.replace(P, heads=heads)
    kv_b_proj = random_kv_b_proj(p)
    whole = make(p, kv_b_proj)
    q, x = query(p)[:, :, : p.nope], latent(p)
    count = heads // world_size
    for rank in range(world_size):
        part = make(p, kv_b_proj, rank=rank, world_size=world_size)
        assert part.heads == count
        assert part.weight_bytes * world_size == whole.weight_bytes
        mine = slice(rank * count, (rank + 1) * count)
        for product, expected, given in (
            (part.absorb_q, whole.absorb_q(q), q),
            (part.project_v, whole.project_v(x), x),
        ):
            assert_bits_equal(tensor_bits(product(given[:, mine])), tensor_bits(expected[:, mine]))


def test_rounded_weights_tell_their_error() -> None:
    values = np.random.default_rng(0).standard_normal((P.rows, P.lora), np.float32)
    layer = MLAUpProjections.from_kv_b_proj(values, None, heads=P.heads, nope=P.nope, v=P.v)
    assert 0.05 < layer.error.k < 0.2
    assert 0.05 < layer.error.v < 0.2
    assert make(P, random_kv_b_proj(P)).error == UpError()


def test_weights_are_taken_as_they_are() -> None:
    kv_b_proj = random_kv_b_proj(P)
    up = split_kv_b_proj(kv_b_proj.codes[0], kv_b_proj.scale[0], P.heads, P.nope, P.v)
    layer = MLAUpProjections(P.heads, P.nope, P.lora, P.v)
    assert not tensor_bits(layer.absorb_q(query(P)[:, :, : P.nope])).any()  # zeros at first
    layer.set_weights(up)
    assert layer.w_k.data_ptr() == up.w_k.data_ptr() == layer.weights.w_k.data_ptr()
    assert layer.weight_bytes == P.rows * P.lora * 17 // 32
    other = MLAUpProjections(P.heads, P.nope, 2 * P.lora, P.v)
    with pytest.raises(
        ValueError, match=r"up.w_k: expected uint8 \[8, 256, 32\], got uint8 \[8, 12"
    ):
        other.set_weights(up)


def test_state_goes_into_a_new_layer_and_into_no_other() -> None:
    layer = make(P, random_kv_b_proj(P))
    state = layer.state_dict()
    assert sorted(state) == ["format", "w_k", "w_k_scale", "w_v", "w_v_scale"]
    q = query(P)[:, :, : P.nope]
    fresh = MLAUpProjections(P.heads, P.nope, P.lora, P.v)
    fresh.set_state_dict(state)
    assert_bits_equal(tensor_bits(fresh.absorb_q(q)), tensor_bits(layer.absorb_q(q)))
    # Tensors of the same shapes, heads and lora exchanged in `format` only.
    other = {**state, "format": paddle.to_tensor([1, 4, 64, 128, 64], dtype="int32")}
    with pytest.raises(ValueError, match=r"state_dict: format: expected \[1, 8, .*, got \[1, 4"):
        fresh.set_state_dict(other)
    model = paddle.nn.LayerList([MLAUpProjections(P.heads, P.nope, P.lora, P.v)])
    model.set_state_dict({f"0.{name}": value for name, value in other.items()})
    with pytest.raises(ValueError, match="format, as it was loaded: expected"):
        model[0].absorb_q(q)


@pytest.mark.parametrize("convert", ["float16", "to", "astype"])
def test_conversion_changes_activations_only(convert: str) -> None:
    layer = make(P, random_kv_b_proj(P))
    before = {name: tensor_bits(tensor) for name, tensor in layer.state_dict().items()}
    options = {"to": {"dtype": "float16"}, "astype": {"dtype": "float16"}}.get(convert, {})
    getattr(layer, convert)(**options)
    for name, tensor in layer.state_dict().items():
        assert_bits_equal(tensor_bits(tensor), before[name], name)
    assert str(layer.absorb_q(query(P, "float16")[:, :, : P.nope]).dtype) == "paddle.float16"
    with pytest.raises(ValueError, match=r"x: expected float16, the layer's type .*, got bfloat16"):
        layer.project_v(latent(P))


class Attention(paddle.nn.Layer):
    """Both products in one program, the query a slice of a projected one."""

    def __init__(self, up: MLAUpProjections) -> None:
        super().__init__()
        self.up = up

    def forward(self, q: Any) -> Any:
        return self.up.project_v(self.up.absorb_q(q[:, :, : P.nope]))


def test_traced_saved_and_loaded(tmp_path: Any) -> None:
    model = Attention(make(P, random_kv_b_proj(P)))
    expected = tensor_bits(model(query(P)))
    spec = [InputSpec([-1, P.heads, P.nope + 32], "bfloat16")]
    traced = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
    assert_bits_equal(tensor_bits(traced(query(P))), expected)
    paddle.jit.save(traced, str(tmp_path / "attention"))
    loaded = paddle.jit.load(str(tmp_path / "attention"))
    assert_bits_equal(tensor_bits(loaded(query(P))), expected)


def test_forward_is_absorb_q() -> None:
    layer, q = make(P, random_kv_b_proj(P)), query(P)[:, :, : P.nope]
    assert_bits_equal(tensor_bits(layer(q)), tensor_bits(layer.absorb_q(q)))
    assert "heads=8, nope=64, lora=128, v=64, dtype=bfloat16" in str(layer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 64, 128, 64), "heads: expected 1 to"),
        ((2, 96, 128, 64), "nope: expected a positive multiple of 64, got 96"),
        ((2, 64, 100, 64), "lora: expected a positive multiple of 64, got 100"),
        ((2, 64, 128, 0), "v: expected a positive multiple of 64, got 0"),
        ((2, 1088, 128, 64), "nope: expected 1 to 1024, got 1088"),
        ((2, 64, 2048, 64), "lora: expected 1 to 1024, got 2048"),
    ],
)
def test_sizes_are_checked(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLAUpProjections(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 3}, "world_size: expected a divisor of 8 heads, got 3"),
        ({"world_size": 0}, "world_size: expected a divisor of 8 heads, got 0"),
        ({"world_size": 4, "rank": 4}, "rank: expected 0 to 3, got 4"),
        ({"world_size": 4, "rank": -1}, "rank: expected 0 to 3, got -1"),
        ({"dtype": "float32"}, "dtype: expected bfloat16 or float16"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(P, random_kv_b_proj(P), **options)


@pytest.mark.parametrize(
    ("shape", "got"), [((6, 7, 64), "[6, 7, 64]"), ((6, 8, 128), "[6, 8, 128]"), ((48, 64), "[48,")]
)
def test_activations_are_checked(shape: tuple[int, ...], got: str) -> None:
    layer = make(P, random_kv_b_proj(P))
    with pytest.raises(
        ValueError, match=r"q_nope: expected shape \[tokens, 8, 64\], got "
    ) as error:
        layer.absorb_q(float_tensor(np.zeros(shape), "bfloat16", CPU))
    assert got in str(error.value)
