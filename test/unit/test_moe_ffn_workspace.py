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
"""W4AFP8MoEFFN in one call: the bits of its operators one by one, and one workspace."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddle.base import core

from w4afp8._routes import force_route
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.tensors import float_tensor, tensor_bits

EXPERTS, TOPK = 12, 3
# hidden, intermediate, activation: the outputs need most, or the first product does.
SHAPES = {
    "hidden is widest": (256, 64, "swiglu"),
    "gate and up are widest": (128, 96, "swiglu_oai"),
    "the activation is wider than the tokens": (64, 320, "gelu"),
}


def build(
    hidden: int, intermediate: int, activation: Any, place: Any, **options: Any
) -> W4AFP8MoEFFN:
    rng = np.random.default_rng(0)
    rows = intermediate if activation == "gelu" else 2 * intermediate
    up_gate = rng.standard_normal((EXPERTS, rows, hidden)).astype(np.float32) * 0.1
    down = rng.standard_normal((EXPERTS, hidden, intermediate)).astype(np.float32) * 0.1
    biases = rng.standard_normal((EXPERTS, rows)), rng.standard_normal((EXPERTS, hidden))
    layer = W4AFP8MoEFFN.from_float(
        *(up_gate, down),
        topk=TOPK,
        activation=activation,
        up_gate_bias=biases[0],
        down_bias=biases[1],
        hadamard_block_size=32,
        **options,
    )
    layer.to(device=place)
    return layer


def inputs(tokens: int, hidden: int, place: Any) -> tuple[paddle.Tensor, paddle.Tensor]:
    rng = np.random.default_rng(tokens)
    x, logits = (rng.standard_normal((tokens, n)) for n in (hidden, EXPERTS))
    return float_tensor(x, "bfloat16", place), float_tensor(logits, "float32", place)


@pytest.mark.parametrize("tokens", [0, 1, 50])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_call_gives_the_bits_of_the_operators(shape: str, tokens: int, place: Any) -> None:
    layer = build(*SHAPES[shape], place)
    x, logits = inputs(tokens, layer.hidden_size, place)
    with force_route("registered"):
        expected = tensor_bits(layer(x, logits, shared_output=x))
    assert_bits_equal(tensor_bits(layer(x, logits, shared_output=x)), expected, shape)


def poison(shape: list[int], place: Any) -> None:
    """Leaves NaN in the memory that the next tensor of this shape probably gets."""
    float_tensor(np.full(shape, np.nan), "bfloat16", place)


@pytest.mark.parametrize("tokens", [1, 9, 300])
@pytest.mark.parametrize("elsewhere", [0.0, 50.0], ids=["some", "all"])
@pytest.mark.parametrize("is_shared", [False, True])
def test_tokens_whose_experts_are_elsewhere(
    is_shared: bool, elsewhere: float, tokens: int, place: Any
) -> None:
    """Of a rank's share, whose zeros may be written while the second product runs."""
    layer = build(128, 96, "swiglu", place, router_experts=4 * EXPERTS)
    x, _ = inputs(tokens, layer.hidden_size, place)
    logits = np.random.default_rng(1).standard_normal((tokens, 4 * EXPERTS))
    logits[:, EXPERTS:] += elsewhere
    options = {"logits": float_tensor(logits, "float32", place)}
    options |= {"shared_output": x} if is_shared else {}
    with force_route("registered"):
        expected = tensor_bits(layer(x, **options))
    poison(x.shape, place)
    assert_bits_equal(tensor_bits(layer(x, **options)), expected)
    if elsewhere and not is_shared:
        assert not expected.any()


def workspace_bytes(layer: W4AFP8MoEFFN, tokens: int) -> int:
    """What the operators hand on, each a multiple of 1024; outputs lie over the tokens."""
    slots = tokens * TOPK
    inner = layer.up_gate_proj.out_features
    words = [slots, slots, slots, EXPERTS + 1, slots, slots]
    regions = [4 * count for count in words]
    regions += [slots * layer.hidden_size * 2, slots * inner * 2, slots * layer.intermediate_size]
    return sum(-(-max(size, 1) // 1024) * 1024 for size in regions)


@pytest.mark.cpu_only
@pytest.mark.parametrize("shape", SHAPES)
def test_the_output_and_one_workspace_are_all_that_is_allocated(shape: str) -> None:
    """By Paddle's own count of the bytes that its allocator has given out.

    All tokens go to experts of others: the products on the CPU, unlike those on a GPU, allocate.
    """
    tokens = 50
    layer = build(*SHAPES[shape], paddle.CPUPlace(), router_experts=2 * EXPERTS)
    x, _ = inputs(tokens, layer.hidden_size, paddle.CPUPlace())
    skew = np.where(np.arange(2 * EXPERTS) < EXPERTS, 0.0, 1.0)
    logits = float_tensor(np.tile(skew, (tokens, 1)), "float32", paddle.CPUPlace())
    before = core.host_memory_stat_current_value("Allocated", 0)
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    out = layer(x, logits)
    most = core.host_memory_stat_peak_value("Allocated", 0) - before
    left = core.host_memory_stat_current_value("Allocated", 0) - before
    assert out.shape == [tokens, layer.hidden_size]
    rounding = 512  # of the allocator, which also keeps a header
    out_bytes = tokens * layer.hidden_size * 2
    assert out_bytes <= left <= out_bytes + rounding
    expected = workspace_bytes(layer, tokens) + out_bytes
    assert expected <= most <= expected + 2 * rounding
