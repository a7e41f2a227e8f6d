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
"""Rows from every rank to every rank, by what the process group's backend can do.

One operation, `RowExchange.all_to_all`, serves everything: counts, FP8 rows, their scales and the
experts' outputs are all rows of bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor


class ExchangeError(RuntimeError):
    """A rank did not take part in an exchange: it died, failed, or is too late.

    The ranks are out of step after that; the process group cannot be used again.
    """


class RowExchange(ABC):
    """Sends rows between the ranks of a group; all of them must call it, in the same order.

    Attributes:
        rank: of this process in the group.
        world_size: number of ranks.
    """

    def __init__(self, *, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size

    def all_to_all(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Sends rows to every rank and receives rows from every rank.

        Args:
            rows: uint8 ``[sum(send), bytes]``, sorted by the rank that they go to.
            send: rows for each rank.
            receive: rows from each rank: what that rank sends to this one.

        Returns:
            uint8 ``[sum(receive), bytes]``, sorted by the rank that they came from.

        Raises:
            ValueError: the numbers do not fit the rows or the ranks.
            ExchangeError: a rank did not take part.
        """
        self._check(rows, send, receive)
        out = paddle.empty([sum(receive), rows.shape[1]], dtype="uint8", device=rows.place)
        self._run(out, rows, list(send), list(receive))
        return out

    def _check(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> None:
        for name, counts in (("send", send), ("receive", receive)):
            if len(counts) != self.world_size or min(counts) < 0:
                raise ValueError(
                    f"{name}: expected {self.world_size} numbers of rows, got {list(counts)}"
                )
        if rows.dtype != paddle.uint8 or rows.ndim != 2 or rows.shape[0] != sum(send):
            raise ValueError(
                f"rows: expected uint8 [{sum(send)}, bytes], got {rows.dtype} {list(rows.shape)}"
            )
        if send[self.rank] != receive[self.rank]:
            raise ValueError(
                f"receive: expected {send[self.rank]} rows from this rank itself, "
                f"got {receive[self.rank]}"
            )

    @abstractmethod
    def _run(self, out: Tensor, rows: Tensor, send: list[int], receive: list[int]) -> None:
        """Fills `out`."""


class SingleProcess(RowExchange):
    """The exchange of one process with itself."""

    def __init__(self) -> None:
        super().__init__(rank=0, world_size=1)

    def _run(self, out: Tensor, rows: Tensor, send: list[int], receive: list[int]) -> None:
        if rows.shape[0]:
            out[:] = rows


class AllToAllExchange(RowExchange):
    """For backends with an all-to-all of their own (NCCL), on the stream of the kernels."""

    def __init__(self, group: Any) -> None:
        super().__init__(rank=group.rank, world_size=group.nranks)
        self._group = group

    def _run(self, out: Tensor, rows: Tensor, send: list[int], receive: list[int]) -> None:
        with _telling_who_is_missing(self):
            dist.stream.alltoall_single(
                out,
                rows,
                out_split_sizes=receive,
                in_split_sizes=send,
                group=self._group,
                sync_op=True,
                use_calc_stream=True,
            )


class GatherExchange(RowExchange):
    """For backends without an all-to-all (gloo): everyone gathers everything and takes its part.

    Sends and receives would move fewer bytes, but between four ranks of Paddle 3.3.1's gloo they
    timed out, as if messages met only where both ranks had done equally many operations.
    """

    def __init__(self, group: Any) -> None:
        super().__init__(rank=group.rank, world_size=group.nranks)
        self._group = group

    def _run(self, out: Tensor, rows: Tensor, send: list[int], receive: list[int]) -> None:
        # [from, to]: gathered tensors must be of one size, so all ranks must know the largest.
        counts = paddle.to_tensor(send, "int64", place=rows.place)
        sent = np.stack([t.numpy() for t in self._gather(counts)])
        if sent[:, self.rank].tolist() != receive:
            raise ExchangeError(
                f"rank {self.rank}: expected {receive} rows from the ranks, "
                f"got {sent[:, self.rank].tolist()}"
            )
        largest = int(sent.sum(axis=1).max())
        if largest == 0:
            return
        shape = [largest - rows.shape[0], rows.shape[1]]
        padding = paddle.zeros(shape, dtype="uint8", device=rows.place)
        gathered = self._gather(paddle.concat([rows, padding]) if padding.shape[0] else rows)
        end = 0
        for theirs, before, count in zip(
            gathered, sent[:, : self.rank].sum(axis=1).tolist(), receive, strict=True
        ):
            if count:
                out[end : end + count] = theirs[before : before + count]
            end += count

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        gathered: list[Tensor] = []
        with _telling_who_is_missing(self):
            dist.all_gather(gathered, tensor, group=self._group)
        return gathered


@contextmanager
def _telling_who_is_missing(exchange: RowExchange) -> Iterator[None]:
    """Backends only say that a connection was closed, or that time is up."""
    try:
        yield
    except RuntimeError as error:
        raise ExchangeError(
            f"rank {exchange.rank}: expected all of {exchange.world_size} ranks to take part in an "
            f"exchange, but one has ended, has failed or does not come: {error}"
        ) from error


def exchange_of(group: Any = None) -> RowExchange:
    """The exchange for a process group.

    Args:
        group: of `paddle.distributed.new_group`; None for all processes of `init_parallel_env`, or
            for this process alone where that was not called.

    Raises:
        ValueError: this process is not in the group.

    Examples:
        >>> exchange_of().world_size
        1
    """
    if group is None:
        if not dist.is_initialized():
            return SingleProcess()
        group = dist.get_group()
    if group.rank < 0:
        raise ValueError(f"group: expected one that this process is in, got ranks {group.ranks}")
    if group.nranks == 1:
        return SingleProcess()
    return GatherExchange(group) if group.backend.upper() == "GLOO" else AllToAllExchange(group)
