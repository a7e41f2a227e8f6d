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
"""A rank's share of experts without pauses: its last launch writes zeros before its turn.

Tokens whose experts are elsewhere get their zeros while the second product still runs, into memory
that an earlier layer may have used. Nobody may notice: bits are those of the operators one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from test_moe_ffn_workspace import EXPERTS, build

from w4afp8._routes import force_route
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.gpu import as_torch, torch_on_paddle_stream
from w4afp8.testing.tensors import float_tensor, tensor_bits

torch = pytest.importorskip("torch", reason="needs PyTorch")

HIDDEN, RUNS = 512, 100
# Of the router, of which the layer has EXPERTS: from half of the tokens to all have one here.
SHARES = {"a quarter": 4 * EXPERTS, "all": EXPERTS}


class Layers:
    """Three layers in a row, each with its own logits; the residual keeps the tokens random."""

    def __init__(self, router_experts: int, tokens: int, place: Any) -> None:
        rng = np.random.default_rng(tokens)
        self.layer: W4AFP8MoEFFN = build(
            HIDDEN, 320, "swiglu", place, router_experts=router_experts
        )
        self.x = float_tensor(rng.standard_normal((tokens, HIDDEN)), "bfloat16", place)
        self.logits = [
            float_tensor(rng.standard_normal((tokens, router_experts)), "float32", place)
            for _ in range(3)
        ]

    def run(self) -> list[paddle.Tensor]:
        """Outputs with and without the residual: the memory of one is soon that of another."""
        outputs = [self.layer(self.x, logits) for logits in self.logits]
        summed = self.x
        for logits in self.logits:
            summed = self.layer(summed, logits, shared_output=summed)
        return [*outputs, summed]


@pytest.mark.parametrize("tokens", [1, 9, 130, 2000])
@pytest.mark.parametrize("share", SHARES)
def test_without_pauses_the_bits_are_those_of_the_operators(
    share: str, tokens: int, place: Any
) -> None:
    layers = Layers(SHARES[share], tokens, place)
    with force_route("registered"):
        expected = [as_torch(t).clone() for t in layers.run()]
    with torch_on_paddle_stream(place) as stream:
        different = torch.zeros((), dtype=torch.int64, device="cuda")
        for _ in range(RUNS):
            for got, right in zip(layers.run(), expected, strict=True):
                different += (as_torch(got).view(torch.uint8) != right.view(torch.uint8)).sum()
                as_torch(got).fill_(float("nan"))  # the next run may get this memory
        stream.synchronize()
    assert different.item() == 0


@pytest.mark.parametrize("tokens", [9, 2000])
def test_a_graph_replays_them(tokens: int, place: Any) -> None:
    layers = Layers(SHARES["a quarter"], tokens, place)
    with force_route("registered"):
        expected = [tensor_bits(t) for t in layers.run()]
    with torch_on_paddle_stream(place) as stream:
        layers.run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
            outputs = layers.run()
        for _ in range(20):
            for output in outputs:
                as_torch(output).fill_(float("nan"))
            graph.replay()
            stream.synchronize()
            for got, right in zip(outputs, expected, strict=True):
                assert_bits_equal(tensor_bits(got), right)
