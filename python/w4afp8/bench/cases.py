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
"""One case of the grouped GEMM: what it reads, how long it must take, how wrong it may be."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from w4afp8.bench.routing import even_split
from w4afp8.quant.weights import WeightFormat
from w4afp8.testing.compare import summation

# Ceilings of the H100 that the floors and goals are counted with; see docs/performance.md.
READ_GBS = 3177.0
TENSOR_TFLOPS = 1500.0

# Mean of 4^floor(log2 |v|) relative to that of v^2; see error_bound.
_BINADE = 3 / (8 * math.log(2))

SMALLEST_PADDING = 2048  # rows an expert has in padded mode, at least

Mode = Literal["prefix", "padded"]


@dataclasses.dataclass(frozen=True)
class GemmCase:
    """A grouped GEMM without activation scale and bias.

    MXFP4's group scales spread evenly over ``scale_binades`` below the largest of their channel. Of
    the weights of the demonstration, 99.98% of the groups lie within 6, most within 1.

    ``counts``, tokens of each expert, is given where the routing is not even;
    ``tokens_per_expert`` is then their mean over the experts that have any. ``is_gated``: an
    activation halves the outputs before they are written.
    """

    experts: int
    out_features: int
    in_features: int
    tokens_per_expert: int
    weight_format: WeightFormat = "int4"
    group_size: int = -1
    out_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    scale_binades: int = 6
    mode: Mode = "prefix"
    routing: str = "even"
    counts: tuple[int, ...] | None = None
    model: str | None = None
    is_gated: bool = False

    def __post_init__(self) -> None:
        if self.counts is not None and len(self.counts) != self.experts:
            raise ValueError(f"counts: expected {self.experts} of them, got {len(self.counts)}")

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> GemmCase:
        """The case of a row of results, but for the counts of a routing that is not even."""
        return cls(
            **{key: row[key] for key in ("experts", "out_features", "in_features", "mode")},
            **{key: row[key] for key in ("tokens_per_expert", "group_size", "out_dtype")},
            weight_format=row["format"],
            routing=row["routing"],
            model=row["model"],
        )

    @property
    def token_counts(self) -> tuple[int, ...]:
        """Tokens of each expert."""
        return self.counts or even_split(self.experts * self.tokens_per_expert, self.experts)

    @property
    def tokens(self) -> int:
        return sum(self.token_counts)

    @property
    def token_padding(self) -> int:
        """Rows of every expert in padded mode: 2048 or the next power of two; 0 in prefix mode."""
        if self.mode == "prefix":
            return 0
        return max(SMALLEST_PADDING, 1 << (max(self.token_counts) - 1).bit_length())

    @property
    def max_tokens(self) -> int:
        """The hint: known of even routing alone."""
        return self.tokens_per_expert if self.counts is None else -1

    def has_groups(self) -> bool:
        return self.group_size > 0

    def weight_bytes(self) -> int:
        """Bytes of weights and scales that one call reads: those of experts that have tokens."""
        experts = sum(count > 0 for count in self.token_counts)
        weights = experts * self.out_features * self.in_features
        scales = 4 * experts * self.out_features
        if self.weight_format == "mxfp4":
            return weights // 2 + weights // 32 + scales
        groups = weights // self.group_size if self.has_groups() else 0
        return weights // 2 + scales + 2 * groups

    def moved_bytes(self) -> int:
        """Bytes that one call must move: weights, scales, activations and output, each once."""
        out_bytes = self.out_features * (1 if self.is_gated else 2)
        return self.weight_bytes() + self.tokens * (self.in_features + out_bytes)

    def operations(self) -> int:
        return 2 * self.tokens * self.out_features * self.in_features

    def memory_us(self) -> float:
        return self.moved_bytes() / READ_GBS / 1e3

    def tensor_us(self) -> float:
        return self.operations() / TENSOR_TFLOPS / 1e6

    def memory_binds(self) -> bool:
        return self.memory_us() >= self.tensor_us()

    def floor_us(self) -> float:
        """Bytes over bandwidth or operations over the tensor cores' rate, whichever is more."""
        return max(self.memory_us(), self.tensor_us())

    def error_bound(self) -> float:
        """Relative error that the number formats explain; see :func:`error_bound`."""
        how = summation(self.weight_format, self.group_size, self.out_dtype)
        if how == "halves":
            return halves_error_bound(self.out_dtype, self.in_features)
        return error_bound(self.out_dtype, how, self.in_features)

    def row_values(self) -> dict[str, Any]:
        """The case's keys of a row of results."""
        keys = ("experts", "out_features", "in_features", "tokens_per_expert", "routing", "mode")
        return {
            **{key: getattr(self, key) for key in (*keys, "group_size", "out_dtype", "model")},
            "format": self.weight_format,
            "act_scale": "none",
            "floor_us": round(self.floor_us(), 3),
            "error_bound": self.error_bound(),
        }


