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
"""Expert parallelism without other processes: what is refused, sharding, one rank alone."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
import pytest
from expert_parallel_cases import CASES, MAX_DECODE_TOKENS, PHASES, SIZE, all_tokens, whole_layer
from moe_reference import reference, route_tokens
from test_moe_ffn import CASES as LAYERS
from test_moe_ffn import build, make_logits, values

from w4afp8.distributed import (
    ExchangeError,
    ExpertPartition,
    RowExchange,
    W4AFP8ExpertParallelMoEFFN,
    exchange_of,
)
from w4afp8.distributed.exchange import AllToAllExchange
from w4afp8.testing.compare import Accumulator
from w4afp8.testing.tensors import float_tensor, int_tensor, tensor_bits


class NoExchange(RowExchange):
    """A rank whose messages get nowhere."""

    def _run(self, out: Any, rows: Any, send: list[int], receive: list[int]) -> None:
        raise AssertionError("nothing should be sent")


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("experts", "ranks", "expected"),
    [(8, 2, (4, 4)), (7, 2, (4, 3)), (3, 4, (1, 1, 1, 0)), (10, 4, (3, 3, 2, 2)), (1, 1, (1,))],
)
def test_even_partition(experts: int, ranks: int, expected: tuple[int, ...]) -> None:
    partition = ExpertPartition.even(experts, ranks)
    assert partition.experts_per_rank == expected
    held = [expert for rank in range(ranks) for expert in partition.experts_of(rank)]
    assert held == list(range(experts))


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExpertPartition.even(0, 2), "num_experts: expected 1 to 1024, got 0"),
        (lambda: ExpertPartition.even(8, 0), "world_size: expected at least 1, got 0"),
        (lambda: ExpertPartition.of([4, -1]), "experts_per_rank: expected no negative number"),
        (lambda: ExpertPartition.of([]), "experts_per_rank: their sum: expected 1 to 1024, got 0"),
    ],
)
def test_partitions_that_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("rows", "dtype", "send", "receive", "message"),
    [
        (3, "uint8", [1, 2, 0], [1, 1], "send: expected 2 numbers of rows"),
        (3, "uint8", [4, -1], [4, 1], "send: expected 2 numbers of rows"),
        (3, "uint8", [1, 2], [1], "receive: expected 2 numbers of rows"),
        (4, "uint8", [1, 2], [1, 1], r"rows: expected uint8 \[3, bytes\]"),
        (3, "int32", [1, 2], [1, 1], r"rows: expected uint8 \[3, bytes\], got paddle.int32"),
        (3, "uint8", [1, 2], [2, 1], "receive: expected 1 rows from this rank itself, got 2"),
    ],
)
def test_rows_that_are_refused(
    place: Any, rows: int, dtype: str, send: list[int], receive: list[int], message: str
) -> None:
    exchange = NoExchange(rank=0, world_size=2)
    with pytest.raises(ValueError, match=message):
        exchange.all_to_all(int_tensor(np.zeros((rows, 4)), dtype, place), send, receive)


@pytest.mark.cpu_only
def test_nccl_has_its_own_all_to_all() -> None:
    group = SimpleNamespace(rank=1, nranks=2, ranks=[0, 1], backend="NCCL")
    assert isinstance(exchange_of(group), AllToAllExchange)


def test_nccl_is_called_as_paddle_wants_it(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no second GPU: the arguments are held against Paddle's own signature."""
    group = SimpleNamespace(rank=0, nranks=2, ranks=[0, 1], backend="NCCL")
    signature, calls = inspect.signature(dist.stream.alltoall_single), []
    monkeypatch.setattr(
        dist.stream, "alltoall_single", lambda *a, **k: calls.append(signature.bind(*a, **k))
    )
    rows = int_tensor(np.zeros((3, 4)), "uint8", place)
    out = exchange_of(group).all_to_all(rows, [1, 2], [1, 4])
    (call,) = calls
    assert (list(out.shape), out.place) == ([5, 4], rows.place)
    assert call.arguments["out_tensor"] is out
    assert call.arguments["in_tensor"] is rows
    assert call.arguments["in_split_sizes"] == [1, 2]
    assert call.arguments["out_split_sizes"] == [1, 4]
    assert call.arguments["group"] is group


@pytest.mark.cpu_only
def test_an_error_of_nccl_is_told_as_a_missing_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("connection closed")

    monkeypatch.setattr(dist.stream, "alltoall_single", fail)
    group = SimpleNamespace(rank=1, nranks=2, ranks=[0, 1], backend="NCCL")
    with pytest.raises(ExchangeError, match=r"rank 1: expected all of 2 ranks.*connection closed"):
        exchange_of(group).all_to_all(paddle.zeros([3, 4], dtype="uint8"), [1, 2], [1, 2])


