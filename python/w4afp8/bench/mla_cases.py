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
"""One case of the MLA up projections: what it reads, how long it must take, how wrong it may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from w4afp8.bench.cases import READ_GBS, TENSOR_TFLOPS

# Of the H100 that the goals were set on; see docs/performance.md.
COPY_GBS = 2810.0  # read and written together
BFLOAT16_TFLOPS = 709.0
WEIGHT_BYTES = 4.25 / 8  # E2M1, and one E8M0 byte for 32 of them

# From so many rows (tokens x heads) on the activations bind, read and written at the copy rate.
MANY_ROWS = 65536
PEER = "torch.bmm"
TOLERANCE = 1.02

Op = Literal["k_up", "v_up"]
HEADS = (16, 32, 64, 128)
TOKENS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
FLOAT16_TOKENS = (1, 128, 2048)
FLOAT8_TOKENS = (1, 128, 512, 2048, 8192)


@dataclasses.dataclass(frozen=True)
class MLACase:
    """``k_up``: ``[tokens, heads, nope] -> [.., lora]``; ``v_up``: ``[.., lora] -> [.., v]``."""

    op: Op
    heads: int
    tokens: int
    nope: int = 128
    lora: int = 512
    v: int = 128
    out_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    act_scale: Literal["none", "token"] = "none"  # token: FP8, a scale for each token and head

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> MLACase:
        """The case of a row of results."""
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls)})

    @property
    def in_features(self) -> int:
        return self.nope if self.op == "k_up" else self.lora

    @property
    def out_features(self) -> int:
        return self.lora if self.op == "k_up" else self.v

    @property
    def is_float8(self) -> bool:
        return self.act_scale == "token"

    def has_many_rows(self) -> bool:
        return self.tokens * self.heads >= MANY_ROWS

    def weight_bytes(self) -> int:
        """Bytes of weights and scales that one call reads."""
        return round(self.heads * self.in_features * self.out_features * WEIGHT_BYTES)

    def moved_bytes(self) -> int:
        """Bytes that one call must move: weights, scales, activations and output, each once."""
        inputs = self.in_features + 4 if self.is_float8 else 2 * self.in_features
        row_bytes = inputs + 2 * self.out_features
        return self.weight_bytes() + self.tokens * self.heads * row_bytes

    def operations(self) -> int:
        return 2 * self.tokens * self.heads * self.in_features * self.out_features

    def floor_us(self) -> float:
        """Bytes over bandwidth or operations over the tensor cores' rate, whichever is more."""
        rate = COPY_GBS if self.has_many_rows() else READ_GBS
        tflops = TENSOR_TFLOPS if self.is_float8 else BFLOAT16_TFLOPS
        return max(self.moved_bytes() / rate / 1e3, self.operations() / tflops / 1e6)

    def error_bound(self) -> float:
        """Relative error (2-norm) that the number formats explain.

        Half a unit of the output is at most 2^-8 (bfloat16) or 2^-11 (float16) of each element,
        hence of the norm. The weights are exact. Sums in float32 are off by some 2^-23 of the
        largest addend a step: with up to 48 steps, random signs and 17 addends, well under 2^-17.
        FP8 activations are each off by up to 2^-4; FP8 tensor cores by some 2^-13 of the largest
        addend a step: with up to 24 steps and 33 addends, under 2^-8.
        """
        half = 2.0**-8 if self.out_dtype == "bfloat16" else 2.0**-11
        return half + (2.0**-4 + 2.0**-8 if self.is_float8 else 2.0**-17)

    def row_values(self) -> dict[str, Any]:
        """The case's keys of a row of results."""
        return {
            **dataclasses.asdict(self),
            "format": "mxfp4",
            "group_size": 32,
            "floor_us": round(self.floor_us(), 3),
            "error_bound": self.error_bound(),
        }


@dataclasses.dataclass(frozen=True)
class MLAVerdict:
    """``goal_us`` as this run's card and peer have it, and whether the time is within tolerance."""

    goal_us: float
    met: bool


def mla_verdict(row: Mapping[str, Any]) -> MLAVerdict | None:
    """Holds a row of ``mla.jsonl`` against its goal; None without a peer, which is a part of it.

    None too for FP8 activations, which have no goal.

    The goal: ``max(floor + 2.5 us, 1.12 floor)`` and no slower than torch.bmm; with many rows
    ``1.05 floor`` and at most ``1.02`` times torch.bmm. The floor is scaled by the bandwidth that
    was measured in the run.
    """
    case = MLACase.from_row(row)
    if row["peer_us"] is None or case.is_float8:
        return None
    floor = case.floor_us() * READ_GBS / row["hbm_gbs"]
    goal = 1.05 * floor if case.has_many_rows() else max(floor + 2.5, 1.12 * floor)
    most = TOLERANCE * row["peer_us"] if case.has_many_rows() else row["peer_us"]
    return MLAVerdict(goal, bool(row["us"] <= TOLERANCE * goal and row["us"] <= most))


def mla_cases() -> list[tuple[MLACase, ...]]:
    """Cases that are timed in turns: BF16, and others beside it for some numbers of tokens."""
    found: list[tuple[MLACase, ...]] = []
    for heads in HEADS:
        for op in ("k_up", "v_up"):
            for tokens in TOKENS:
                case = MLACase(op, heads, tokens)
                half = dataclasses.replace(case, out_dtype="float16")
                float8 = dataclasses.replace(case, act_scale="token")
                others = (half,) * (tokens in FLOAT16_TOKENS) + (float8,) * (
                    tokens in FLOAT8_TOKENS
                )
                found.append((case, *others))
    return found
