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
"""The kernels around the products, one after the other without a pause: each may start before the
one before it has ended, also in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.gpu import as_torch, device_name, torch_on_paddle_stream
from w4afp8.testing.tensors import float_tensor, tensor_bits

pytestmark = pytest.mark.usefixtures("route")

EXPERTS, HIDDEN, TOPK, RUNS = 96, 512, 6, 200


class Chain:
    """route -> dispatch -> activation_quant -> combine over inputs that are on the GPU."""

    def __init__(self, place: Any, tokens: int) -> None:
        rng = np.random.default_rng(tokens)
        self.place = place
        self.logits = float_tensor(rng.standard_normal((tokens, EXPERTS)), "float32", place)
        self.x = float_tensor(rng.standard_normal((tokens, HIDDEN)), "bfloat16", place)
        self.h = float_tensor(rng.standard_normal((tokens * TOPK, 768)), "bfloat16", place)
        self.y = float_tensor(rng.standard_normal((tokens * TOPK, HIDDEN)), "bfloat16", place)

    def run(self, *, pauses: bool = False) -> list[paddle.Tensor]:
        """All that depends on the logits and is written everywhere."""

        def pause() -> None:
            if pauses:
                paddle.device.synchronize(device_name(self.place))

        weights, ids = ops.moe_route(
            self.logits, topk=TOPK, score="sigmoid", n_group=8, topk_group=3
        )
        pause()
        permuted, scale, tokens, rows = ops.moe_dispatch(self.x, ids, experts=EXPERTS)
        pause()
        active, active_scale = ops.activation_quant(self.h, tokens)
        pause()
        out = ops.moe_combine(self.y, weights, rows, shared_output=self.x)
        pause()
        return [weights, ids, permuted, scale, tokens, rows, active, active_scale, out]


def bits(outputs: list[paddle.Tensor]) -> list[NDArray[Any]]:
    return [tensor_bits(t) for t in outputs]


@pytest.mark.parametrize("tokens", [1, 9, 130, 600, 2000])
def test_without_pauses_the_bits_are_the_same(place: Any, tokens: int) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    chain = Chain(place, tokens)
    expected = [as_torch(t).clone() for t in chain.run(pauses=True)]
    with torch_on_paddle_stream(place) as stream:
        different = torch.zeros((), dtype=torch.int64, device="cuda")
        for _ in range(RUNS):  # memory of one run is that of the one before
            outputs = [as_torch(t) for t in chain.run()]
            for got, right in zip(outputs, expected, strict=True):
                different += (got.view(torch.uint8) != right.view(torch.uint8)).sum()
        stream.synchronize()
    assert different.item() == 0


@pytest.mark.parametrize("tokens", [1, 130, 2000])
def test_graph_replays_with_other_routings(place: Any, tokens: int) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    chain = Chain(place, tokens)
    with torch_on_paddle_stream(place) as stream:
        chain.run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
            outputs = chain.run()
    rng = np.random.default_rng(7)
    for sharpness in (0.0, 1.0, 30.0):  # from all ties to most tokens at few experts
        values = rng.standard_normal((tokens, EXPERTS)) + sharpness * rng.standard_normal(EXPERTS)
        logits = float_tensor(values * (sharpness > 0), "float32", place)
        with torch_on_paddle_stream(place) as stream:
            as_torch(chain.logits).copy_(as_torch(logits))
            for output in outputs:
                as_torch(output).view(torch.uint8).fill_(0x5A)
            graph.replay()
            stream.synchronize()
            replayed = bits(outputs)
        for i, (got, right) in enumerate(zip(replayed, bits(chain.run(pauses=True)), strict=True)):
            assert_bits_equal(got, right, f"output {i}, sharpness {sharpness}")
