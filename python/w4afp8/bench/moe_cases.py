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
"""Cases of the whole MoE layer: models, tokens, what each step must move, how wrong it may be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from w4afp8.bench.cases import GemmCase, error_bound
from w4afp8.layers.experts import Activation, fuses_activation
from w4afp8.layers.router import Scoring
from w4afp8.quant.weights import WeightFormat

COPY_GBS = 2810.0  # bytes read plus written of a copy, on the H100 that the goals were set on
TOKENS = (1, 8, 64, 512, 2048, 8192)  # of one call of the layer
TOKENS_PER_EXPERT = 64  # besides: as many tokens as give each expert so many on average
FORMATS: tuple[WeightFormat, ...] = ("int4", "mxfp4")
POPULARITY_EXPONENT = 0.5  # a model of the skew of real routers, not a trace of one
ROUTING = f"zipf {POPULARITY_EXPONENT}"

# The launches of the layer, in their order.
KERNELS = ("route", "dispatch", "gemm_1", "activation", "gemm_2", "combine")
GEMMS = ("gemm_1", "gemm_2")

# Of the squared relative error that SwiGLU is given in gate g and up u, both normal of deviation s:
# 1 + s^2 E[silu'(g)^2] / E[silu(g)^2], whose largest value over s is 2.068, at 1.2 (by sampling).
# gpt-oss's gate is silu(1.702 g) / 1.702, and its up + 1 only lowers it.
SWIGLU_GAIN = 2.07
# Relative error of rounding to FP8: half a unit is 2^-4 of the binade; see cases.error_bound.
FP8_ERROR = math.sqrt(3 / (8 * math.log(2)) / 3) * 2.0**-4


@dataclasses.dataclass(frozen=True)
class MoEModel:
    """One rank's share of a model's MoE layer.

    The router chooses ``topk`` of ``router_experts`` for each token; the rank holds the first
    ``experts`` of them, and what goes to others is dropped.
    """

    name: str
    split: str
    router_experts: int
    experts: int
    topk: int
    hidden: int
    intermediate: int
    activation: Activation = "swiglu"
    scoring: Scoring = "softmax"
    n_group: int = 1
    topk_group: int = 1
    has_biases: bool = False  # of both projections

    @property
    def label(self) -> str:
        return f"{self.name} {self.split}"

    @property
    def ranks(self) -> int:
        return self.router_experts // self.experts

    @property
    def has_correction_bias(self) -> bool:
        """Of the models here those whose scores are sigmoids have one."""
        return self.scoring == "sigmoid"

    @property
    def hadamard_block_size(self) -> int:
        """Of the blocks that the second projection's input could be rotated in: at most 512."""
        return math.gcd(self.intermediate, 512)

    def tokens(self) -> tuple[int, ...]:
        """The numbers of tokens to measure, ascending."""
        even = TOKENS_PER_EXPERT * self.router_experts // self.topk
        return tuple(sorted({*TOKENS, even}))

    def expected_slots(self, tokens: int) -> int:
        """Copies of tokens that this rank gets, as its share; at least one."""
        return max(1, round(tokens * self.topk / self.ranks))


MODELS = (
    MoEModel(
        *("DeepSeek-V3", "EP8", 256, 32, 8, 7168, 2048),
        scoring="sigmoid",
        n_group=8,
        topk_group=4,
    ),
    MoEModel("Qwen3-30B-A3B", "1 GPU", 128, 128, 8, 2048, 768),
    MoEModel(
        *("gpt-oss-120b", "EP8", 128, 16, 4, 2880, 2880),
        activation="swiglu_oai",
        has_biases=True,
    ),
    MoEModel("GLM-4.5", "EP8", 160, 20, 8, 5120, 1536, scoring="sigmoid"),
)


