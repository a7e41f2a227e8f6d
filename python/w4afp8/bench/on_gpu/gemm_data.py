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
"""Random operands of the grouped GEMM, made on the GPU, and the float64 reference."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from w4afp8 import ops
from w4afp8.bench.cases import GemmCase
from w4afp8.bench.on_gpu.random_fp8 import random_fp8
from w4afp8.quant.packing import LARGEST_RELATIVE, k_blocks_of
from w4afp8.testing.gpu import as_torch, from_torch
from w4afp8.testing.timing import num_rotations

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


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
        words = (experts, k_blocks_of(inside), out, 4)
        largest = LARGEST_RELATIVE
        ends = (largest - case.scale_binades, largest + 1)
        bytes_ = torch.randint(*ends, words, dtype=torch.uint8, device="cuda")
        bytes_[:, 0, :, 0] = largest  # of some group of each channel
        bytes_[:, -1, :, 1 + (inside // 32 - 1) % 4 :] = largest  # past in_features
        group_scale = from_torch(bytes_)
    elif case.has_groups():
        shape = (experts, inside // case.group_size, out)
        scales = (0.5 + torch.rand(shape, device="cuda")).to(torch.bfloat16)
        group_scale = from_torch(scales)
    packed = ops.pack_weight(from_torch(codes), weight_format=case.weight_format)
    kept = codes if keep_codes else None
    return WeightSet(packed, from_torch(weight_scale), group_scale, kept)


class WeightSets:
    """Weights of one shape, made once and shared by all its cases; rotated over, to be L2-cold."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._sets: dict[tuple[object, ...], list[WeightSet]] = {}

    def of(self, case: GemmCase) -> list[WeightSet]:
        """As many sets as the case must rotate over; the codes of the first are kept."""
        shape = (case.experts, case.out_features, case.in_features)
        if shape != self._shape:
            self._sets.clear()
            torch.cuda.empty_cache()
            self._shape = shape
        sets = self._sets.setdefault(format_of(case), [])
        while len(sets) < num_rotations(case.weight_bytes()):
            sets.append(make_weights(case, keep_codes=not sets))
        return sets


def format_of(case: GemmCase) -> tuple[object, ...]:
    """Cases of one shape and the same of these share their weights."""
    return case.weight_format, case.group_size, case.scale_binades


@dataclasses.dataclass(frozen=True)
class Activations:
    """``x`` (Paddle) in the case's mode, its ``tokens`` operand, and the same rows in a row."""

    x: Any
    tokens: Any
    rows: Any  # torch [tokens, in_features]


def make_rows(case: GemmCase) -> Any:
    """Random activations, torch.float8_e4m3fn ``[tokens, in_features]``."""
    return random_fp8(case.tokens, case.in_features)


def make_activations(case: GemmCase, rows: Any) -> Activations:
    """Operands that hold these rows. Rows of padding get random bytes, NaN among them."""
    counts = torch.tensor(case.token_counts, device="cuda")
    if case.mode == "prefix":
        sums = torch.zeros(case.experts + 1, dtype=torch.int32, device="cuda")
        sums[1:] = torch.cumsum(counts, 0)
        return Activations(from_torch(rows), from_torch(sums), rows)
    shape = (case.experts, case.token_padding, case.in_features)
    x = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
    holds_token = torch.arange(case.token_padding, device="cuda") < counts[:, None]
    x[holds_token] = rows.view(torch.uint8)
    padded = from_torch(x.view(torch.float8_e4m3fn))
    return Activations(padded, from_torch(counts.to(torch.int32)), rows)


def group_gemm(case: GemmCase, weights: WeightSet, inputs: Activations) -> Any:
    return ops.group_gemm(
        inputs.x,
        weights.packed,
        weights.weight_scale,
        inputs.tokens,
        group_scale=weights.group_scale,
        weight_format=case.weight_format,
        group_size=case.group_size,
        token_padding=case.token_padding,
        max_tokens=case.max_tokens,
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


def relative_error(case: GemmCase, weights: WeightSet, rows: Any, out: Any) -> float:
    """||out - reference|| / ||reference|| over all tokens; NaN where ``out`` holds one.

    Args:
        case: what was run.
        weights: with their codes.
        rows: torch ``[tokens, in_features]``, what it was run on.
        out: Paddle's output.
    """
    difference = torch.zeros((), dtype=torch.float64, device="cuda")
    norm = torch.zeros_like(difference)
    all_rows = as_torch(out)
    begin = 0
    for expert, count in enumerate(case.token_counts):
        if count == 0:
            continue
        x = rows[begin : begin + count].float().double()
        reference = x @ dequantised(case, weights, expert).t()
        result = all_rows[expert, :count] if case.mode == "padded" else all_rows[begin:][:count]
        difference += (result.double() - reference).square().sum()
        norm += reference.square().sum()
        begin += count
    return math.sqrt(difference.item() / norm.item())


def checked_output(case: GemmCase, weights: WeightSet, inputs: Activations) -> Any:
    """The output of a launch into memory that was filled with NaN before."""
    poisoned = group_gemm(case, weights, inputs)
    as_torch(poisoned).fill_(float("nan"))
    del poisoned  # the block is free now, and the next output of its size gets it
    return group_gemm(case, weights, inputs)
