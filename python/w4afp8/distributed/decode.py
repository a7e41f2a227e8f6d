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
"""Exchange of few tokens in buffers of a fixed size: nothing is read on the host.

Every rank keeps ``P`` rows for each expert, as many as the tokens it may have. All shapes follow
from the arguments, so the messages have the same size in every step.
"""

from __future__ import annotations

from collections.abc import Callable

import paddle
from paddle import Tensor

from w4afp8 import ops
from w4afp8._checks import dtype_name
from w4afp8.distributed.exchange import RowExchange
from w4afp8.distributed.partition import ExpertPartition
from w4afp8.distributed.row_bytes import as_bytes, from_bytes, take_rows

# FP8 [experts, rows, hidden], scales [experts, rows], counts [experts]: [experts, rows, hidden].
PaddedExperts = Callable[[Tensor, Tensor, Tensor], Tensor]


def decode(
    x: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    experts: PaddedExperts,
    partition: ExpertPartition,
    exchange: RowExchange,
    max_tokens: int,
) -> Tensor:
    """As `w4afp8.distributed.prefill.prefill`, in buffers of a fixed size.

    Args:
        x: bfloat16 or float16 ``[tokens, hidden]``, up to `max_tokens` of them.
        topk_weights: float32 ``[tokens, topk]``.
        topk_ids: int32 ``[tokens, topk]``, experts of all ranks, none twice for a token.
        experts: computes this rank's experts.
        partition: which rank holds which experts.
        exchange: sends rows between the ranks.
        max_tokens: of each rank, the same on all of them.

    Returns:
        ``[tokens, hidden]`` of x's type.

    Raises:
        ValueError: there are more tokens than `max_tokens`.
    """
    if x.shape[0] > max_tokens:
        raise ValueError(f"x: expected up to {max_tokens} tokens to decode, got {x.shape[0]}")
    own, ranks = partition.experts_per_rank[exchange.rank], partition.world_size
    to_owners = list(partition.experts_per_rank), [own] * ranks
    rows_to_owners = [[n * max_tokens for n in sizes] for sizes in to_owners]
    permuted, scale, counts, row_index = ops.moe_dispatch(
        x, topk_ids, experts=partition.num_experts, token_padding=max_tokens
    )

    def to_experts(rows: Tensor) -> Tensor:
        return exchange.all_to_all(as_bytes(rows), *rows_to_owners)

    sent = as_bytes(counts.reshape([-1, 1]))
    received = from_bytes(exchange.all_to_all(sent, *to_owners), "int32").reshape([ranks, own])
    x_bytes = to_experts(permuted.view("uint8").reshape([-1, x.shape[1]]))
    scale_bytes = to_experts(scale.reshape([-1, 1]))
    y_bytes = _run_experts(experts, x_bytes, scale_bytes, received, as_bytes(x[:0]), max_tokens)
    returned = exchange.all_to_all(y_bytes, *reversed(rows_to_owners))
    return ops.moe_combine(from_bytes(returned, dtype_name(x.dtype)), topk_weights, row_index)


def _run_experts(
    experts: PaddedExperts,
    x_bytes: Tensor,
    scale_bytes: Tensor,
    counts: Tensor,
    no_rows: Tensor,
    max_tokens: int,
) -> Tensor:
    """This rank's outputs as bytes, in the order in which the inputs came."""
    ranks, own = counts.shape
    if own == 0:
        return no_rows
    pull, push = _close_gaps(counts, max_tokens)
    rows = [own, ranks * max_tokens]
    y = experts(
        from_bytes(take_rows(x_bytes, pull), "float8_e4m3fn").reshape([*rows, -1]),
        from_bytes(take_rows(scale_bytes, pull), "float32").reshape(rows),
        counts.sum(axis=0).astype("int32"),
    )
    return take_rows(as_bytes(y.reshape([rows[0] * rows[1], -1])), push)


def _close_gaps(counts: Tensor, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Indices that bring an expert's rows of all ranks together, and back, both int64.

    The first counts ``[rank, expert, i]`` for each slot ``(expert, j)``, the second the reverse.
    Rows of lower ranks come first.

    Args:
        counts: int32 ``[ranks, experts]``.
        max_tokens: rows of each rank for each expert.
    """
    ranks, experts = counts.shape
    rows = ranks * max_tokens
    counts = counts.astype("int64")
    ends = counts.cumsum(axis=0)
    begins = ends - counts

    def numbers(end: int) -> Tensor:
        return paddle.arange(end, dtype="int64", device=counts.place)

    expert, slot = numbers(experts), numbers(rows)
    # [experts, rows]: the ranks whose rows all lie before a slot.
    rank = (ends.unsqueeze(2) <= slot).astype("int64").sum(axis=0).clip(0, ranks - 1)
    begin = paddle.take_along_axis(begins.transpose([1, 0]), rank, axis=1)
    i = (slot - begin).clip(0, max_tokens - 1)
    pull = (rank * experts + expert.unsqueeze(1)) * max_tokens + i
    # [ranks, experts, max_tokens]
    j = (begins.unsqueeze(2) + numbers(max_tokens)).clip(0, rows - 1)
    push = expert.unsqueeze(1) * rows + j
    return pull.reshape([-1]), push.reshape([-1])