@dataclasses.dataclass(frozen=True)
class MoECase:
    """The layer of a model on some tokens, which the router has spread over the experts.

    ``counts``: copies of tokens that each of the rank's experts gets.
    """

    model: MoEModel
    tokens: int
    counts: tuple[int, ...]
    weight_format: WeightFormat = "int4"

    @property
    def slots(self) -> int:
        return sum(self.counts)

    @property
    def tokens_per_expert(self) -> float:
        """Mean over all experts of the router."""
        return self.tokens * self.model.topk / self.model.router_experts

    @property
    def fuses(self) -> bool:
        """Whether the first product applies the activation."""
        rows = self.model.expected_slots(self.tokens)
        return fuses_activation(rows, 2 * self.model.intermediate, self.model.hidden)

    def gemms(self) -> tuple[GemmCase, GemmCase]:
        """Gate and up in one matrix, then down."""
        m = self.model
        first = gemm_case(m, self.weight_format, self.counts, 2 * m.intermediate, m.hidden)
        return (
            dataclasses.replace(first, is_gated=self.fuses),
            gemm_case(m, self.weight_format, self.counts, m.hidden, m.intermediate),
        )

    def moved_bytes(self) -> dict[str, int]:
        """Bytes that each step around the GEMMs must read and write, each once.

        Scales, biases, indices and counts are left out: activations are a hundred times as large.
        """
        m = self.model
        return {
            "route": self.tokens * (4 * m.router_experts + 8 * m.topk),
            "dispatch": self.tokens * (2 * m.hidden + 4 * m.topk) + self.slots * m.hidden,
            "activation": self.slots * m.intermediate * ((1 if self.fuses else 2) * 2 + 1),
            "combine": (self.slots + self.tokens) * m.hidden * 2,
        }

    def floors_us(self) -> dict[str, float]:
        """Least time of each launch: the GEMMs' own floors; copies for the steps around them."""
        floors = {name: moved / COPY_GBS / 1e3 for name, moved in self.moved_bytes().items()}
        floors |= {name: case.floor_us() for name, case in zip(GEMMS, self.gemms(), strict=True)}
        return {name: floors[name] for name in KERNELS}

    def error_bound(self) -> float:
        """Relative error (2-norm) that the formats explain; see :func:`layer_error_bound`."""
        m = self.model
        first, second = (case.error_bound() for case in self.gemms())
        # Copies of a token share its rounding, and one of its experts may weigh most.
        tokens = max(1, self.slots // m.topk)
        return layer_error_bound(first, second, tokens * min(m.hidden, m.intermediate))

    def row_values(self) -> dict[str, Any]:
        """The case's keys of a row of results."""
        m = self.model
        floors = {name: round(us, 3) for name, us in self.floors_us().items()}
        return {
            **{"model": m.label, "experts": m.experts, "topk": m.topk, "tokens": self.tokens},
            **{"router_experts": m.router_experts, "slots": self.slots, "routing": ROUTING},
            **{"hidden": m.hidden, "intermediate": m.intermediate, "mode": "prefix"},
            "tokens_per_expert": round(self.tokens_per_expert, 3),
            "format": self.weight_format,
            "group_size": 32 if self.weight_format == "mxfp4" else -1,
            **{"act_scale": "token", "out_dtype": "bfloat16"},
            "floor_us": round(sum(floors.values()), 3),
            "floors_us": floors,
            "error_bound": self.error_bound(),
            "hadamard_block_size": m.hadamard_block_size,
        }


def gemm_case(
    model: MoEModel, weight_format: WeightFormat, counts: Sequence[int], out: int, inside: int
) -> GemmCase:
    """One of the layer's two products."""
    return GemmCase(
        model.experts,
        out,
        inside,
        max(1, round(sum(counts) / model.experts)),
        weight_format=weight_format,
        group_size=32 if weight_format == "mxfp4" else -1,
        routing=ROUTING,
        counts=tuple(counts),
        model=model.label,
    )


def layer_error_bound(first: float, second: float, elements: int) -> float:
    """Relative error of the layer's output, on random data, against the exact product.

    Independent errors add in squares. The tokens are rounded to FP8 and multiplied; SwiGLU carries
    what it is given, times ``SWIGLU_GAIN``; its output is rounded to bfloat16, as the products are,
    then to FP8, and multiplied; the sum over experts keeps the relative error, and is rounded to
    bfloat16 once more.

    That is the mean. The squared error of rounding an element of SwiGLU, a product of normal
    numbers, deviates by 6.7 times its mean (by sampling, at the deviation of the inputs where it is
    most); the other errors deviate less. A mean of n squares deviates by 6.7 / sqrt(n): four times
    that is allowed.

    Args:
        first: relative error of the first product, see ``cases.error_bound``.
        second: of the second.
        elements: rounded ones that the error is the mean of.
    """
    square = SWIGLU_GAIN * (FP8_ERROR**2 + first**2) + FP8_ERROR**2 + second**2
    square += 2 * error_bound("bfloat16", 0) ** 2
    return math.sqrt(square * (1 + 4 * 6.7 / math.sqrt(elements)))


def popularity_ranks(model: MoEModel) -> tuple[int, ...]:
    """For each expert of the router its place by popularity, from 0.

    The ranks' experts take turns, each turn beginning with another rank, the first one in the
    middle: so the first rank, which is measured, has its share of the popular ones.
    """
    first = model.ranks // 2
    return tuple(
        turn * model.ranks + (first + rank + turn) % model.ranks
        for rank in range(model.ranks)
        for turn in range(model.experts)
    )


def models_named(names: Sequence[str]) -> list[MoEModel]:
    """The models of these names, in the order of ``MODELS``."""
    return [model for model in MODELS if model.name in names]
