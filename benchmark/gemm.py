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
"""The grouped GEMM: inputs, a float64 reference, the floor and the time of one case.

Data is made by PyTorch on the GPU. The result is checked in the same run before it is timed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import torch

from w4afp8 import ops
from w4afp8.testing.gpu import as_torch, from_torch
from w4afp8.testing.timing import num_rotations, time_launches

# Ceilings of the H100 that the goals were set on.
READ_GBS = 3177.0
TENSOR_TFLOPS = 1500.0

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclasses.dataclass(frozen=True)
class GemmCase:
    """One line of the table. Even routing, prefix sums, no activation scale, no bias.

    MXFP4's group scales spread evenly over ``scale_binades`` below the largest of their channel. Of
    the weights of the demonstration, 99.98% of the groups lie within 6, most within 1. The kernel
    expands a k block by arithmetic where all its scales lie within 6, and from tables elsewhere.
    """

    experts: int
    out_features: int
    in_features: int
    tokens_per_expert: int
    weight_format: Literal["int4", "mxfp4"] = "int4"
    group_size: int = -1
    out_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    scale_binades: int = 6

    @property
    def tokens(self) -> int:
        return self.experts * self.tokens_per_expert

    def weight_bytes(self) -> int:
        """Bytes of weights and scales that one call reads."""
        weights = self.experts * self.out_features * self.in_features
        scales = 4 * self.experts * self.out_features
        if self.weight_format == "mxfp4":
            return weights // 2 + weights // 32 + scales
        groups = weights // self.group_size if self.has_groups() else 0
        return weights // 2 + scales + 2 * groups

    def has_groups(self) -> bool:
        return self.group_size > 0

    def floor_us(self) -> float:
        """Bytes over bandwidth or operations over the tensor cores' rate, whichever is more."""
        moved = self.weight_bytes() + self.tokens * (self.in_features + 2 * self.out_features)
        operations = 2 * self.tokens * self.out_features * self.in_features
        return max(moved / READ_GBS / 1e3, operations / TENSOR_TFLOPS / 1e6)

    def error_bound(self) -> float:
        """Relative error (2-norm) that the number formats explain, on data of both signs.

        A number v is rounded, or cut, in units of a fraction of 2^floor(log2 |v|). Where mantissas
        are spread evenly on a log scale, the mean of 4^floor(log2 |v|) is 3 / (8 ln 2) = 0.541 of
        that of v^2 (for normal v within 0.5%): `binade`.

        Output: uniform within half a unit, 2^-8 (bfloat16) or 2^-11 (float16) of the binade, has
        the variance half^2 / 3.

        Accumulation (w4afp8.testing.compare has the model): each step of 32 products is cut to
        units L of 2^-13 of the binade of the largest number M in it. A cut loses up to L towards
        zero, in the mean square L^2 / 3, and products have either sign: 32 L^2 / 3 a step. The sum
        is a random walk: after j of K steps its mean square is j / K of the last, and M^2 exceeds
        that by one step's at most. The sum of (j + 1) / K over K steps is (K + 3) / 2. K counts the
        steps up to a promotion to float32.

        Executed on normal data of many bits, the model loses 0.94 of this; on int4 times FP8, whose
        products have so few bits that many are cut without loss, 0.35 in 8192 in_features.
        """
        binade = 3 / (8 * math.log(2))
        half = 2.0**-8 if self.out_dtype == "bfloat16" else 2.0**-11
        promotes = self.weight_format == "int4" and self.has_groups()
        steps = (min(self.group_size, 128) if promotes else self.in_features) / 32
        return math.sqrt(binade * (half**2 / 3 + 32 / 3 * 2.0**-26 * (steps + 3) / 2))


@dataclasses.dataclass(frozen=True)
class WeightSet:
    """One set of weights. ``codes`` (checkpoint order) is kept of the checked set only."""

    packed: Any
    weight_scale: Any
    group_scale: Any
    codes: Any = None


