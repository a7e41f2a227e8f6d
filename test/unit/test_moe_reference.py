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
"""The bounds of moe_reference.py: a layer that rounds as hardware does is inside, a wrong one not.

Needs no operator: the layers here are simulated in numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from moe_reference import (
    Error,
    Expected,
    Float64,
    MoEWeights,
    Routing,
    activate,
    fp8_rows,
    reference,
    route_tokens,
)

from w4afp8.quant import QuantizedWeight, dequantize, quantize
from w4afp8.testing.compare import CPU_ACCUMULATOR, HOPPER_ACCUMULATOR, summation
from w4afp8.testing.tensor_core import truncating_sum
from w4afp8.testing.tensors import bits_of, values_of

pytestmark = pytest.mark.cpu_only

EXPERTS, HIDDEN, INTERMEDIATE = 4, 96, 64
ROUTING = Routing(2, "sigmoid", True, 2.5)


@dataclass(frozen=True, eq=False)
class Block:
    """All that determines an output."""

    x: Any
    weights: MoEWeights
    logits: Float64
    correction_bias: Float64
    routing: Routing = ROUTING
    activation: str = "swiglu"
    dtype: str = "bfloat16"

    def routed(self) -> tuple[Float64, Any]:
        return route_tokens(self.logits, self.routing, self.correction_bias)


def rounded(values: Float64, dtype: str) -> Any:
    return values_of(bits_of(values, dtype), dtype).astype(np.float32)


def make_block(tokens: int, weight_format: Any, group_size: int, dtype: str = "bfloat16") -> Block:
    rng = np.random.default_rng(0)

    def quantized(*shape: int) -> QuantizedWeight:
        weight = (rng.standard_normal(shape) * shape[2] ** -0.5).astype(np.float32)
        return quantize(weight, weight_format=weight_format, group_size=group_size)

    return Block(
        x=rounded(rng.standard_normal((tokens, HIDDEN)), dtype),
        weights=MoEWeights(
            quantized(EXPERTS, 2 * INTERMEDIATE, HIDDEN),
            quantized(EXPERTS, HIDDEN, INTERMEDIATE),
            0.5 * rng.standard_normal((EXPERTS, 2 * INTERMEDIATE)),
            0.5 * rng.standard_normal((EXPERTS, HIDDEN)),
        ),
        logits=rng.standard_normal((tokens, EXPERTS)),
        correction_bias=0.3 * rng.standard_normal(EXPERTS),
        dtype=dtype,
    )


def expected_of(block: Block, accumulator: Any) -> Expected:
    return reference(
        block.x,
        block.weights,
        *block.routed(),
        activation=block.activation,
        dtype=block.dtype,
        accumulator=accumulator,
    )


def simulated(block: Block, accumulator: Any) -> Any:
    """The block with every rounding executed."""
    weights, (topk_weights, topk_ids) = block.weights, block.routed()
    how = summation(weights.down.weight_format, weights.down.group_size, block.dtype)

    def multiply(x: Float64, weight: QuantizedWeight, expert: int, bias: Float64) -> Float64:
        values = dequantize(weight)[expert].astype(np.float64)
        exact = not accumulator.is_tensor_core
        total = x @ values.T if exact else truncating_sum(x, values, how)
        return rounded(total + bias[expert], block.dtype).astype(np.float64)

    out, quantized = np.zeros(block.x.shape), fp8_rows(block.x)
    for expert in range(EXPERTS):
        token, slot = np.nonzero(topk_ids == expert)
        h = multiply(quantized[token], weights.up_gate, expert, weights.up_gate_bias)
        a, _ = activate(h, Error(0 * h, 0 * h), block.activation, block.dtype)
        y = multiply(fp8_rows(rounded(a, block.dtype)), weights.down, expert, weights.down_bias)
        out[token] += topk_weights[token, slot][:, None] * y
    return rounded(out, block.dtype)


FORMATS = [("int4", -1), ("int4", 32), ("mxfp4", 32)]
ACCUMULATORS = pytest.mark.parametrize(
    "accumulator", [CPU_ACCUMULATOR, HOPPER_ACCUMULATOR], ids=["float32", "tensor core"]
)


@ACCUMULATORS
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("activation", ["swiglu", "swiglu_oai"])
@pytest.mark.parametrize(("weight_format", "group_size"), FORMATS)
@pytest.mark.parametrize("tokens", [1, 17])
def test_a_right_layer_is_inside(
    tokens: int,
    weight_format: str,
    group_size: int,
    activation: str,
    dtype: str,
    accumulator: Any,
) -> None:
    block = make_block(tokens, weight_format, group_size, dtype)
    block = replace(block, activation=activation)
    expected = expected_of(block, accumulator)
    expected.assert_matches(simulated(block, accumulator))


def rolled(weight: QuantizedWeight, axis: int) -> QuantizedWeight:
    """Every expert or channel gets its neighbour's codes and scales."""
    codes, scale = np.roll(weight.codes, 1, axis), np.roll(weight.scale, 1, axis)
    return replace(weight, codes=codes, scale=scale)


