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
"""Options of W4AFP8MoEFFN whose results are known bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from w4afp8 import ops
from w4afp8._extension import extension
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.tensors import float_tensor, tensor_bits

EXPERTS, HIDDEN, INTERMEDIATE, TOKENS = 12, 64, 128, 40
GROUPED = {"n_group": 3, "topk_group": 1, "scoring": "sigmoid"}


def weights(first: int = 0, count: int = EXPERTS) -> dict[str, Any]:
    """Of some of the experts."""
    rng = np.random.default_rng(0)
    up_gate = rng.standard_normal((EXPERTS, 2 * INTERMEDIATE, HIDDEN)).astype(np.float32) * 0.1
    down = rng.standard_normal((EXPERTS, HIDDEN, INTERMEDIATE)).astype(np.float32) * 0.1
    return {"up_gate": up_gate[first:][:count], "down": down[first:][:count]}


def inputs(place: Any) -> tuple[paddle.Tensor, paddle.Tensor]:
    rng = np.random.default_rng(1)
    x, logits = (rng.standard_normal((TOKENS, n)) for n in (HIDDEN, EXPERTS))
    return float_tensor(x, "bfloat16", place), float_tensor(logits, "float32", place)


def test_parts_of_a_layer_are_the_layer(place: Any) -> None:
    """Each token's experts are all in one group, so one part has its output and others give 0."""
    x, logits = inputs(place)
    whole = W4AFP8MoEFFN.from_float(**weights(), topk=2, **GROUPED)
    whole.to(device=place)
    expected = tensor_bits(whole(x, logits))
    found = np.zeros_like(expected)
    part_of = np.asarray(tensor_bits(whole.router(x, logits)[1])).astype(int)[:, 0] // 4
    assert set(part_of) == {0, 1, 2}
    for part in range(3):
        options: dict[str, Any] = {"router_experts": EXPERTS, "first_expert": 4 * part, **GROUPED}
        layer = W4AFP8MoEFFN.from_float(**weights(4 * part, 4), topk=2, **options)
        layer.to(device=place)
        out = tensor_bits(layer(x, logits))
        assert not (out[part_of != part] & 0x7FFF).any()  # zeros of either sign
        found[part_of == part] = out[part_of == part]
    assert_bits_equal(found, expected)


@pytest.mark.parametrize("shape", [(TOKENS, HIDDEN), (4, 10, HIDDEN)])
def test_of_zero_weights_only_the_shared_output_is_left(place: Any, shape: Any) -> None:
    layer = W4AFP8MoEFFN(HIDDEN, INTERMEDIATE, EXPERTS, 2)
    layer.to(device=place)
    x, logits = inputs(place)
    shared = float_tensor(np.random.default_rng(2).standard_normal(shape), "bfloat16", place)
    out = layer(x.reshape(shape), logits, shared_output=shared)
    assert_bits_equal(tensor_bits(out), tensor_bits(shared))


def test_shared_output_is_added_before_the_rounding(place: Any) -> None:
    """2 + 2^-7 and 2^-8 + 2^-9: together above half a unit of 2^-6, each alone is rounded away."""
    layer = W4AFP8MoEFFN.from_float(
        np.zeros((2, 64, HIDDEN), np.float32),
        np.zeros((2, HIDDEN, 32), np.float32),
        topk=1,
        down_bias=np.full((2, HIDDEN), 2.0**-7),
    )
    layer.to(device=place)
    x = float_tensor(np.ones((3, HIDDEN)), "bfloat16", place)
    logits = float_tensor(np.zeros((3, 2)), "float32", place)
    # 2^-7 is half a unit of the numbers from 2: to even, down from 2 and up from 2 + 2^-6.
    for number, expected in ((2.0, 2.0), (2.0 + 2.0**-6, 2.0 + 2.0**-5), (2.0**-7, 2.0**-6)):
        shared = float_tensor(np.full((3, HIDDEN), number), "bfloat16", place)
        out = layer(x, logits, shared_output=shared)
        expected_bits = tensor_bits(float_tensor(np.full((3, HIDDEN), expected), "bfloat16", place))
        assert_bits_equal(tensor_bits(out), expected_bits)


