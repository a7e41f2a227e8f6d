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
"""The layer in a CUDA graph: how many launches it is, and replays with other tokens and routings.

That it can be captured at all says that nothing of it waits for the GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest
from moe_reference import Routing, reference, route_tokens
from test_moe_ffn import Case, build, values

from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.layers.moe_launches import run_by_operators
from w4afp8.testing.compare import Accumulator, assert_bits_equal
from w4afp8.testing.gpu import as_torch, torch_on_paddle_stream
from w4afp8.testing.tensors import bits_of, float_tensor, tensor_bits

torch = pytest.importorskip("torch", reason="needs PyTorch")

MOST_LAUNCHES = 6
_KERNEL_NODE = 0  # CU_GRAPH_NODE_TYPE_KERNEL
CASES = {
    "int4": Case(experts=16),
    "mxfp4 rotated, groups of experts": Case(
        experts=16,
        weight_format="mxfp4",
        routing=Routing(3, "sigmoid", True, 2.5, n_group=4, topk_group=2),
        has_correction_bias=True,
        has_biases=True,
        hadamard_block_size=64,
        has_shared_output=True,
    ),
}
# How the logits of all experts are skewed, by name: added to random ones.
ROUTINGS = {
    "random": np.zeros(16),
    "all to few": np.where(np.arange(16) < 4, 50.0, 0.0),
    "all to the last": np.where(np.arange(16) >= 12, 50.0, 0.0),
}


def node_types(graph: int) -> list[int]:
    """Types of the nodes of a cudaGraph_t, as the driver numbers them."""
    driver = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_size_t()
    assert driver.cuGraphGetNodes(ctypes.c_void_p(graph), None, ctypes.byref(count)) == 0
    nodes = (ctypes.c_void_p * count.value)()
    assert driver.cuGraphGetNodes(ctypes.c_void_p(graph), nodes, ctypes.byref(count)) == 0
    found = []
    for node in nodes:
        kind = ctypes.c_int(-1)
        assert driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)) == 0
        found.append(kind.value)
    return found


def captured(run: Callable[[], Any], stream: Any) -> tuple[Any, Any]:
    """A CUDA graph that can be asked for its nodes, and what ``run`` gave, which replays write."""
    run()  # loads the code
    stream.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    graph.capture_begin(capture_error_mode="relaxed")
    try:
        out = run()
    finally:
        graph.capture_end()
    graph.instantiate()
    return graph, out


class Inputs:
    """Tokens, logits and what shared experts made, on the GPU, and other values for them."""

    def __init__(self, case: Case, place: Any) -> None:
        self.case, self.place = case, place
        self.rng = np.random.default_rng(3)
        self.values = self.draw(ROUTINGS["random"])
        self.tensors = self.on_gpu()

    def draw(self, skew: Any) -> dict[str, np.ndarray]:
        rows = (self.case.tokens, self.case.hidden)
        found = {name: self.rng.standard_normal(rows) for name in ("x", "shared_output")}
        found["logits"] = self.rng.standard_normal((self.case.tokens, self.case.experts)) + skew
        if not self.case.has_shared_output:
            del found["shared_output"]
        return found

    def on_gpu(self) -> dict[str, paddle.Tensor]:
        return {
            name: float_tensor(v, "float32" if name == "logits" else "bfloat16", self.place)
            for name, v in self.values.items()
        }

    def change(self, skew: Any) -> None:
        """Other values in the same memory."""
        self.values = self.draw(skew)
        for name, tensor in self.on_gpu().items():
            as_torch(self.tensors[name]).copy_(as_torch(tensor))

    def rounded(self, name: str) -> np.ndarray:
        return values(self.tensors[name])


def expected_output(inputs: Inputs, weights: Any, router: Any, accumulator: Accumulator) -> Any:
    case = inputs.case
    logits = bits_of(inputs.values["logits"], "float32").view(np.float32).astype(np.float64)
    routed = route_tokens(logits, case.routing, router["correction_bias"])
    shared = inputs.rounded("shared_output") if case.has_shared_output else None
    return reference(
        inputs.rounded("x"),
        weights,
        *routed,
        activation=case.activation,
        dtype=case.dtype,
        accumulator=accumulator,
        hadamard_block_size=case.hadamard_block_size,
        shared_output=None if shared is None else shared.astype(np.float64),
    )


def built(case: Case, tokens: int, place: Any) -> tuple[W4AFP8MoEFFN, Any, Any, Inputs]:
    layer, weights, router = build(case, np.random.default_rng(7))
    layer.to(device=place)
    return layer, weights, router, Inputs(_with_tokens(case, tokens), place)


def _with_tokens(case: Case, tokens: int) -> Case:
    return Case(**{**vars(case), "tokens": tokens})


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("name", CASES)
def test_replays_with_other_routings(
    name: str, tokens: int, place: Any, accumulator: Accumulator
) -> None:
    layer, weights, router, inputs = built(CASES[name], tokens, place)
    with torch_on_paddle_stream(place) as stream:
        graph, out = captured(lambda: layer(**inputs.tensors), stream)
        types = node_types(graph.raw_cuda_graph())
        assert set(types) == {_KERNEL_NODE}
        assert len(types) <= MOST_LAUNCHES
        for skew in ROUTINGS.values():
            inputs.change(skew)
            as_torch(out).fill_(float("nan"))
            graph.replay()
            stream.synchronize()
            bits, found = tensor_bits(out), values(out)
            # The eager call may use the graph's memory, whose replay is over.
            assert_bits_equal(bits, tensor_bits(layer(**inputs.on_gpu())), name)
            expected_output(inputs, weights, router, accumulator).assert_matches(found)


@pytest.mark.parametrize("tokens", [0, 3000])
def test_any_number_of_tokens_is_captured(tokens: int, place: Any) -> None:
    layer, _, _, inputs = built(CASES["int4"], tokens, place)
    with torch_on_paddle_stream(place) as stream:
        eager = tensor_bits(layer(**inputs.tensors))
        graph, out = captured(lambda: layer(**inputs.tensors), stream)
        assert len(node_types(graph.raw_cuda_graph())) <= MOST_LAUNCHES
        graph.replay()
        stream.synchronize()
        assert_bits_equal(tensor_bits(out), eager)


def test_calls_ask_the_driver_for_no_memory(place: Any) -> None:
    """Paddle's allocator gives the same workspace to every call, and to another layer's."""
    layer, _, _, inputs = built(CASES["int4"], 3000, place)
    other, _, _, _ = built(CASES["int4"], 3000, place)
    with torch_on_paddle_stream(place) as stream:
        expected = tensor_bits(layer(**inputs.tensors))
        other(**inputs.tensors)
        stream.synchronize()
        free, _ = torch.cuda.mem_get_info()
        for _ in range(10):
            for one in (layer, other):
                assert_bits_equal(tensor_bits(one(**inputs.tensors)), expected)
        assert torch.cuda.mem_get_info()[0] == free


@pytest.mark.parametrize("tokens", [1, 8, 40, 1000])
@pytest.mark.parametrize("name", CASES)
def test_layers_one_behind_the_other_route_differently(name: str, tokens: int, place: Any) -> None:
    """Launches begin before the routing is known: they must not take that of the layer before.

    The operators one by one, which begin when all before has ended, say what is right.
    """
    layer, _, _, inputs = built(CASES[name], tokens, place)
    batches = []
    for skew in ROUTINGS.values():
        inputs.values = inputs.draw(skew)
        batches.append(inputs.on_gpu())
    with torch_on_paddle_stream(place) as stream:
        expected = [
            tensor_bits(run_by_operators(layer, b["x"], b["logits"], b.get("shared_output")))
            for b in batches
        ]
        graph, outs = captured(lambda: [layer(**batch) for batch in batches], stream)
        for _ in range(20):
            for out in outs:
                as_torch(out).fill_(float("nan"))
            graph.replay()
            eager = [layer(**batch) for batch in batches]
            stream.synchronize()
            for found in (outs, eager):
                for out, bits in zip(found, expected, strict=True):
                    assert_bits_equal(tensor_bits(out), bits, name)


def test_layers_in_one_graph_share_a_workspace(place: Any) -> None:
    """Each launch may start before the one before it has ended, also that of the next layer."""
    layer, _, _, inputs = built(CASES["int4"], 40, place)
    x, logits = inputs.tensors["x"], inputs.tensors["logits"]
    with torch_on_paddle_stream(place) as stream:
        expected = tensor_bits(layer(layer(layer(x, logits), logits), logits))
        graph, out = captured(lambda: layer(layer(layer(x, logits), logits), logits), stream)
        for _ in range(20):
            as_torch(out).fill_(float("nan"))
            graph.replay()
            stream.synchronize()
            assert_bits_equal(tensor_bits(out), expected)