def error_bound(out_dtype: str, promoted_every: int, in_features: int = 0) -> float:
    """Relative error (2-norm) of a product of FP8 numbers of both signs, added up in float32.

    A number v is rounded, or cut, in units of a fraction of 2^floor(log2 |v|). Where mantissas are
    spread evenly on a log scale, the mean of 4^floor(log2 |v|) is 3 / (8 ln 2) = 0.541 of that of
    v^2 (for normal v within 0.5%): `_BINADE`.

    Output: uniform within half a unit, 2^-8 (bfloat16) or 2^-11 (float16) of the binade, has the
    variance half^2 / 3.

    Accumulation (w4afp8.testing.compare has the model): each step of 32 products is cut to units L
    of 2^-13 of the binade of the largest number M in it. A cut loses up to L towards zero, in the
    mean square L^2 / 3, and products have either sign: 32 L^2 / 3 a step. The sum is a random walk:
    after j of K steps its mean square is j / K of the last, and M^2 exceeds that by one step's at
    most. The sum of (j + 1) / K over K steps is (K + 3) / 2. K counts the steps up to a promotion
    to float32. Where sums are carried instead, an eighth of all before stays, 1 / 64 of the mean
    square of the i intervals so far: on average over n intervals (n - 1) / 128 more a step.

    Executed on normal data of many bits, the model loses 0.94 of this; on int4 times FP8, whose
    products have so few bits that many are cut without loss, 0.35 in 8192 in_features.

    Args:
        out_dtype: "bfloat16" or "float16".
        promoted_every: in_features after which the tensor cores' sum goes to float32.
        in_features: of the product, where its sums are carried (above 128): they may be fewer.
    """
    half = 2.0**-8 if out_dtype == "bfloat16" else 2.0**-11
    steps = (min(promoted_every, in_features) if in_features else promoted_every) / 32
    intervals = math.ceil(in_features / promoted_every) if promoted_every > 128 else 1
    squares = (steps + 3) / 2 + steps * max(intervals - 1, 0) / 128
    return math.sqrt(_BINADE * (half**2 / 3 + 32 / 3 * 2.0**-26 * squares))


def halves_error_bound(out_dtype: str, in_features: int) -> float:
    """The same where sums of 128 products are added up in half precision.

    Each rounding to halves has a variance of (2^-11)^2 / 3 of its number's binade, at most of its
    square. Of n k blocks' random walk the sum after block j has j / n of the last mean square:
    (n + 1) / 2 together. Inside a k block its four steps are rounded, (1 + 2 + 3 + 4) / 4 of its
    mean square, which is 1 / n of the whole: 2.5 together; and so is each block's scale, 1. The
    cuts are those of 4 steps.
    """
    blocks = math.ceil(in_features / 128)
    roundings = (blocks + 1) / 2 + 2.5 + 1
    return math.sqrt(error_bound(out_dtype, 128) ** 2 + 2.0**-22 / 3 * roundings)
