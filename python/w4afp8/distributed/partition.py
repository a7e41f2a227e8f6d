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
"""Which rank holds which experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from w4afp8._checks import check_int, check_range, wrong_type
from w4afp8.layers.checks import MAX_EXPERTS


@dataclass(frozen=True)
class ExpertPartition:
    """Experts in order, a contiguous range of them on each rank.

    Attributes:
        experts_per_rank: how many experts each rank holds, 0 allowed; one number a rank.

    Raises:
        ValueError: there are no ranks, or not 1 to 1024 experts, or a negative number of them.

    Examples:
        >>> partition = ExpertPartition.even(7, 2)
        >>> partition.experts_per_rank, list(partition.experts_of(1))
        ((4, 3), [4, 5, 6])
    """

    experts_per_rank: tuple[int, ...]

    def __post_init__(self) -> None:
        counts = tuple(check_int("experts_per_rank", count) for count in self.experts_per_rank)
        object.__setattr__(self, "experts_per_rank", counts)
        if any(experts < 0 for experts in counts):
            raise ValueError(
                f"experts_per_rank: expected no negative number, got {self.experts_per_rank}"
            )
        check_range("experts_per_rank: their sum", self.num_experts, 1, MAX_EXPERTS)

    @classmethod
    def even(cls, num_experts: int, world_size: int) -> ExpertPartition:
        """Spreads experts evenly; the first ranks hold one more where that does not divide.

        Args:
            num_experts: 1 to 1024; fewer than ranks leave the last ranks without experts.
            world_size: number of ranks, at least 1.

        Raises:
            ValueError: an argument is out of range.
        """
        num_experts = check_range("num_experts", num_experts, 1, MAX_EXPERTS)
        world_size = check_int("world_size", world_size)
        if world_size < 1:
            raise ValueError(f"world_size: expected at least 1, got {world_size}")
        least, more = divmod(num_experts, world_size)
        return cls(tuple(least + (rank < more) for rank in range(world_size)))

    @classmethod
    def of(cls, experts_per_rank: Sequence[int]) -> ExpertPartition:
        """From any sequence of integers; raises ValueError where it is none."""
        if not isinstance(experts_per_rank, Iterable) or isinstance(experts_per_rank, str):
            raise wrong_type("experts_per_rank", "a sequence of ints", experts_per_rank)
        return cls(tuple(experts_per_rank))

    @property
    def num_experts(self) -> int:
        return sum(self.experts_per_rank)

    @property
    def world_size(self) -> int:
        return len(self.experts_per_rank)

    @property
    def bounds(self) -> tuple[int, ...]:
        """First expert of each rank, then the number of experts: ``world_size + 1`` integers."""
        return (0, *accumulate(self.experts_per_rank))

    def experts_of(self, rank: int) -> range:
        """The experts that a rank holds."""
        return range(self.bounds[rank], self.bounds[rank + 1])
