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
"""Layers and tokens that the tests of expert parallelism and their processes both make.

Sums of the CPU's matmul may depend on how many tokens share a call, and ranks share differently
than one process. So the weights' codes are -1, 0 and 1 and there are 64 inputs: an FP8 value is a
multiple of 2^-9 and at most 448 = 229376 * 2^-9, 64 of them add up to at most 14680064 < 2^24 of
these units, and every sum in float32 is exact in any order. What else there is (rounding to FP8,
scales, the activation, the weighted sum in the order of the slots) concerns one token only. Hence
the ranks' outputs are those of one process bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.quant import QuantizedWeight
from w4afp8.quant.codes import join_nibbles
from w4afp8.testing.tensors import float_tensor

SIZE = 64  # hidden and intermediate
MAX_DECODE_TOKENS = 12
PHASES = ("prefill", "decode")
CPU = paddle.CPUPlace()
# Codes of 0, 1 and -1.
SMALL_CODES = {"int4": [0, 1, 15], "mxfp4": [0, 2, 10]}


@dataclass(frozen=True)
class Case:
    """One layer, how its experts are spread, and how many tokens each rank has."""

    tokens: tuple[int, ...]
    experts: int = 8
    experts_per_rank: tuple[int, ...] | None = None
    favoured: tuple[int, ...] = ()  # experts that all tokens go to
    topk: int = 2
    weight_format: str = "int4"
    activation: str = "swiglu"
    dtype: str = "bfloat16"
    has_biases: bool = False
    has_router: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        return len(self.tokens)

    def tokens_of(self, rank: int) -> slice:
        end = list(accumulate(self.tokens))[rank]
        return slice(end - self.tokens[rank], end)


CASES = {
    "even": Case((5, 9)),
    "seven experts": Case((6, 3), experts=7, topk=4),
    "as many as decode takes": Case((MAX_DECODE_TOKENS, MAX_DECODE_TOKENS), experts=3),
    "no tokens on rank 0": Case((0, 7)),
    "no tokens": Case((0, 0)),
    "no tokens for rank 0": Case((4, 5), favoured=(5, 7)),
    "no tokens for rank 1": Case((4, 5), favoured=(0, 2)),
    "no experts on rank 0": Case((4, 5), experts_per_rank=(0, 8)),
    "mxfp4": Case((3, 8), weight_format="mxfp4", dtype="float16", has_biases=True),
    "gelu": Case((3, 8), activation="gelu", has_biases=True, topk=1),
    "own router": Case(
        (6, 6),
        has_router=True,
        activation="swiglu_oai",
        options={"scoring": "sigmoid", "routed_scaling_factor": 2.5},
    ),
    "four ranks": Case((3, 0, 5, 1), experts=7, topk=3),
    "three experts on four ranks": Case((2, 1, 4, 6), experts=3),
    "given split": Case((4, 4, 4, 4), experts=7, experts_per_rank=(1, 0, 4, 2), has_biases=True),
    "no tokens for ranks 1 and 2": Case((4, 3, 2, 1), favoured=(0, 7)),
}


def cases_of(world_size: int) -> dict[str, Case]:
    return {name: case for name, case in CASES.items() if case.world_size == world_size}


def small_weight(case: Case, outputs: int, rng: np.random.Generator) -> QuantizedWeight:
    """Codes -1, 0 and 1; random scales, in mxfp4 the same for all groups of a channel."""
    shape = (case.experts, outputs)
    codes = rng.choice(np.array(SMALL_CODES[case.weight_format], np.uint8), (*shape, SIZE))
    if case.weight_format == "int4":
        scale = rng.uniform(0.05, 0.2, shape).astype(np.float32)
        return QuantizedWeight(codes=join_nibbles(codes), scale=scale)
    exponents = rng.integers(122, 126, (*shape, 1)).astype(np.uint8)
    scale = np.repeat(exponents, SIZE // 32, axis=2)
    return QuantizedWeight(codes=join_nibbles(codes), scale=scale, weight_format="mxfp4")


def whole_layer(case: Case, place: Any = CPU) -> W4AFP8MoEFFN:
    """The layer with all experts, the same in every process."""
    rng = np.random.default_rng(11)
    up_gate_size = SIZE if case.activation == "gelu" else 2 * SIZE
    up_gate, down = (small_weight(case, outputs, rng) for outputs in (up_gate_size, SIZE))
    biases = (rng.standard_normal((case.experts, n)) for n in (up_gate_size, SIZE))
    names = ("up_gate_bias", "down_bias") if case.has_biases else ()
    # x and the router's weight are multiples of 2^-3 and 2^-4: the logits are exact.
    router = rng.integers(-8, 9, (SIZE, case.experts)) / 16
    layer = W4AFP8MoEFFN.from_quantized(
        up_gate,
        down,
        topk=case.topk,
        activation=case.activation,
        dtype=case.dtype,
        gate_weight=router if case.has_router else None,
        correction_bias=rng.standard_normal(case.experts) if case.has_router else None,
        **dict(zip(names, biases, strict=False)),
        **case.options,
    )
    layer.to(device=place)
    return layer


def all_tokens(case: Case, place: Any = CPU) -> tuple[paddle.Tensor, paddle.Tensor | None]:
    """x and logits of all ranks together."""
    rng = np.random.default_rng(5)
    tokens = sum(case.tokens)
    x: NDArray[Any] = rng.standard_normal((tokens, SIZE))
    if case.has_router:
        x = np.rint(4 * x) / 8
    logits = rng.standard_normal((tokens, case.experts)).astype(np.float32)
    logits[:, list(case.favoured)] += 20
    given = None if case.has_router else float_tensor(logits, "float32", place)
    return float_tensor(x, case.dtype, place), given
