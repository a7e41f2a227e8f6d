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
"""The same bits on every run, with load on another stream beside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from w4afp8 import ops
from w4afp8.quant import pack
from w4afp8.testing.gemm_inputs import (
    HELPED,
    IN_PARTS,
    LARGE_HINT,
    LARGE_IN_PARTS,
    GemmInputs,
    GemmProblem,
    random_inputs,
)
from w4afp8.testing.gpu import as_torch, torch_on_paddle_stream
from w4afp8.testing.tensors import float8_tensor, float_tensor, int_tensor

RUNS = 100
COUNTS = (257, 3, 0, 40, 300, 1, 128, 64)
# Group sizes; "in float32": summed so; "to float16": the output, whose sums are carried.
FORMATS = {"int4": -1, "int4 groups of 32": 32, "int4 groups of 128": 128, "mxfp4": 32}
FORMATS |= {"int4 in float32": -1, "int4 groups of 128 in float32": 128, "mxfp4 in float32": 32}
FORMATS |= {"int4 to float16": -1, "mxfp4 to float16": 32}
# Tokens per expert by which the tile is chosen: decode, small, medium, prefill.
TILE_HINTS = (1, 64, 128, 4096)
LOAD_SIZE = 2048  # of the matrix products beside: shorter than a launch, so that they interleave


@functools.cache
def inputs_of(
    form: str, counts: tuple[int, ...] = COUNTS, out_features: int = 504, in_features: int = 2944
) -> GemmInputs:
    weight_format: Any = form.partition(" ")[0]
    return random_inputs(
        GemmProblem(
            counts=counts,
            out_features=out_features,
            in_features=in_features,
            weight_format=weight_format,
            group_size=FORMATS[form],
            x_scale="token",
            has_bias=True,
        )
    )


def launcher(place: Any, form: str, hint: int, *shape: Any) -> Callable[[], Any]:
    """The operator on operands that are on the GPU already."""
    inputs = inputs_of(form, *shape)
    accumulation: Any = "float32" if form.endswith("in float32") else "default"
    out_dtype = "float16" if form.endswith("to float16") else "bfloat16"
    p, packed = inputs.problem, pack(inputs.weight, place=place)
    x, tokens = float8_tensor(inputs.x, place), int_tensor(p.tokens(), "int64", place)
    scale = float_tensor(inputs.x_scale, "float32", place)  # type: ignore[arg-type]
    bias = float_tensor(inputs.bias, out_dtype, place)  # type: ignore[arg-type]
    return lambda: ops.group_gemm(
        x,
        packed.weight,
        packed.weight_scale,
        tokens,
        group_scale=packed.group_scale,
        x_scale=scale,
        bias=bias,
        weight_format=p.weight_format,
        group_size=p.group_size,
        max_tokens=hint,
        accumulation=accumulation,
        out_dtype=out_dtype,
    )


@pytest.mark.parametrize("hint", TILE_HINTS)
@pytest.mark.parametrize("form", FORMATS)
def test_same_bits_in_a_hundred_runs_beside_load(place: Any, form: str, hint: int) -> None:
    assert_same_bits(place, launcher(place, form, hint))


# A hint of 128 chooses medium tiles, of 1 decode tiles.
@pytest.mark.parametrize(
    ("hint", "shape"),
    [
        *((LARGE_HINT, shape) for shape in LARGE_IN_PARTS),
        *((128, shape) for shape in IN_PARTS),
        *((1, shape) for shape in HELPED),
    ],
    ids=[
        *("70 large in parts", "96 large in parts", "108 large in parts"),
        *("215 in parts", "136 in parts", "435 helped", "60 helped"),
    ],
)
@pytest.mark.parametrize("form", ["int4", "mxfp4"])
def test_same_bits_in_a_hundred_runs_of_tiles_in_parts_or_helped(
    place: Any, form: str, hint: int, shape: tuple[Any, ...]
) -> None:
    assert_same_bits(place, launcher(place, form, hint, *shape))


def assert_same_bits(place: Any, launch: Callable[[], Any]) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    beside = torch.cuda.Stream()
    a = torch.randn(LOAD_SIZE, LOAD_SIZE, dtype=torch.bfloat16, device="cuda")
    product = torch.empty_like(a)
    torch.cuda.synchronize()
    with torch_on_paddle_stream(place) as stream:
        out = launch()
        first = as_torch(out).clone()
        assert not first.isnan().any()
        different = torch.zeros((), dtype=torch.int64, device="cuda")
        for _ in range(RUNS):  # nothing waits in here: both streams have work all the time
            with torch.cuda.stream(beside):
                torch.mm(a, a, out=product)
            out = launch()
            different += (as_torch(out).view(torch.int16) != first.view(torch.int16)).sum()
        stream.synchronize()
    beside.synchronize()
    assert different.item() == 0
