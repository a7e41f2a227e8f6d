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
"""Random operands of the MLA up projections, made on the GPU, and the float64 reference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from w4afp8 import ops
from w4afp8.bench.mla_cases import MLACase
from w4afp8.quant.codes import CODE_VALUES
from w4afp8.quant.mla_layout import unpack_codes, unpack_k_scale, unpack_v_scale
from w4afp8.quant.mxfp4 import E8M0_BIAS
from w4afp8.testing.gpu import as_torch, from_torch
from w4afp8.testing.timing import COLD_BYTES

SCALES = (118, 128)  # E8M0 bytes, both ends occur
LARGEST_FLOAT8 = 448.0
QUANTISED_TOKENS = 1024  # at a time, in float32
REFERENCE_HEADS = 8  # at a time: float64 of 128 heads and 8192 tokens would take 8 GB

Launch = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class WeightSet:
    """Packed operands of one product: random bytes are random codes."""

    codes: Any
    scale: Any


def make_weights(case: MLACase) -> WeightSet:
    heads, out, inside = case.heads, case.out_features, case.in_features
    codes = torch.randint(0, 256, (heads, out, inside // 2), dtype=torch.uint8, device="cuda")
    shape = (heads, out // 32, inside) if case.op == "k_up" else (heads, out, inside // 32)
    scale = torch.randint(SCALES[0], SCALES[1] + 1, shape, dtype=torch.uint8, device="cuda")
    return WeightSet(from_torch(codes), from_torch(scale))


def num_cold_sets(case: MLACase, weight_bytes: int) -> int:
    """Sets to rotate over, so that a launch finds no weight in L2: activations flush it too."""
    activations = case.moved_bytes() - case.weight_bytes()
    return max(2, math.ceil((COLD_BYTES - activations) / weight_bytes) + 1)


def make_activations(case: MLACase) -> Any:
    """Normal numbers of the case's type, torch ``[tokens, heads, in]``."""
    shape = (case.tokens, case.heads, case.in_features)
    return torch.randn(shape, device="cuda").to(getattr(torch, case.out_dtype))


@dataclasses.dataclass(frozen=True)
class Operand:
    """Activations as the operator takes them."""

    x: Any
    scale: Any | None = None  # of FP8: float32 [tokens, heads]

    @classmethod
    def of(cls, case: MLACase, x: Any) -> Operand:
        """Of `make_activations`, which the case may quantise: ``scale = absmax / 448``."""
        if not case.is_float8:
            return cls(from_torch(x))
        scale = x.abs().amax(dim=2).float() / LARGEST_FLOAT8
        codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device="cuda")
        for begin in range(0, x.shape[0], QUANTISED_TOKENS):
            some = slice(begin, begin + QUANTISED_TOKENS)
            codes[some] = (x[some].float() / scale[some, :, None]).to(codes.dtype)
        return cls(from_torch(codes), from_torch(scale))


def mla_up(case: MLACase, operand: Operand, weights: WeightSet) -> Any:
    """The operator on Paddle tensors."""
    run = ops.mla_k_up if case.op == "k_up" else ops.mla_v_up
    return run(operand.x, weights.codes, weights.scale, operand.scale, case.out_dtype)


def checked_output(case: MLACase, operand: Operand, weights: WeightSet) -> Any:
    """The output of a launch into memory that was filled with NaN before."""
    poisoned = mla_up(case, operand, weights)
    as_torch(poisoned).fill_(float("nan"))
    del poisoned  # the block is free now, and the next output of its size gets it
    return mla_up(case, operand, weights)


def dequantised(case: MLACase, weights: WeightSet) -> Any:
    """Weights ``[heads, out, in]`` of one set, torch.float32 (exact), unpacked on the host."""
    codes = unpack_codes(weights.codes.cpu().numpy())
    packed_scale = weights.scale.cpu().numpy()
    is_k = case.op == "k_up"
    scale = unpack_k_scale(packed_scale) if is_k else unpack_v_scale(packed_scale)
    powers = np.ldexp(np.float32(1), scale.astype(np.int32) - E8M0_BIAS)
    values = CODE_VALUES["mxfp4"][codes] * np.repeat(powers, 32, axis=1 if is_k else 2)
    return torch.from_numpy(values).cuda()


def relative_error(weight: Any, x: Any, out: Any) -> float:
    """||out - reference|| / ||reference||; NaN where ``out`` holds one.

    Args:
        weight: torch ``[heads, out, in]``.
        x: torch ``[tokens, heads, in]``.
        out: torch ``[tokens, heads, out]``.
    """
    difference = torch.zeros((), dtype=torch.float64, device="cuda")
    norm = torch.zeros_like(difference)
    for begin in range(0, x.shape[1], REFERENCE_HEADS):
        mine = slice(begin, begin + REFERENCE_HEADS)
        reference = x[:, mine].double().transpose(0, 1) @ weight[mine].double().transpose(1, 2)
        difference += (out[:, mine].double().transpose(0, 1) - reference).square().sum()
        norm += reference.square().sum()
    return math.sqrt(difference.item() / norm.item())


def peer_launches(case: MLACase, x: Any, sets: list[Any]) -> dict[str, list[Launch]]:
    """torch.bmm on BF16 weights ``[heads, in, out]``, into either order of the output.

    By head is its own order, which a layer would have to transpose; by token is ours.
    """
    by_head = x.transpose(0, 1)
    shape = (case.heads, case.tokens, case.out_features)
    outs = {
        "by head": torch.empty(shape, dtype=x.dtype, device="cuda"),
        "by token": torch.empty(
            (case.tokens, case.heads, case.out_features), dtype=x.dtype, device="cuda"
        ).transpose(0, 1),
    }

    def launch(weight: Any, out: Any) -> Launch:
        return lambda: torch.bmm(by_head, weight, out=out)

    return {name: [launch(weight, out) for weight in sets] for name, out in outs.items()}
