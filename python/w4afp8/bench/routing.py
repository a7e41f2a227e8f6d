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
"""How tokens spread over experts: the even split, and the skews that real routers show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BUSY_PART = 8  # of "nearly_empty", one expert in this many has more than one token


def even_split(total: int, experts: int) -> tuple[int, ...]:
    """``total`` tokens over ``experts`` experts, the first ones getting what is left over."""
    each, left = divmod(total, experts)
    return tuple(each + (i < left) for i in range(experts))


def zipf(total: int, experts: int) -> tuple[int, ...]:
    """One token each, and the rest in proportion to 1 / rank."""
    weights = 1 / np.arange(1, experts + 1)
    shares = np.floor((total - experts) * weights / weights.sum()).astype(int)
    shares[0] += total - experts - shares.sum()
    return tuple(int(share) + 1 for share in shares)


def overloaded(total: int, experts: int) -> tuple[int, ...]:
    """Half of the tokens on one expert, the others share evenly."""
    first = total - total // 2
    return (first, *even_split(total - first, experts - 1))


def nearly_empty(total: int, experts: int) -> tuple[int, ...]:
    """One expert in eight shares all but one token each of the others."""
    busy = max(1, experts // BUSY_PART)
    return (*even_split(total - (experts - busy), busy), *(1,) * (experts - busy))


def half_idle(total: int, experts: int) -> tuple[int, ...]:
    """Half of the experts have no token; the others' counts are Zipf-like."""
    busy = experts - experts // 2
    return (*zipf(total, busy), *(0,) * (experts - busy))


SKEWS: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "zipf": zipf,
    "overloaded": overloaded,
    "nearly_empty": nearly_empty,
    "half_idle": half_idle,
}


def skewed_counts(routing: str, total: int, experts: int, *, seed: int = 0) -> tuple[int, ...]:
    """Tokens of each expert under a skewed routing, in an order that has nothing to do with them.

    Args:
        routing: a key of ``SKEWS``.
        total: tokens of all experts together, at least twice the number of experts.
        experts: how many there are, at least 2.
        seed: of the order.

    Returns:
        ``experts`` numbers of tokens, together ``total``.

    Raises:
        ValueError: There is no such routing, or too few tokens for it.
    """
    if routing not in SKEWS:
        raise ValueError(f"routing: expected one of {tuple(SKEWS)}, got {routing!r}")
    if total < 2 * experts or experts < 2:
        raise ValueError(f"total: expected 2 tokens an expert, of 2 or more, got {total}/{experts}")
    counts = SKEWS[routing](total, experts)
    order = np.random.default_rng(seed).permutation(experts)
    return tuple(counts[i] for i in order)


def even_among_busy(counts: tuple[int, ...]) -> tuple[int, ...]:
    """The same total, split evenly over the experts that have tokens, the others idle."""
    busy = [i for i, count in enumerate(counts) if count > 0]
    result = [0] * len(counts)
    for i, count in zip(busy, even_split(sum(counts), len(busy)), strict=True):
        result[i] = count
    return tuple(result)
