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
"""Exchange of tokens whose numbers are read on the host: exactly the rows there are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from w4afp8 import ops
from w4afp8._checks import dtype_name
from w4afp8.distributed.exchange import RowExchange
from w4afp8.distributed.partition import ExpertPartition
from w4afp8.distributed.row_bytes import as_bytes, from_bytes, take_rows

# FP8 rows sorted by expert, their scales, prefix sums: [rows, hidden] of the layer's type.
Experts = Callable[[Tensor, Tensor, Tensor], Tensor]


def prefill(
    x: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    experts: Experts,
    partition: ExpertPartition,
    exchange: RowExchange,
) -> Tensor:
    """Sends each copy of a token to the rank of its expert, and adds up what comes back.

    One copy to the host, of how many rows there are for each expert: the sizes of the messages.

    Args:
        x: bfloat16 or float16 ``[tokens, hidden]``; the number of tokens may differ between ranks.
        topk_weights: float32 ``[tokens, topk]``.
        topk_ids: int32 ``[tokens, topk]``, experts of all ranks.
        experts: computes this rank's experts.
        partition: which rank holds which experts.
        exchange: sends rows between the ranks.

    Returns:
        ``[tokens, hidden]`` of x's type.
    """
    bounds = list(partition.bounds)
    permuted, scale, sums, row_index = ops.moe_dispatch(x, topk_ids, experts=partition.num_experts)
    received = _exchange_counts(sums, partition, exchange)
    ends = sums.cpu().numpy().astype(np.int64)
    send, receive = np.diff(ends[bounds]).tolist(), received.sum(axis=1).tolist()

    def to_experts(rows: Tensor) -> Tensor:
        return exchange.all_to_all(as_bytes(rows)[: sum(send)], send, receive)

    x_bytes, scale_bytes = to_experts(permuted), to_experts(scale.reshape([-1, 1]))
    y_bytes = exchange.all_to_all(
        _run_experts(experts, x_bytes, scale_bytes, received, as_bytes(x[:0])), receive, send
    )
    return ops.moe_combine(from_bytes(y_bytes, dtype_name(x.dtype)), topk_weights, row_index)


def _exchange_counts(
    sums: Tensor, partition: ExpertPartition, exchange: RowExchange
) -> NDArray[np.int64]:
    """Rows that come here: int64 ``[ranks, experts of this rank]``."""
    own = partition.experts_per_rank[exchange.rank]
    counts = as_bytes((sums[1:] - sums[:-1]).reshape([-1, 1]))
    received = exchange.all_to_all(counts, partition.experts_per_rank, [own] * partition.world_size)
    numbers = from_bytes(received, "int32").cpu().numpy()
    return numbers.reshape(partition.world_size, own).astype(np.int64)


def _run_experts(
    experts: Experts,
    x_bytes: Tensor,
    scale_bytes: Tensor,
    received: NDArray[np.int64],
    no_rows: Tensor,
) -> Tensor:
    """This rank's outputs as bytes, in the order in which the inputs came."""
    if not received.sum():
        return no_rows
    order, back = (paddle.to_tensor(i, place=x_bytes.place) for i in _by_expert(received))
    tokens = np.append(0, np.cumsum(received.sum(axis=0))).astype(np.int32)
    y = experts(
        from_bytes(take_rows(x_bytes, order), "float8_e4m3fn"),
        from_bytes(take_rows(scale_bytes, order), "float32").reshape([-1]),
        paddle.to_tensor(tokens, place=x_bytes.place),
    )
    return take_rows(as_bytes(y), back)


def _by_expert(received: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row indices, int64: from the order (rank, expert) to (expert, rank), and back.

    Among an expert's rows those of lower ranks come first, so the sums do not depend on when a
    message arrives.
    """
    ranks, experts = received.shape
    expert_of_row = np.repeat(np.tile(np.arange(experts), ranks), received.reshape(-1))
    order = np.argsort(expert_of_row, kind="stable")
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return order, back