@pytest.mark.cpu_only
def test_a_group_of_others_is_refused() -> None:
    with pytest.raises(ValueError, match="group: expected one that this process is in"):
        exchange_of(SimpleNamespace(rank=-1, nranks=2, ranks=[2, 3], backend="NCCL"))


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("experts_per_rank", "message"),
    [
        ([4, 4], "experts_per_rank: ranks: expected 1, got 2"),
        ([7], "experts_per_rank: their sum: expected 8, got 7"),
    ],
)
def test_splits_that_are_refused(experts_per_rank: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        W4AFP8ExpertParallelMoEFFN.from_layer(
            whole_layer(CASES["even"]), experts_per_rank=experts_per_rank
        )


def test_nothing_is_sent_where_the_tokens_are_refused(place: Any) -> None:
    case = CASES["even"]
    whole = whole_layer(case, place)
    layer = W4AFP8ExpertParallelMoEFFN.from_layer(whole, max_decode_tokens=MAX_DECODE_TOKENS)
    layer.exchange = NoExchange(rank=0, world_size=1)
    x, logits = all_tokens(case, place)
    for arguments, message in (
        ((x.astype("float16"), logits), "x: expected bfloat16"),
        ((x[:, :32], logits), "x: expected shape"),
        ((x, logits[1:]), "logits: expected shape"),
        ((x, None), "logits: expected a tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(*arguments)
    with pytest.raises(ValueError, match="phase: expected one of prefill, decode, got 'both'"):
        layer(x, logits, phase="both")
    with pytest.raises(ValueError, match="x: expected up to 12 tokens to decode, got 14"):
        layer(x, logits, phase="decode")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", CASES)
def test_one_rank_is_the_whole_layer(place: Any, name: str, phase: str) -> None:
    case = CASES[name]
    whole = whole_layer(case, place)
    layer = W4AFP8ExpertParallelMoEFFN.from_layer(whole, max_decode_tokens=24)
    assert {str(tensor.place) for tensor in layer.buffers()} == {str(place)}
    x, logits = all_tokens(case, place)
    out = layer(x, logits, phase=phase)
    assert out.place == x.place
    np.testing.assert_array_equal(tensor_bits(out), tensor_bits(whole(x, logits)))


@pytest.mark.cpu_only
@pytest.mark.parametrize("accumulation", ["default", "half", "float32"])
def test_sums_are_those_of_the_whole_layer(accumulation: Any) -> None:
    whole = whole_layer(replace(CASES["even"], options={"accumulation": accumulation}))
    layer = W4AFP8ExpertParallelMoEFFN.from_layer(whole)
    for projection in (layer.up_gate_proj, layer.down_proj):
        assert projection.accumulation == accumulation


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ["plain", "int4 group 32", "mxfp4 float16 gelu", "padded sizes"])
def test_random_weights_match_float64(
    place: Any, accumulator: Accumulator, name: str, phase: str
) -> None:
    """One rank, any weights: the sums are rounded here, so the bound is test_moe_ffn's."""
    case, rng = LAYERS[name], np.random.default_rng(7)
    whole, weights, router = build(case, rng)
    whole.to(device=place)
    layer = W4AFP8ExpertParallelMoEFFN.from_layer(whole)
    x = float_tensor(rng.standard_normal((case.tokens, case.hidden)), case.dtype, place)
    logits = make_logits(case, rng)
    topk_weights, topk_ids = route_tokens(
        logits.astype(np.float64), case.routing, router["correction_bias"]
    )
    expected = reference(
        values(x),
        weights,
        topk_weights,
        topk_ids,
        activation=case.activation,
        dtype=case.dtype,
        accumulator=accumulator,
    )
    out = layer(x, float_tensor(logits, "float32", place), phase=phase)
    expected.assert_matches(values(out))


@pytest.mark.parametrize("phase", PHASES)
def test_leading_dimensions_are_kept(place: Any, phase: str) -> None:
    case = CASES["even"]
    layer = W4AFP8ExpertParallelMoEFFN.from_layer(whole_layer(case, place), max_decode_tokens=14)
    x, logits = all_tokens(case, place)
    out = layer(x.reshape([2, 7, SIZE]), logits, phase=phase)
    assert list(out.shape) == [2, 7, SIZE]
    np.testing.assert_array_equal(
        tensor_bits(out).reshape(-1, SIZE), tensor_bits(layer(x, logits, phase=phase))
    )


def test_state_goes_from_one_layer_to_another(place: Any) -> None:
    case = CASES["mxfp4"]
    layer = W4AFP8ExpertParallelMoEFFN.from_layer(whole_layer(case, place))
    other = W4AFP8ExpertParallelMoEFFN.from_layer(whole_layer(case, place))
    for buffer in other.up_gate_proj.buffers():
        if buffer.dtype == paddle.uint8:
            buffer.zero_()
    tokens = all_tokens(case, place)
    expected = tensor_bits(layer(*tokens))
    assert (tensor_bits(other(*tokens)) != expected).any()
    other.set_state_dict(layer.state_dict())
    np.testing.assert_array_equal(tensor_bits(other(*tokens)), expected)