def make_weights(case: GemmCase, *, keep_codes: bool) -> WeightSet:
    """Random codes over the whole range, random scales."""
    experts, out, inside = case.experts, case.out_features, case.in_features
    codes = torch.randint(0, 256, (experts, out, inside // 2), dtype=torch.uint8, device="cuda")
    weight_scale = (0.5 + torch.rand(experts, out, device="cuda")) * 1e-3
    group_scale = None
    if case.weight_format == "mxfp4":
        shape = (experts, -(-inside // 128), out, 4)
        lowest = 254 - case.scale_binades
        bytes_ = torch.randint(lowest, 255, shape, dtype=torch.uint8, device="cuda")
        bytes_[:, 0, :, 0] = 254  # the largest group of a channel is always 254
        group_scale = from_torch(bytes_)
    elif case.has_groups():
        shape = (experts, inside // case.group_size, out)
        scales = (0.5 + torch.rand(shape, device="cuda")).to(torch.bfloat16)
        group_scale = from_torch(scales)
    packed = ops.pack_weight(from_torch(codes), weight_format=case.weight_format)
    kept = codes if keep_codes else None
    return WeightSet(packed, from_torch(weight_scale), group_scale, kept)


def make_x(case: GemmCase) -> tuple[Any, Any]:
    """Random activations [tokens, in_features] and the prefix sums."""
    x = (16 * torch.randn(case.tokens, case.in_features, device="cuda")).to(torch.float8_e4m3fn)
    sums = torch.arange(case.experts + 1, dtype=torch.int32, device="cuda")
    return from_torch(x), from_torch(sums * case.tokens_per_expert)


def group_gemm(case: GemmCase, weights: WeightSet, x: Any, tokens: Any) -> Any:
    return ops.group_gemm(
        x,
        weights.packed,
        weights.weight_scale,
        tokens,
        group_scale=weights.group_scale,
        weight_format=case.weight_format,
        group_size=case.group_size,
        max_tokens=case.tokens_per_expert,
        out_dtype=case.out_dtype,
    )


def dequantised(case: GemmCase, weights: WeightSet, expert: int) -> Any:
    """Weights [out_features, in_features] of one expert in float64, from the checkpoint's codes."""
    codes = weights.codes[expert]
    nibbles = torch.stack([codes & 15, codes >> 4], -1).reshape(case.out_features, -1).int()
    if case.weight_format == "int4":
        values = (nibbles - 16 * (nibbles >> 3)).double()
    else:
        table = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)], device="cuda")
        values = table.double()[nibbles.long()]
    values *= as_torch(weights.weight_scale)[expert].double()[:, None]
    if weights.group_scale is None:
        return values
    groups = as_torch(weights.group_scale)[expert]
    if case.weight_format == "mxfp4":
        exponents = groups.transpose(0, 1).reshape(case.out_features, -1)
        scales = torch.exp2(exponents.double() - 254)[:, : case.in_features // 32]
    else:
        scales = groups.double().t()
    return values * scales.repeat_interleave(case.in_features // scales.shape[1], dim=1)


def relative_error(case: GemmCase, weights: WeightSet, x: Any, out: Any) -> float:
    """||out - reference|| / ||reference|| over all tokens; NaN where ``out`` holds one."""
    numbers, results = as_torch(x).float().double(), as_torch(out).double()
    difference = torch.zeros((), dtype=torch.float64, device="cuda")
    norm = torch.zeros_like(difference)
    for expert in range(case.experts):
        rows = slice(expert * case.tokens_per_expert, (expert + 1) * case.tokens_per_expert)
        reference = numbers[rows] @ dequantised(case, weights, expert).t()
        difference += (results[rows] - reference).square().sum()
        norm += reference.square().sum()
    return math.sqrt(difference.item() / norm.item())


def poison(out: Any) -> None:
    """Fills an output with NaN before it is freed: the next output of its size gets this block."""
    as_torch(out).fill_(float("nan"))


def run_case(case: GemmCase, stream: Any) -> dict[str, Any]:
    """Checks and times one case. To be called inside ``torch_on_paddle_stream``.

    Returns:
        The case's keys of a row of gemm results.
    """
    rotations = num_rotations(case.weight_bytes())
    checked = make_weights(case, keep_codes=True)
    x, tokens = make_x(case)
    poison(group_gemm(case, checked, x, tokens))
    error = relative_error(case, checked, x, group_gemm(case, checked, x, tokens))
    others = [make_weights(case, keep_codes=False) for _ in range(rotations - 1)]
    stream.synchronize()

    def launch_with(weights: WeightSet) -> Callable[[], Any]:
        return lambda: group_gemm(case, weights, x, tokens)

    timing = time_launches([launch_with(weights) for weights in [checked, *others]], stream=stream)
    return {
        "experts": case.experts,
        "out_features": case.out_features,
        "in_features": case.in_features,
        "tokens_per_expert": case.tokens_per_expert,
        "routing": "even",
        "mode": "prefix",
        "format": case.weight_format,
        "group_size": case.group_size,
        "scale_binades": case.scale_binades if case.weight_format == "mxfp4" else None,
        "act_scale": "none",
        "out_dtype": case.out_dtype,
        "us": round(timing.us, 3),
        "floor_us": round(case.floor_us(), 3),
        "error": error,
        "error_bound": case.error_bound(),
    }
