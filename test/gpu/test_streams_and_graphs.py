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
"""Streams, CUDA graphs and repeatability of the grouped GEMM. Needs PyTorch, which can capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest

from w4afp8 import ops
from w4afp8.quant import pack
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.gemm_inputs import (
    HELPED,
    IN_PARTS,
    LARGE_HINT,
    LARGE_IN_PARTS,
    GemmProblem,
    exact_inputs,
    random_inputs,
    reference,
)
from w4afp8.testing.gpu import (
    as_torch,
    device_name,
    paddle_stream,
    torch_on_paddle_stream,
)
from w4afp8.testing.tensors import bits_of, float8_tensor, int_tensor, tensor_bits

pytestmark = pytest.mark.usefixtures("route")

FORMATS = {"int4": -1, "int4 groups": 128, "mxfp4": 32}


# Large tiles of four widths, medium ones too, three waves of them: blocks take all but the first
# from a counter.
UNEVEN = (300, 20, 130, 513, 257, 64, 1, 0) * 5
UNEVEN_MEDIUM = (100, 20, 130, 64, 1, 0, 300, 40) * 10
# Equal ones, a little more than a wave; of large ones two waves, and halves.
EQUAL = {"decode": (3,) * 70, "small": (20,) * 70, "medium": (100,) * 70, "large": (256,) * 36}
FEATURES = dict.fromkeys((UNEVEN, UNEVEN_MEDIUM, EQUAL["large"]), (1024, 640))
FEATURES |= {counts: features for counts, *features in (*IN_PARTS, *LARGE_IN_PARTS, *HELPED)}
LARGE = (UNEVEN, EQUAL["large"], *(counts for counts, *_ in LARGE_IN_PARTS))
HINTS = dict.fromkeys(LARGE, LARGE_HINT)  # others have none


def problem(counts: tuple[int, ...], form: str = "int4", **options: Any) -> GemmProblem:
    weight_format: Any = form.partition(" ")[0]
    out_features, in_features = FEATURES.get(counts, (328, 640))
    options = {"out_features": out_features, "in_features": in_features} | options
    return GemmProblem(
        counts=counts,
        weight_format=weight_format,
        group_size=FORMATS[form],
        **options,
    )


def prepared(
    place: Any, inputs: Any, max_tokens: int | None = None
) -> tuple[Callable[[], paddle.Tensor], paddle.Tensor]:
    """The operator on inputs that are on the GPU already, and its tensor of tokens."""
    p = inputs.problem
    hint = HINTS.get(p.counts, -1) if max_tokens is None else max_tokens
    packed = pack(inputs.weight, place=place)
    x = inputs.x.reshape(p.experts, p.token_padding, -1) if p.token_padding else inputs.x
    on_gpu = float8_tensor(x, place)
    tokens = int_tensor(p.tokens(), "int64", place)

    def launch() -> paddle.Tensor:
        return ops.group_gemm(
            on_gpu,
            packed.weight,
            packed.weight_scale,
            tokens,
            group_scale=packed.group_scale,
            weight_format=p.weight_format,
            group_size=p.group_size,
            token_padding=p.token_padding,
            max_tokens=hint,
        )

    return launch, tokens


def captured(place: Any, launch: Callable[[], paddle.Tensor]) -> tuple[Any, paddle.Tensor]:
    """A CUDA graph of one launch, and the output that its replays write."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    with torch_on_paddle_stream(place) as stream:
        launch()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
            out = launch()
    return graph, out


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("padding", [0, 300])
def test_graph_replays_with_other_counts(place: Any, form: str, padding: int) -> None:
    p = problem((300, 300, 300), form, token_padding=padding)
    inputs = exact_inputs(p)
    launch, tokens = prepared(place, inputs)
    graph, out = captured(place, launch)
    for counts in ((300, 300, 300), (1, 0, 5), (0, 0, 300), (17, 257, 0), (0, 0, 0)):
        other = problem(counts, form, token_padding=padding, spare_rows=900 - sum(counts))
        expected = reference(_with_counts(inputs, other))
        with torch_on_paddle_stream(place) as stream:
            as_torch(tokens).copy_(as_torch(int_tensor(other.tokens(), "int64", place)))
            as_torch(out).fill_(7.0)
            graph.replay()
            stream.synchronize()
        bits = tensor_bits(out).reshape(expected.shape)
        holds_token = ~np.isnan(expected[:, 0])
        assert_bits_equal(bits[holds_token], bits_of(expected, "bfloat16")[holds_token])
        assert (bits[~holds_token] == 0x40E0).all()  # 7 in bfloat16: never written