def with_weights(block: Block, **changes: Any) -> Block:
    return replace(block, weights=replace(block.weights, **changes))


def swapped_nibbles(weight: QuantizedWeight) -> QuantizedWeight:
    codes = weight.codes.copy()
    codes[0] = codes[0] >> 4 | codes[0] << 4
    return replace(weight, codes=codes)


def next_scale(weight: QuantizedWeight) -> QuantizedWeight:
    return replace(weight, scale=np.roll(weight.scale, 1, axis=1))


def without(bias: Float64, experts: Any) -> Float64:
    kept = bias.copy()
    kept[experts] = 0
    return kept


MISTAKES: dict[str, Callable[[Block], Block]] = {
    "up_gate of the next expert": lambda b: with_weights(b, up_gate=rolled(b.weights.up_gate, 0)),
    "down of the next expert": lambda b: with_weights(b, down=rolled(b.weights.down, 0)),
    "down of the next channel": lambda b: with_weights(b, down=rolled(b.weights.down, 1)),
    "nibbles swapped": lambda b: with_weights(b, up_gate=swapped_nibbles(b.weights.up_gate)),
    "scale of the next channel": lambda b: with_weights(b, down=next_scale(b.weights.down)),
    "up_gate bias left out": lambda b: with_weights(
        b, up_gate_bias=without(b.weights.up_gate_bias, slice(None))
    ),
    "one expert's down bias left out": lambda b: with_weights(
        b, down_bias=without(b.weights.down_bias, 1)
    ),
    "gate and up swapped": lambda b: with_weights(
        b,
        up_gate=replace(
            b.weights.up_gate,
            codes=np.roll(b.weights.up_gate.codes, INTERMEDIATE, 1),
            scale=np.roll(b.weights.up_gate.scale, INTERMEDIATE, 1),
        ),
    ),
    "another activation": lambda b: replace(b, activation="swiglu_oai"),
    "weights not normalised": lambda b: replace(
        b, routing=replace(b.routing, norm_topk_prob=False)
    ),
    "softmax": lambda b: replace(b, routing=replace(b.routing, scoring="softmax")),
    "no scaling factor": lambda b: replace(
        b, routing=replace(b.routing, routed_scaling_factor=1.0)
    ),
    "correction bias ignored": lambda b: replace(b, correction_bias=0 * b.correction_bias),
    "correction bias weighed": lambda b: replace(
        b, logits=b.logits + b.correction_bias, correction_bias=0 * b.correction_bias
    ),
    "one slot less": lambda b: replace(b, routing=replace(b.routing, topk=1)),
}


@ACCUMULATORS
@pytest.mark.parametrize(("weight_format", "group_size"), FORMATS)
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_wrong_layer_is_outside(
    mistake: Callable[[Block], Block], weight_format: str, group_size: int, accumulator: Any
) -> None:
    block = make_block(9, weight_format, group_size)
    wrong = expected_of(mistake(block), accumulator).out
    right = expected_of(block, accumulator)
    with pytest.raises(AssertionError, match=r"outside the bound|2-norm"):
        right.assert_matches(wrong.astype(np.float32))


@ACCUMULATORS
def test_a_wrong_element_is_outside(accumulator: Any) -> None:
    block = make_block(9, "int4", -1)
    right = expected_of(block, accumulator)
    wrong = simulated(block, accumulator)
    token, channel = np.unravel_index(np.abs(wrong).argmax(), wrong.shape)
    wrong[token, channel] *= 0.75
    with pytest.raises(AssertionError, match="1 of 864 elements are outside the bound"):
        right.assert_matches(wrong)
