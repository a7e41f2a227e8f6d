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
"""Which cases each benchmark of the grouped GEMM runs. Lists, in the order of their importance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from w4afp8.bench.cases import GemmCase, Mode
from w4afp8.bench.goals import INT4_GOALS, MAIN_SHAPE, Shape
from w4afp8.bench.routing import SKEWS, even_among_busy, skewed_counts

SetName = Literal["goals", "models", "skew"]
SETS: tuple[SetName, ...] = ("goals", "models", "skew")

INT4 = GemmCase(0, 0, 0, 0)
INT4_GROUPS = GemmCase(0, 0, 0, 0, group_size=128)
MXFP4 = GemmCase(0, 0, 0, 0, weight_format="mxfp4", group_size=32)

FLOAT16_TOKENS = (1, 64, 128, 512, 2048)  # of the main shape
MODEL_TOKENS = (1, 64, 1024)
SKEW_TOKENS = (16, 128, 1024)  # mean over all experts
# Eight experts show the tail of few large tiles, 128 small ones the choice of tiles per expert.
SKEW_SHAPES: tuple[Shape, ...] = ((128, 1536, 2048), MAIN_SHAPE, (32, 4096, 7168))


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """One GEMM of one rank. ``split``: tensor (TP) or expert (EP) parallel."""

    model: str
    split: str
    experts: int
    out_features: int
    in_features: int

    @property
    def label(self) -> str:
        return f"{self.model} {self.split}"


def _rank_shapes(
    model: str, split: str, experts: int, hidden: int, intermediate: int
) -> tuple[ModelShape, ModelShape]:
    """Gate and up in one matrix, then down."""
    return (
        ModelShape(model, f"{split} up_gate", experts, 2 * intermediate, hidden),
        ModelShape(model, f"{split} down", experts, hidden, intermediate),
    )


# The two ends of what a rank sees: whole experts (EP), or all experts cut thin along intermediate
# (TP), where in_features of the down projection is shortest. A cut keeps whole groups of 32, so
# 2880 over 8 ranks is 384 on the larger ones. What lies between has the same tiles, fewer or more.
MODEL_SHAPES = (
    *_rank_shapes("Qwen3-30B-A3B", "1 GPU", 128, 2048, 768),
    *_rank_shapes("Qwen3-30B-A3B", "TP4", 128, 2048, 192),
    *_rank_shapes("gpt-oss-120b", "EP8", 16, 2880, 2880),
    *_rank_shapes("gpt-oss-120b", "TP8", 128, 2880, 384),
    *_rank_shapes("DeepSeek-V3", "EP8", 32, 7168, 2048),
    *_rank_shapes("DeepSeek-V3", "TP8", 256, 7168, 256),
    *_rank_shapes("GLM-4.5", "EP8", 20, 5120, 1536),
    *_rank_shapes("GLM-4.5", "TP8", 160, 5120, 192),
)


@dataclasses.dataclass(frozen=True)
class Contest:
    """Cases of one shape that are timed in turns, in one go.

    ``reference``: what the others are compared with instead of another library, if anything.
    """

    cases: tuple[GemmCase, ...]
    reference: GemmCase | None = None

    @property
    def shape(self) -> Shape:
        first = self.cases[0]
        return first.experts, first.out_features, first.in_features

    @property
    def tokens_per_expert(self) -> int:
        return self.cases[0].tokens_per_expert


def contests(name: SetName) -> list[Contest]:
    """The contests of a set, those of one shape together."""
    return {"goals": goal_contests, "models": model_contests, "skew": skew_contests}[name]()


def goal_contests() -> list[Contest]:
    """Every row that has a goal: prefix and padded mode, and FP16 where asked for."""
    found = []
    for shape, goals in INT4_GOALS.items():
        formats = (INT4, INT4_GROUPS, MXFP4) if shape == MAIN_SHAPE else (INT4, MXFP4)
        for tokens in goals:
            cases = [_at(form, shape, tokens, mode=mode) for mode in _modes() for form in formats]
            if shape == MAIN_SHAPE and tokens in FLOAT16_TOKENS:
                cases.append(dataclasses.replace(cases[0], out_dtype="float16"))
            found.append(Contest(tuple(cases)))
    return found


def model_contests() -> list[Contest]:
    return [
        Contest(
            tuple(
                dataclasses.replace(
                    _at(form, (m.experts, m.out_features, m.in_features), tokens), model=m.label
                )
                for form in (INT4, MXFP4)
            )
        )
        for m in MODEL_SHAPES
        for tokens in MODEL_TOKENS
    ]


def skew_contests() -> list[Contest]:
    """Each skew against an even split of the same total over as many experts with tokens."""
    return [
        contest
        for shape in SKEW_SHAPES
        for form in ((INT4, MXFP4) if shape == SKEW_SHAPES[0] else (INT4,))
        for tokens in SKEW_TOKENS
        for contest in _skews_of(form, shape, tokens)
    ]


def _skews_of(form: GemmCase, shape: Shape, tokens: int) -> Iterator[Contest]:
    """Contests of skews that share a reference: those that leave equally many experts idle."""
    experts = shape[0]
    by_busy: dict[int, list[GemmCase]] = {}
    for routing in SKEWS:
        counts = skewed_counts(routing, experts * tokens, experts)
        busy = sum(count > 0 for count in counts)
        case = _at(form, shape, experts * tokens // busy)
        by_busy.setdefault(busy, []).append(
            dataclasses.replace(case, routing=routing, counts=counts)
        )
    for cases in by_busy.values():
        counts = even_among_busy(cases[0].token_counts)
        reference = dataclasses.replace(cases[0], routing="even", counts=counts)
        yield Contest(tuple(cases), reference)


def _modes() -> Sequence[Mode]:
    return ("prefix", "padded")


def _at(form: GemmCase, shape: Shape, tokens: int, *, mode: Mode = "prefix") -> GemmCase:
    experts, out_features, in_features = shape
    return dataclasses.replace(
        form,
        experts=experts,
        out_features=out_features,
        in_features=in_features,
        tokens_per_expert=tokens,
        mode=mode,
    )