def test_what_the_rotation_is(place: Any) -> None:
    """Of a block with one feature other than 0 it makes the matrix's row of that feature."""
    size, experts, feature, block = 32, 2, 5, 16
    up_gate = np.zeros((experts, 2 * size, HIDDEN), np.float32)
    up_gate[:, :, 0] = 7  # so that codes are the weights
    up_gate[:, :size, 1] = 1  # the gate: 7 * 8 + 8, its sigmoid is 1 in float32
    up_gate[:, size:, 0] = np.where(np.arange(size) == feature, 7, 0)
    up_gate[:, size:, 1] = np.where(np.arange(size) == feature, 1, 0)
    down = np.zeros((experts, HIDDEN, size), np.float32)
    down[:, np.arange(block), np.arange(block)] = 4
    down[:, np.arange(block), block + np.arange(block)] = 7  # of zeros: for the scale
    x = np.zeros((3, HIDDEN), np.float32)
    x[:, 0] = x[:, 1] = 8
    layer = W4AFP8MoEFFN.from_float(up_gate, down, topk=1, hadamard_block_size=block)
    layer.to(device=place)
    logits = float_tensor(np.zeros((3, experts)), "float32", place)
    out = layer(float_tensor(x, "bfloat16", place), logits)
    # 64 * 64 / sqrt(16) and the sign of the number of bits that both indices have, times 4.
    signs = [(-1.0) ** (feature & other).bit_count() for other in range(block)]
    expected = np.zeros((3, HIDDEN))
    expected[:, :block] = 4 * 1024 * np.array(signs)
    assert_bits_equal(tensor_bits(out), tensor_bits(float_tensor(expected, "bfloat16", place)))


def record_products(monkeypatch: pytest.MonkeyPatch, option: str, values_of: Any) -> list[Any]:
    """What each product of a layer is given as `option`, from now on.

    `values_of`: both products' values, of what the call that is the whole layer is told of experts.
    """
    seen: list[Any] = []
    run, run_all = ops.group_gemm, extension().moe_ffn

    def recording(*operands: Any, **options: Any) -> Any:
        seen.append(options[option])
        return run(*operands, **options)

    def recording_all(*arguments: Any) -> Any:
        seen.extend(values_of(arguments[-2]))
        return run_all(*arguments)

    monkeypatch.setattr(ops, "group_gemm", recording)
    monkeypatch.setattr(extension(), "moe_ffn", recording_all)
    return seen


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(("router_experts", "hint"), [(12, 7), (36, 3)])
def test_the_hint_is_the_mean_over_the_routers_experts(
    router_experts: int, hint: int, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 tokens, 2 experts each: the empty rows of a part must not pass for tokens."""
    seen = record_products(monkeypatch, "max_tokens", lambda experts: [experts[-1]] * 2)
    layer = W4AFP8MoEFFN.from_float(**weights(), topk=2, router_experts=router_experts)
    layer.to(device=place)
    logits = np.random.default_rng(1).standard_normal((TOKENS, router_experts))
    layer(inputs(place)[0], float_tensor(logits, "float32", place))
    assert seen == [hint] * 2


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("accumulation", ["default", "half", "float32"])
def test_both_products_sum_as_the_layer_says(
    accumulation: Any, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = record_products(
        monkeypatch, "accumulation", lambda experts: [part[-1] for part in experts[:2]]
    )
    layer = W4AFP8MoEFFN.from_float(**weights(), topk=2, accumulation=accumulation)
    layer.to(device=place)
    layer(*inputs(place))
    assert seen == [accumulation] * 2


def test_unknown_accumulation_is_refused() -> None:
    with pytest.raises(ValueError, match="accumulation: expected one of default, half, float32"):
        W4AFP8MoEFFN.from_float(**weights(), topk=2, accumulation="float16")
