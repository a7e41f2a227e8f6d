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
"""The grouped GEMM: exact cases bit by bit, the others within the bound of testing/compare.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import paddle
import pytest
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.quant import QuantizedWeight, pack
from w4afp8.quant.codes import join_nibbles
from w4afp8.quant.quantize import dequantize
from w4afp8.testing import float8
from w4afp8.testing.compare import (
    Accumulator,
    assert_bits_equal,
    assert_within,
    folded,
    gemm_bound,
    summation,
)
from w4afp8.testing.gemm_inputs import (
    LARGE_HINT,
    GemmInputs,
    GemmProblem,
    exact_inputs,
    random_inputs,
    reference,
)
from w4afp8.testing.shapes import GEMM_SHAPES, RAGGED, TOKEN_COUNTS, LinearShape
from w4afp8.testing.tensors import (
    bits_of,
    float8_tensor,
    float_tensor,
    int_tensor,
    tensor_bits,
    values_of,
)

pytestmark = pytest.mark.usefixtures("route")

# Format, group_size, type of the group scales.
FORMATS = {
    "int4": ("int4", -1, "float32"),
    "int4 groups of 32": ("int4", 32, "float32"),
    "int4 groups of 64": ("int4", 64, "float32"),
    "int4 groups of 128": ("int4", 128, "float32"),
    "int4 groups of 128, bfloat16": ("int4", 128, "bfloat16"),
    "int4 groups of 384": ("int4", 384, "float32"),
    "mxfp4": ("mxfp4", 32, "float32"),
}


def problem(counts: Any, shape: LinearShape, form: str = "int4", **options: Any) -> GemmProblem:
    weight_format, group_size, scale_dtype = FORMATS[form]
    return GemmProblem(
        counts=counts,
        out_features=shape.out_features,
        in_features=shape.in_features,
        weight_format=weight_format,
        group_size=group_size,
        scale_dtype=scale_dtype,
        **options,
    )


def optional(values: Any, dtype: str, place: Any) -> paddle.Tensor | None:
    return None if values is None else float_tensor(values, dtype, place)


def run(
    place: Any,
    inputs: GemmInputs,
    *,
    out_dtype: str = "bfloat16",
    tokens_dtype: str = "int64",
    leading_zero: bool = True,
    tokens: Any = None,
    max_tokens: int = -1,
    accumulation: Any = "default",
) -> NDArray[np.uint16]:
    """The operator on these inputs; bits of the result ``[num_rows, out_features]``."""
    p = inputs.problem
    packed = pack(inputs.weight, place=place)
    x = inputs.x.reshape(p.experts, p.token_padding, -1) if p.token_padding else inputs.x
    x_scale = inputs.x_scale
    if x_scale is not None and x_scale.size > 1:
        x_scale = x_scale.reshape(x.shape[:-1])
    if tokens is None:
        tokens = p.tokens(leading_zero=leading_zero)
    out = ops.group_gemm(
        float8_tensor(x, place),
        packed.weight,
        packed.weight_scale,
        int_tensor(tokens, tokens_dtype, place),
        group_scale=packed.group_scale,
        x_scale=optional(x_scale, "float32", place),
        bias=optional(inputs.bias, out_dtype, place),
        weight_format=p.weight_format,
        group_size=p.group_size,
        token_padding=p.token_padding,
        max_tokens=max_tokens,
        out_dtype=out_dtype,
        accumulation=accumulation,
    )
    assert out.shape == [*x.shape[:-1], p.out_features]
    assert str(out.dtype) == f"paddle.{out_dtype}"
    return tensor_bits(out).reshape(p.num_rows, p.out_features)


def check_exact(place: Any, p: GemmProblem, *, out_dtype: str = "bfloat16", **options: Any) -> None:
    inputs = exact_inputs(p)
    expected = reference(inputs)
    out = run(place, inputs, out_dtype=out_dtype, **options)
    holds_token = ~np.isnan(expected[:, 0])
    assert_bits_equal(out[holds_token], bits_of(expected, out_dtype)[holds_token], str(p))


def check_close(
    place: Any,
    accumulator: Accumulator,
    inputs: GemmInputs,
    *,
    out_dtype: str = "bfloat16",
    accumulation: str = "default",
    **options: Any,
) -> None:
    expected = reference(inputs)
    bound = gemm_bound(inputs, expected, out_dtype, accumulator, accumulation)
    options |= {"out_dtype": out_dtype, "accumulation": accumulation}
    out = values_of(run(place, inputs, **options), out_dtype)
    holds_token = ~np.isnan(expected[:, 0])
    assert_within(out[holds_token], expected[holds_token], bound[holds_token], str(inputs.problem))


@pytest.mark.parametrize("shape", GEMM_SHAPES, ids=str)
def test_exact_for_every_shape(place: Any, shape: LinearShape) -> None:
    check_exact(place, problem((3, 0, 17), shape))


@pytest.mark.parametrize("max_tokens", [1, 4096])
@pytest.mark.parametrize("accumulation", ["default", "half", "float32"])
@pytest.mark.parametrize("form", FORMATS)
def test_exact_for_every_format(place: Any, form: str, accumulation: str, max_tokens: int) -> None:
    p = problem((9, 0, 70), LinearShape(200, 384), form, x_scale="token", has_bias=True)
    options = {"accumulation": accumulation, "max_tokens": max_tokens}
    check_exact(place, p, out_dtype="float16", **options)


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("int4 groups of 32", LinearShape(72, 96)),
        ("int4 groups of 32", LinearShape(136, 160)),
        ("int4 groups of 64", LinearShape(72, 192)),
        ("int4 groups of 64", LinearShape(136, 2880)),
        ("mxfp4", LinearShape(72, 96)),
        ("mxfp4", LinearShape(8, 32)),
        ("mxfp4", LinearShape(136, 2880)),
    ],
)
def test_exact_for_groups_beside_k_blocks(place: Any, form: str, shape: LinearShape) -> None:
    check_exact(place, problem((5, 20), shape, form))


@pytest.mark.parametrize("count", TOKEN_COUNTS)
def test_exact_for_every_number_of_tokens(place: Any, count: int) -> None:
    check_exact(place, problem((count, 3), LinearShape(72, 160)))


@pytest.mark.parametrize("counts", RAGGED.values(), ids=RAGGED.keys())
@pytest.mark.parametrize("form", ["int4", "int4 groups of 128", "mxfp4"])
def test_exact_for_ragged_experts(place: Any, form: str, counts: tuple[int, ...]) -> None:
    check_exact(place, problem(counts, LinearShape(136, 256), form, x_scale="token"))


@pytest.mark.parametrize("counts", RAGGED.values(), ids=RAGGED.keys())
def test_exact_with_padding(place: Any, counts: tuple[int, ...]) -> None:
    # The rows past each count are NaN, and so is their scale.
    p = problem(counts, LinearShape(72, 192), token_padding=80, x_scale="token", has_bias=True)
    check_exact(place, p)


@pytest.mark.parametrize("tokens_dtype", ["int32", "int64"])
@pytest.mark.parametrize("leading_zero", [True, False])
@pytest.mark.parametrize("padding", [0, 48])
def test_exact_for_every_form_of_tokens(
    place: Any, tokens_dtype: str, leading_zero: bool, padding: int
) -> None:
    p = problem((4, 0, 48), LinearShape(64, 128), token_padding=padding)
    check_exact(place, p, tokens_dtype=tokens_dtype, leading_zero=leading_zero)


@pytest.mark.parametrize("x_scale", ["none", "tensor", "token"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
def test_exact_for_every_epilogue(place: Any, x_scale: Any, has_bias: bool, out_dtype: str) -> None:
    p = problem((33, 2), LinearShape(104, 96), x_scale=x_scale, has_bias=has_bias)
    check_exact(place, p, out_dtype=out_dtype)


def test_exact_with_spare_rows(place: Any) -> None:
    check_exact(place, problem((5, 6), LinearShape(72, 96), spare_rows=9))


@pytest.mark.parametrize("max_tokens", [0, 1, 40, 100000])
def test_hint_changes_nothing(place: Any, max_tokens: int) -> None:
    check_exact(place, problem((40, 3), LinearShape(72, 96)), max_tokens=max_tokens)


# On the GPU these hints choose decode, small, medium (or promoted) and large tiles (tile_choice.h).
@pytest.mark.parametrize("max_tokens", [1, 64, 128, 4096])
@pytest.mark.parametrize("form", ["int4", "int4 groups of 32", "int4 groups of 128", "mxfp4"])
def test_accuracy_with_every_tile(
    place: Any, accumulator: Accumulator, form: str, max_tokens: int
) -> None:
    counts = (300, 0, 20, 130, 90)
    p = problem(counts, LinearShape(248, 1152), form, x_scale="token", has_bias=True)
    check_close(place, accumulator, random_inputs(p), max_tokens=max_tokens)


@pytest.mark.parametrize("max_tokens", [1, 64, 4096])
@pytest.mark.parametrize("form", ["int4", "int4 groups of 64", "int4 groups of 384", "mxfp4"])
@pytest.mark.parametrize(
    ("out_dtype", "accumulation"),
    [("bfloat16", "float32"), ("float16", "half"), ("float16", "float32")],
)
def test_accuracy_of_each_accumulation(
    place: Any,
    accumulator: Accumulator,
    form: str,
    max_tokens: int,
    out_dtype: str,
    accumulation: str,
) -> None:
    p = problem((140, 0, 20), LinearShape(200, 1152), form, x_scale="token", has_bias=True)
    options = {"max_tokens": max_tokens, "out_dtype": out_dtype, "accumulation": accumulation}
    check_close(place, accumulator, random_inputs(p), **options)


# Float16's sums of 5760 in_features are carried (docs/kernel.md) two or three times.
@pytest.mark.parametrize("max_tokens", [1, 64, 128, 4096])
@pytest.mark.parametrize("form", ["int4", "mxfp4"])
def test_accuracy_of_carried_sums(
    place: Any, accumulator: Accumulator, form: str, max_tokens: int
) -> None:
    p = problem((40, 90, 0, 300), LinearShape(248, 5760), form, x_scale="token", has_bias=True)
    check_close(place, accumulator, random_inputs(p), max_tokens=max_tokens, out_dtype="float16")


@pytest.mark.parametrize("max_tokens", [1, 4096])
@pytest.mark.parametrize("form", ["int4", "mxfp4"])
def test_exact_where_sums_are_carried(place: Any, form: str, max_tokens: int) -> None:
    p = problem((40, 0, 70, 150, 300), LinearShape(248, 5760), form, x_scale="token")
    check_exact(place, p, out_dtype="float16", max_tokens=max_tokens)


# The GPU's medium tiles are as wide as holds an expert's tokens; float16's sums are carried.
@pytest.mark.parametrize(
    ("form", "out_dtype", "in_features"),
    [
        ("int4", "bfloat16", 640),
        ("int4 groups of 128", "bfloat16", 640),
        ("mxfp4", "bfloat16", 640),
        ("int4", "float16", 5760),
        ("mxfp4", "float16", 5760),
    ],
)
def test_exact_for_every_width(place: Any, form: str, out_dtype: str, in_features: int) -> None:
    counts = (16, 31, 64, 65, 72, 0, 78, 80, 93, 97, 112, 128)
    p = problem(counts, LinearShape(136, in_features), form, x_scale="token")
    check_exact(place, p, max_tokens=128, out_dtype=out_dtype)


# Of its large tiles those of 32 k blocks and more have widths between, but not with int4 groups.
@pytest.mark.parametrize("in_features", [640, 4096, 4224])
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", ["int4", "int4 groups of 128", "mxfp4"])
def test_exact_for_every_width_of_large_tiles(
    place: Any, form: str, out_dtype: str, in_features: int
) -> None:
    counts = (64, 65, 128, 129, 160, 161, 0, 192, 193, 224, 225, 256)
    p = problem(counts, LinearShape(256, in_features), form, x_scale="token", has_bias=True)
    check_exact(place, p, max_tokens=LARGE_HINT, out_dtype=out_dtype, accumulation="half")


# 4, 5, 10 and 11 k blocks: of the GPU's rings of stages most have 4 or 5.
@pytest.mark.parametrize("in_features", [512, 640, 1280, 1408])
@pytest.mark.parametrize("form", ["int4", "int4 groups of 128", "mxfp4"])
def test_exact_for_whole_rings(place: Any, form: str, in_features: int) -> None:
    p = problem((9, 90, 0, 120, 50, 130), LinearShape(328, in_features), form, x_scale="token")
    check_exact(place, p, max_tokens=128)


# The GPU counts the tokens of up to 32 experts by one warp, of up to 128 by four with a thread
# each, of more with several each.
@pytest.mark.parametrize("max_tokens", [1, 128, LARGE_HINT])
@pytest.mark.parametrize(
    ("experts", "form"),
    [
        (31, "int4"),
        (32, "mxfp4"),
        (33, "int4"),
        (128, "int4"),
        (129, "mxfp4"),
        (130, "int4 groups of 32"),
        (1023, "mxfp4"),
        (1024, "int4"),
    ],
)
def test_exact_for_many_experts(place: Any, experts: int, form: str, max_tokens: int) -> None:
    rng = np.random.default_rng(experts)
    counts = rng.integers(0, 4, experts)
    counts[rng.permutation(experts)[:6]] = [70, 100, 128, 150, 270, 300]
    p = problem(tuple(counts), LinearShape(248, 288), form)
    check_exact(place, p, max_tokens=max_tokens)


# So few tiles of the GPU have one sub-block, which all warpgroups multiply: 8, 9 and 23 k blocks.
@pytest.mark.parametrize("in_features", [1024, 1152, 2944])
@pytest.mark.parametrize("form", ["int4", "int4 groups of 128", "mxfp4"])
@pytest.mark.parametrize("experts", [8, 64])
def test_exact_for_few_tokens(place: Any, experts: int, form: str, in_features: int) -> None:
    counts = np.zeros(experts, int)
    counts[[1, 2, experts - 2]] = [1, 3, 4]
    shape = LinearShape(136, in_features)
    check_exact(place, problem(tuple(counts), shape, form, x_scale="token", has_bias=True))


# Of fewer tiles than multiprocessors the GPU makes lower ones: here most have all their sub-blocks.
@pytest.mark.parametrize("max_tokens", [1, 64, 128])
@pytest.mark.parametrize("form", ["int4", "int4 groups of 128", "mxfp4"])
def test_exact_for_many_tiles(place: Any, form: str, max_tokens: int) -> None:
    counts = (70, 130, *np.random.default_rng(2).integers(1, 4, 38))
    check_exact(place, problem(counts, LinearShape(840, 128), form), max_tokens=max_tokens)


@pytest.mark.parametrize("form", FORMATS)
def test_accuracy(place: Any, accumulator: Accumulator, form: str) -> None:
    p = problem((130, 1, 0, 30), LinearShape(328, 1152), form, x_scale="token", has_bias=True)
    check_close(place, accumulator, random_inputs(p))


@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", ["int4", "int4 groups of 128", "mxfp4"])
def test_accuracy_for_long_in_features(
    place: Any, accumulator: Accumulator, form: str, out_dtype: str
) -> None:
    inputs = random_inputs(problem((20, 3), LinearShape(136, 8192), form, x_scale="token"))
    check_close(place, accumulator, inputs, out_dtype=out_dtype)


def test_accuracy_for_positive_numbers(place: Any, accumulator: Accumulator) -> None:
    # Nothing cancels: an accumulator that truncates drifts the furthest.
    inputs = random_inputs(problem((20, 3), LinearShape(72, 2048), x_scale="token"))
    positive = dataclasses.replace(inputs.weight, codes=inputs.weight.codes & 0x77)
    inputs = dataclasses.replace(inputs, x=inputs.x & 0x7F, weight=positive)
    check_close(place, accumulator, inputs)


@pytest.mark.parametrize("accumulation", ["half", "float32"])
@pytest.mark.parametrize("spread", [12, 20, 60])
def test_accuracy_for_distant_mxfp4_groups(
    place: Any, accumulator: Accumulator, spread: int, accumulation: str
) -> None:
    inputs = random_inputs(problem((20, 3), LinearShape(72, 512), "mxfp4", x_scale="token"))
    scale = np.random.default_rng(2).integers(120 - spread, 121, inputs.weight.scale.shape)
    weight = dataclasses.replace(inputs.weight, scale=scale.astype(np.uint8))
    inputs = dataclasses.replace(inputs, weight=weight)
    check_close(place, accumulator, inputs, accumulation=accumulation)


# A thread that has a group far below its channel's largest takes another way through most tiles
# for that k block of 128.
@pytest.mark.parametrize("max_tokens", [1, 64, 128, 4096])
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
def test_accuracy_for_some_distant_mxfp4_groups(
    place: Any, accumulator: Accumulator, out_dtype: str, max_tokens: int
) -> None:
    p = problem((300, 0, 40, 130), LinearShape(248, 128 * 23), "mxfp4", x_scale="token")
    inputs = random_inputs(p)
    rng = np.random.default_rng(3)
    shape = inputs.weight.scale.shape
    distance = np.where(rng.random(shape) < 0.002, rng.integers(7, 40, shape), 0)
    scale = rng.integers(116, 121, shape) - distance
    weight = dataclasses.replace(inputs.weight, scale=scale.astype(np.uint8))
    inputs = dataclasses.replace(inputs, weight=weight)
    check_close(place, accumulator, inputs, max_tokens=max_tokens, out_dtype=out_dtype)


# The column of the weight, and how many there are: the only k block, others of several.
COLUMNS = [(32, 64), (0, 1664), (96 + 128 * 6, 1664), (1663, 1664)]
# Every tile and, of each, narrow and wide ones.
TOKENS = [(1, 2), (64, 40), (128, 2), (128, 90), (128, 128), (4096, 70), (4096, 256)]


@pytest.mark.parametrize("accumulation", ["half", "float32"])
@pytest.mark.parametrize(("max_tokens", "tokens"), TOKENS)
@pytest.mark.parametrize(("column", "in_features"), COLUMNS)
def test_every_mxfp4_code_with_every_distance(
    place: Any,
    accumulator: Accumulator,
    column: int,
    in_features: int,
    max_tokens: int,
    tokens: int,
    accumulation: str,
) -> None:
    """One weight an output, multiplied by 1: what the kernel takes it for shows as it is."""
    distances, codes = np.arange(48), np.arange(16)
    shape = (1, len(distances) * len(codes), in_features)
    nibbles = np.zeros(shape, np.uint8)
    nibbles[0, :, column] = np.tile(codes, len(distances))
    scale = np.full((*shape[:2], in_features // 32), 127, np.uint8)  # other groups are all zeros
    scale[0, :, column // 32] -= np.repeat(distances, len(codes)).astype(np.uint8)
    weight = QuantizedWeight(join_nibbles(nibbles), scale, "mxfp4", 32, "float32")
    p = GemmProblem((tokens,), shape[1], in_features, "mxfp4", 32, x_scale="none")
    x = np.zeros((tokens, in_features))
    x[:, column] = np.where(np.arange(tokens) % 2 == 0, 1.0, -1.0)
    inputs = GemmInputs(p, float8.encode(x.astype(np.float32)), weight, None, None)
    expected = dequantize(weight)[0].astype(np.float64)
    if accumulator.is_tensor_core:
        how = summation("mxfp4", 32, "bfloat16", accumulation)
        expected = folded(expected, scale[0].max(axis=1), how)
    out = run(place, inputs, accumulation=accumulation, max_tokens=max_tokens)
    np.testing.assert_array_equal(values_of(out, "bfloat16"), x @ expected.T)


def test_nan_stays_in_its_row(place: Any) -> None:
    inputs = exact_inputs(problem((9, 20), LinearShape(72, 96)))
    x = inputs.x.copy()
    x[4, 50] = 0xFF
    clean = run(place, inputs)
    dirty = run(place, dataclasses.replace(inputs, x=x))
    assert np.isnan(values_of(dirty, "bfloat16")[4]).all()
    others = np.arange(29) != 4
    assert_bits_equal(dirty[others], clean[others])


@pytest.mark.parametrize("leading_zero", [True, False])
@pytest.mark.parametrize(
    "sums",
    [
        (0, 7, 3, 12),  # decreasing
        (0, 5, 2**40, 12),  # past the buffer
        (0, -9, 5, 12),
        (0, 4, 12, -(2**62)),
        (-(2**62), 2**62, -1, 2**62),
    ],
)
def test_corrupt_sums_are_clamped(place: Any, sums: tuple[int, ...], leading_zero: bool) -> None:
    inputs = exact_inputs(problem((12, 0, 0), LinearShape(72, 96)))
    tokens = np.array(sums if leading_zero else sums[1:], np.int64)
    out = run(place, inputs, tokens=tokens)
    begins = np.clip(
        np.concatenate([[0], tokens])[-4:-1] if not leading_zero else tokens[:-1], 0, 12
    )
    ends = np.maximum(begins, np.clip(tokens[-3:], 0, 12))
    # Rows that exactly one expert claims hold that expert's result.
    claims = np.zeros(12, np.int64)
    for begin, end in zip(begins, ends, strict=True):
        claims[begin:end] += 1
    for expert, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        alone = np.flatnonzero(claims == 1)
        alone = alone[(alone >= begin) & (alone < end)]
        all_rows = dataclasses.replace(
            inputs.problem, counts=tuple(12 if e == expert else 0 for e in range(3))
        )
        expected = reference(dataclasses.replace(inputs, problem=all_rows))
        assert_bits_equal(out[alone], bits_of(expected, "bfloat16")[alone], f"expert {expert}")


@pytest.mark.parametrize("counts", [(-3, 100, 5), (2**62, -(2**62), 0)])
def test_corrupt_counts_are_clamped(place: Any, counts: tuple[int, ...]) -> None:
    real = tuple(int(np.clip(count, 0, 8)) for count in counts)
    inputs = exact_inputs(problem(real, LinearShape(72, 96), token_padding=8))
    expected = reference(inputs)
    out = run(place, inputs, tokens=np.array(counts, np.int64))
    holds_token = ~np.isnan(expected[:, 0])
    assert_bits_equal(out[holds_token], bits_of(expected, "bfloat16")[holds_token])


def test_same_bits_every_time(place: Any) -> None:
    inputs = random_inputs(problem((70, 3, 0, 9), LinearShape(136, 640), x_scale="token"))
    first = run(place, inputs)
    for _ in range(3):
        assert_bits_equal(run(place, inputs), first)