def _with_counts(inputs: Any, p: GemmProblem) -> Any:
    """The same rows and weights, distributed to the experts in another way."""
    return type(inputs)(p, inputs.x, inputs.weight, inputs.x_scale, inputs.bias)


@pytest.mark.parametrize(
    "first",
    [case[0] for case in (*IN_PARTS, *LARGE_IN_PARTS[:2], *HELPED)],
    ids=["215", "136", "70 large", "96 large", "435", "60"],
)
@pytest.mark.parametrize("form", ["int4", "mxfp4"])
def test_a_graph_with_parts_or_helped_tiles_replays_with_other_counts(
    place: Any, form: str, first: tuple[int, ...]
) -> None:
    p = problem(first, form)
    inputs = exact_inputs(p)
    launch, tokens = prepared(place, inputs)
    graph, out = captured(place, launch)
    total, experts = sum(first), len(first)
    even = tuple(total // experts + (i < total % experts) for i in range(experts))
    one = (total - experts // 2,) + (1,) * (experts // 2) + (0,) * (experts - experts // 2 - 1)
    for counts in (first, even, first[::-1], one, first):
        other = problem(counts, form, out_features=p.out_features, in_features=p.in_features)
        expected = bits_of(reference(_with_counts(inputs, other)), "bfloat16")
        with torch_on_paddle_stream(place) as stream:
            as_torch(tokens).copy_(as_torch(int_tensor(other.tokens(), "int64", place)))
            as_torch(out).fill_(7.0)
            graph.replay()
            stream.synchronize()
        assert_bits_equal(tensor_bits(out), expected, f"{counts}")


@pytest.mark.parametrize("form", FORMATS)
def test_same_bits_in_twenty_runs(place: Any, form: str) -> None:
    inputs = random_inputs(problem((257, 3, 0, 40), form))
    launch, _ = prepared(place, inputs)
    first = tensor_bits(launch())
    for i in range(20):
        assert_bits_equal(tensor_bits(launch()), first, f"run {i}")


@pytest.mark.parametrize("form", FORMATS)
def test_activations_in_more_places_than_the_host_remembers(place: Any, form: str) -> None:
    """In turns: maps of the last 8 places are kept, for each shape of tiles."""
    inputs = [exact_inputs(problem((70 + i, 3, 0, 40), form)) for i in range(11)]
    expected = [bits_of(reference(each), "bfloat16") for each in inputs]
    launches = [prepared(place, each)[0] for each in inputs]
    for i in (*range(11), *range(11), *[0, 1] * 3, *reversed(range(11))):
        assert_bits_equal(tensor_bits(launches[i]()), expected[i], f"{i}")


SHARED = {f"{form}, large": (form, UNEVEN) for form in FORMATS}
SHARED |= {f"{form}, medium": (form, UNEVEN_MEDIUM) for form in FORMATS}
SHARED |= {
    f"{form}, equal {tile}": (form, counts)
    for form in ("int4", "mxfp4")
    for tile, counts in EQUAL.items()
}
SHARED |= {f"{form}, 215 in parts": (form, IN_PARTS[0][0]) for form in ("int4", "mxfp4")}
SHARED |= {f"{form}, 136 in parts": (form, IN_PARTS[1][0]) for form in ("int4", "mxfp4")}
SHARED |= {
    f"{form}, {tiles} large in parts": (form, counts)
    for form in ("int4", "mxfp4")
    for tiles, (counts, *_) in zip((70, 96, 108), LARGE_IN_PARTS, strict=True)
}
SHARED |= {f"{form}, helped behind others": (form, HELPED[0][0]) for form in FORMATS}
SHARED |= {f"{form}, all helped": (form, HELPED[1][0]) for form in FORMATS}


@pytest.mark.parametrize(("form", "counts"), SHARED.values(), ids=SHARED)
def test_blocks_that_are_done_share_what_is_left(
    place: Any, form: str, counts: tuple[int, ...]
) -> None:
    """Eagerly and as a graph, again and again: each launch puts its counters back."""
    inputs = exact_inputs(problem(counts, form))
    launch, _ = prepared(place, inputs)
    expected = bits_of(reference(inputs), "bfloat16")
    for i in range(20):
        out = launch()
        assert_bits_equal(tensor_bits(out), expected, f"launch {i}")
        with torch_on_paddle_stream(place) as stream:
            as_torch(out).fill_(7.0)  # a later launch gets this memory
            stream.synchronize()
    graph, out = captured(place, launch)
    for i in range(20):
        with torch_on_paddle_stream(place) as stream:
            as_torch(out).fill_(7.0)
            graph.replay()
            stream.synchronize()
        assert_bits_equal(tensor_bits(out), expected, f"replay {i}")


@pytest.mark.parametrize(
    ("counts", "padding", "hint"),
    [(IN_PARTS[0][0], 310, 128), (LARGE_IN_PARTS[0][0], 710, LARGE_HINT)],
    ids=["medium", "large"],
)
@pytest.mark.parametrize("form", ["int4", "mxfp4"])
def test_tiles_in_parts_of_padded_experts(
    place: Any, form: str, counts: tuple[int, ...], padding: int, hint: int
) -> None:
    p = problem(counts, form, token_padding=padding)
    inputs = exact_inputs(p)
    launch, _ = prepared(place, inputs, max_tokens=hint)
    expected = reference(inputs)
    out = tensor_bits(launch()).reshape(expected.shape)
    holds_token = ~np.isnan(expected[:, 0])
    assert_bits_equal(out[holds_token], bits_of(expected, "bfloat16")[holds_token])


@pytest.mark.parametrize(
    "counts",
    [UNEVEN, IN_PARTS[1][0], LARGE_IN_PARTS[1][0], HELPED[0][0]],
    ids=["large", "in parts", "large in parts", "helped"],
)
def test_launches_that_run_at_the_same_time_have_counters_of_their_own(
    place: Any, counts: tuple[int, ...]
) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    inputs = exact_inputs(problem(counts))
    launch, _ = prepared(place, inputs)
    expected = bits_of(reference(inputs), "bfloat16")
    graphs = [captured(place, launch) for _ in range(2)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for _ in range(20):
        for stream, (graph, out) in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                for _ in range(4):
                    as_torch(out).fill_(7.0)
                    graph.replay()
        eager = [launch() for _ in range(4)]
        torch.cuda.synchronize()
        for out in (*eager, *(out for _, out in graphs)):
            assert_bits_equal(tensor_bits(out), expected)
        for out in eager:
            as_torch(out).fill_(7.0)  # later launches get this memory
        torch.cuda.synchronize()


def test_runs_on_the_current_stream(place: Any) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    inputs = exact_inputs(problem((40, 3)))
    launch, _ = prepared(place, inputs)
    expected = bits_of(reference(inputs), "bfloat16")
    assert_bits_equal(tensor_bits(launch()), expected)

    default = paddle_stream(place)
    other = paddle.device.Stream(device=device_name(place))
    with paddle.device.stream_guard(other):
        current = paddle_stream(place)
        assert current != default
        out = launch()  # takes memory of this stream before the other one is busy
        other.synchronize()
        busy = torch.cuda.Event()
        with torch.cuda.stream(torch.cuda.ExternalStream(default)):
            torch.cuda._sleep(2_000_000_000)  # cycles: about a second
            busy.record()
        del out
        out = launch()
        torch.cuda.ExternalStream(current).synchronize()
        assert not busy.query(), "the operator waited for a stream that is not the current one"
    busy.synchronize()
    assert_bits_equal(tensor_bits(out), expected)
