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
"""The layer is its public operators, one after the other, bit for bit.

On a GPU the layer's first product applies a gated activation where its outputs are many; the
operators here do it behind the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import pytest

from w4afp8 import ops
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.layers.experts import tokens_hint
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.tensors import float_tensor, tensor_bits

TOPK = 3


@dataclass(frozen=True)
class Case:
    """A layer, of which a router may choose among more experts than it holds."""

    intermediate: int
    activation: Any = "swiglu"
    weight_format: Any = "int4"
    group_size: int = -1
    dtype: str = "bfloat16"
    accumulation: Any = "default"
    hadamard_block_size: int = -1
    experts: int = 8
    router_experts: int = 8
    first_expert: int = 0
    has_biases: bool = True
    hidden: int = 128

    def layer(self, place: Any) -> W4AFP8MoEFFN:
        rng = np.random.default_rng(0)
        outputs = self.intermediate * (1 if self.activation == "gelu" else 2)
        sizes = (outputs, self.hidden), (self.hidden, self.intermediate)
        weights = [rng.standard_normal((self.experts, *size), np.float32) * 0.2 for size in sizes]
        biases: dict[str, Any] = {}
        if self.has_biases:
            for name, size in (("up_gate_bias", outputs), ("down_bias", self.hidden)):
                biases[name] = rng.standard_normal((self.experts, size), np.float32)
        layer = W4AFP8MoEFFN.from_float(
            *weights,
            topk=TOPK,
            activation=self.activation,
            **{"weight_format": self.weight_format, "group_size": self.group_size},
            **{"dtype": self.dtype, "accumulation": self.accumulation},
            **{"router_experts": self.router_experts, "first_expert": self.first_expert},
            hadamard_block_size=self.hadamard_block_size,
            **biases,
        )
        layer.to(device=place)
        return layer


CASES = {
    # Outputs of the first product: a multiple of 128, of an odd number of 64 in each half, or not.
    "128": Case(64),
    "384": Case(192),
    "384, gpt-oss": Case(192, "swiglu_oai", "mxfp4"),
    "1536": Case(768),
    "1536 in groups of 128": Case(768, group_size=128),
    "1536, gpt-oss": Case(768, "swiglu_oai", "mxfp4"),
    "1536 in float16": Case(768, weight_format="mxfp4", dtype="float16"),
    "1536 in float32": Case(768, accumulation="float32"),
    "1536, a part": Case(768, router_experts=24, first_expert=8),
    "groups of 32": Case(192, group_size=32),
    "float16": Case(192, dtype="float16"),
    "float16, gpt-oss, in halves": Case(192, "swiglu_oai", dtype="float16", accumulation="half"),
    "in float32": Case(192, "swiglu_oai", "mxfp4", accumulation="float32"),
    "rotated": Case(192, hadamard_block_size=64),
    "without biases": Case(192, has_biases=False),
    "a part": Case(192, router_experts=24, first_expert=8),
    "64": Case(32),
    "192": Case(96),
    "192, gpt-oss": Case(96, "swiglu_oai", "mxfp4", hadamard_block_size=32),
    "gelu": Case(128, "gelu"),
}


def composed(case: Case, layer: W4AFP8MoEFFN, x: Any, logits: Any, shared: Any) -> paddle.Tensor:
    weights, ids = ops.moe_route(logits, topk=TOPK)
    rows, scale, tokens, row_index = ops.moe_dispatch(
        x, ids, experts=case.experts, first_expert=case.first_expert
    )
    hint = tokens_hint(x.shape[0] * TOPK, case.router_experts)
    h = layer.up_gate_proj(rows, tokens, scale, max_tokens=hint)
    rows, scale = ops.activation_quant(
        *(h, tokens),
        activation=case.activation,
        hadamard_block_size=case.hadamard_block_size,
    )
    y = layer.down_proj(rows, tokens, scale, max_tokens=hint)
    return ops.moe_combine(y, weights, row_index, shared_output=shared)


def check(case: Case, tokens: int, place: Any) -> None:
    layer = case.layer(place)
    rng = np.random.default_rng(tokens)
    x, shared = (
        float_tensor(rng.standard_normal((tokens, case.hidden)), case.dtype, place)
        for _ in range(2)
    )
    # Some experts are popular, one gets nothing.
    skew = np.linspace(0, 2, case.router_experts)
    skew[case.first_expert + 1] = -100
    logits = rng.standard_normal((tokens, case.router_experts)) + skew
    logits = float_tensor(logits, "float32", place)
    for shared_output in (None, shared):
        found = tensor_bits(layer(x, logits, shared_output=shared_output))
        expected = tensor_bits(composed(case, layer, x, logits, shared_output))
        assert_bits_equal(found, expected)


# Of 8 experts: a few tokens each, and many.
@pytest.mark.parametrize("tokens", [0, 1, 5, 40, 170, 400, 1000])
@pytest.mark.parametrize("name", CASES)
def test_the_layer_is_its_operators(name: str, tokens: int, place: Any) -> None:
    check(CASES[name], tokens, place)
