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
"""A token's bits depend on the token and its expert alone, not on the batch around it.

No option is needed: each output is one fixed chain of sums over in_features, whatever the tile. It
does not hold for the CPU kernel, whose sums are Paddle's matmul: their order depends on its shape.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.quant import pack
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.gemm_inputs import (
    HELPED,
    IN_PARTS,
    LARGE_HINT,
    LARGE_IN_PARTS,
    NAN_BYTE,
    GemmInputs,
    GemmProblem,
    random_inputs,
)
from w4afp8.testing.tensors import float8_tensor, float_tensor, int_tensor, tensor_bits

# Group sizes; "in float32": summed so; "to float16": the output, whose sums are carried.
FORMATS = {"int4": -1, "int4 groups of 32": 32, "int4 groups of 128": 128, "mxfp4": 32}
FORMATS |= {"int4 in float32": -1, "int4 groups of 128 in float32": 128, "mxfp4 in float32": 32}
FORMATS |= {"int4 to float16": -1, "mxfp4 to float16": 32}
TOKENS = 300
EXPERTS = 2
CUTS = (1, 8, 17, 64, 65, 73, 100, 129, 257, 300)
# What suits the counts, then decode, small, medium (promoted) and large tiles (tile_choice.h).
HINTS = (-1, 1, 64, 128, 4096)
OUT_FEATURES = 248  # a tail, as short as large tiles take it
IN_FEATURES = 2944  # so many k blocks that sums are carried

Bits = NDArray[np.uint16]


@functools.cache
def inputs_of(form: str) -> GemmInputs:
    """The same tokens for every expert, so that any of them can hold any token."""
    weight_format: Any = form.partition(" ")[0]
    p = GemmProblem(
        counts=(TOKENS,) * EXPERTS,
        out_features=OUT_FEATURES,
        in_features=IN_FEATURES,
        weight_format=weight_format,
        group_size=FORMATS[form],
        x_scale="token",
    )
    inputs = random_inputs(p)
    assert inputs.x_scale is not None
    again = np.tile(np.arange(TOKENS), EXPERTS)
    return dataclasses.replace(inputs, x=inputs.x[again], x_scale=inputs.x_scale[again])


class Batches:
    """One weight, and any batch of its tokens."""

    def __init__(self, place: Any, form: str) -> None:
        self._place, self._inputs = place, inputs_of(form)
        self._accumulation: Any = "float32" if form.endswith("in float32") else "default"
        self._out_dtype = "float16" if form.endswith("to float16") else "bfloat16"
        self._packed = pack(self._inputs.weight, place=place)

    def run(
        self, chosen: Sequence[NDArray[Any]], *, padding: int = 0, hint: int = -1
    ) -> list[Bits]:
        """Bits of each expert's tokens ``[count, out_features]``.

        Args:
            chosen: of each expert, which of the tokens it holds, in which order.
            padding: rows of each expert in padded mode; 0 for prefix sums.
            hint: ``max_tokens``.
        """
        x, scale, rows = self._rows(chosen, padding)
        lead = (EXPERTS, padding) if padding else (len(x),)
        counts = [len(tokens) for tokens in chosen]
        p = self._inputs.problem
        out = ops.group_gemm(
            float8_tensor(x.reshape(*lead, IN_FEATURES), self._place),
            self._packed.weight,
            self._packed.weight_scale,
            int_tensor(counts if padding else [0, *np.cumsum(counts)], "int32", self._place),
            group_scale=self._packed.group_scale,
            x_scale=float_tensor(scale.reshape(lead), "float32", self._place),
            weight_format=p.weight_format,
            group_size=p.group_size,
            token_padding=padding,
            max_tokens=hint,
            accumulation=self._accumulation,
            out_dtype=self._out_dtype,
        )
        bits = tensor_bits(out).reshape(-1, OUT_FEATURES)
        return [bits[begin : begin + n] for begin, n in zip(rows, counts, strict=True)]

    def _rows(
        self, chosen: Sequence[NDArray[Any]], padding: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], list[int]]:
        """x and its scales, NaN where there is no token; the first row of each expert."""
        counts = [len(tokens) for tokens in chosen]
        begins = [e * padding for e in range(EXPERTS)] if padding else [0, *np.cumsum(counts)[:-1]]
        num_rows = EXPERTS * padding if padding else sum(counts)
        x = np.full((num_rows, IN_FEATURES), NAN_BYTE, np.uint8)
        scale = np.full(num_rows, np.nan, np.float32)
        source = self._inputs.x_scale
        assert source is not None
        for begin, tokens in zip(begins, chosen, strict=True):
            x[begin : begin + len(tokens)] = self._inputs.x[tokens]
            scale[begin : begin + len(tokens)] = source[tokens]
        return x, scale, [int(begin) for begin in begins]


class Rows:
    """One weight, and any range of the tokens' rows, spread over experts as wanted."""

    def __init__(self, place: Any, inputs: GemmInputs, **options: Any) -> None:
        self._place, self._inputs, self._options = place, inputs, options
        self._packed = pack(inputs.weight, place=place)

    def run(self, begin: int, end: int, ends: Sequence[int], **options: Any) -> Bits:
        """Bits ``[end - begin, out_features]``; ``ends``: where the rows of each expert do."""
        scale, p = self._inputs.x_scale, self._inputs.problem
        out = ops.group_gemm(
            float8_tensor(self._inputs.x[begin:end], self._place),
            self._packed.weight,
            self._packed.weight_scale,
            int_tensor([0, *ends], "int32", self._place),
            group_scale=self._packed.group_scale,
            x_scale=None
            if scale is None
            else float_tensor(scale[begin:end], "float32", self._place),
            weight_format=p.weight_format,
            group_size=p.group_size,
            **self._options,
            **options,
        )
        return tensor_bits(out)


ALL = np.arange(TOKENS)
NONE = ALL[:0]


@pytest.mark.parametrize("form", FORMATS)
def test_bits_do_not_depend_on_the_batch(place: Any, form: str) -> None:
    batches = Batches(place, form)
    first, second = batches.run([ALL, ALL])
    assert (first != second).any()  # the experts differ
    order = np.random.default_rng(0).permutation(TOKENS)
    cases: dict[str, tuple[Sequence[NDArray[Any]], dict[str, int]]] = {
        "permuted": ([order, ALL[::-1]], {}),
        "alone": ([ALL, NONE], {}),
        "beside others": ([ALL[:3], order], {}),
        "padded": ([ALL, ALL], {"padding": TOKENS}),
        "padded, permuted, beside few": ([order, ALL[:5]], {"padding": TOKENS + 84}),
        "repeated": ([np.full(TOKENS, 7), order], {}),
    }
    for name, (chosen, options) in cases.items():
        for hint in (-1, 4096):
            outs = batches.run(chosen, hint=hint, **options)
            for out, tokens, expected in zip(outs, chosen, (first, second), strict=True):
                assert_bits_equal(out, expected[tokens], f"{name}, hint {hint}")


@pytest.mark.parametrize("padding", [0, TOKENS + 4])
@pytest.mark.parametrize("form", FORMATS)
def test_bits_do_not_depend_on_how_many_tokens_there_are(
    place: Any, form: str, padding: int
) -> None:
    batches = Batches(place, form)
    first, second = batches.run([ALL, ALL])
    for cut in CUTS:
        some = ALL[TOKENS - cut :]
        for hint in HINTS:
            outs = batches.run([some, ALL[:1]], padding=padding, hint=hint)
            assert_bits_equal(outs[0], first[some], f"{cut} tokens, hint {hint}")
            assert_bits_equal(outs[1], second[:1], f"beside {cut} tokens, hint {hint}")


@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("hint", "shape"),
    [*((128, shape) for shape in IN_PARTS), *((LARGE_HINT, shape) for shape in LARGE_IN_PARTS)],
    ids=["215", "136", "70 large", "96 large", "108 large"],
)
@pytest.mark.parametrize("form", ["int4", "mxfp4"])
def test_bits_do_not_depend_on_tiles_being_in_two_parts(
    place: Any, form: str, hint: int, shape: tuple[Any, ...], out_dtype: str
) -> None:
    """Some are where all experts have tokens, none where one of them has."""
    counts, outs, ins = shape
    p = dataclasses.replace(inputs_of(form).problem, counts=counts, out_features=outs)
    inputs = random_inputs(dataclasses.replace(p, in_features=ins))
    rows = Rows(place, inputs, max_tokens=hint, accumulation="half", out_dtype=out_dtype)
    ends = np.cumsum(counts)
    whole = rows.run(0, int(ends[-1]), ends)
    for expert, (end, count) in enumerate(zip(map(int, ends), counts, strict=True)):
        if count > 0:
            own = np.where(np.arange(len(counts)) < expert, 0, count)
            alone = rows.run(end - count, end, own)
            assert_bits_equal(whole[end - count : end], alone, f"expert {expert}")


# k blocks: 9, the last one of 32 in_features; 23; 22; 8.
@pytest.mark.parametrize(
    ("form", "group_size", "ins"),
    [("int4", -1, 1056), ("int4", 128, 2944), ("int4", 256, 2816), ("mxfp4", 32, 1024)],
)
def test_bits_do_not_depend_on_warpgroups_that_help(
    place: Any, form: Any, group_size: int, ins: int
) -> None:
    """With a hint of 1 tiles have four sub-blocks or one, several for each block, or all one."""
    counts, outs = (1200, 900), 320
    p = dataclasses.replace(inputs_of("int4").problem, counts=counts, weight_format=form)
    p = dataclasses.replace(p, group_size=group_size, in_features=ins, out_features=outs)
    rows = Rows(place, random_inputs(p))
    expected = rows.run(0, 2100, (1200, 2100), max_tokens=64)
    several = rows.run(0, 2100, (1200, 2100), max_tokens=1)
    assert_bits_equal(several, expected, "several tiles a block")
    one = rows.run(1190, 1205, (10, 15), max_tokens=1)
    assert_bits_equal(one, expected[1190:1205], "tiles of one sub-block")


@pytest.mark.parametrize(("counts", "outs", "ins"), HELPED, ids=["435", "60"])
@pytest.mark.parametrize(("form", "group_size"), [("int4", -1), ("int4", 128), ("mxfp4", 32)])
def test_bits_do_not_depend_on_helped_tiles_behind_others(
    place: Any, form: Any, group_size: int, counts: tuple[int, ...], outs: int, ins: int
) -> None:
    """Beside small tiles, of which none are helped."""
    p = dataclasses.replace(inputs_of("int4").problem, counts=counts, weight_format=form)
    p = dataclasses.replace(p, group_size=group_size, in_features=ins, out_features=outs)
    rows, ends = Rows(place, random_inputs(p)), np.cumsum(counts)
    whole = rows.run(0, int(ends[-1]), ends, max_tokens=1)
    assert_bits_equal(whole, rows.run(0, int(ends[-1]), ends, max_tokens=64))


# One k block, two, three (the fewest of large tiles, whose narrow ones have two in a stage), six,
# and nine, where some decode tiles are tall and some helped; clusters whose second block has no
# outputs. 33: all are helped.
@pytest.mark.parametrize(
    ("outs", "ins"),
    [(1408, 64), (1408, 160), (1408, 288), (1408, 704), (1408, 1056), (248, 4128)],
)
@pytest.mark.parametrize("form", [form for form in FORMATS if "128" not in form])
def test_half_a_k_block_is_a_whole_one_of_zeros(place: Any, form: str, outs: int, ins: int) -> None:
    """Whatever the launch before left in shared memory where the other half would be.

    The tokens are the least numbers, and what is left the largest codes, so that no product of the
    other half would be small beside those of this one.
    """
    options: dict[str, Any] = {"accumulation": "float32"} if form.endswith("in float32") else {}
    options |= {"out_dtype": "float16"} if form.endswith("to float16") else {}
    counts = (300, 0, 3, 70, 20)
    p = dataclasses.replace(
        inputs_of(form).problem, counts=counts, in_features=ins, out_features=outs
    )
    half = random_inputs(p)
    half = dataclasses.replace(half, x=half.x & 0x81)  # 0 and 2^-9 with both signs
    added = -(-ins // 128) * 128 - ins
    widths = [(0, 0), (0, 0), (0, added // 2)]
    scale = half.weight.scale
    if scale.ndim == 3:
        scale = np.pad(scale, [*widths[:2], (0, added // p.group_size)], mode="edge")
    codes = np.pad(half.weight.codes, widths)
    whole = dataclasses.replace(
        half,
        problem=dataclasses.replace(p, in_features=ins + added),
        x=np.pad(half.x, [(0, 0), (0, added)]),
        weight=dataclasses.replace(half.weight, codes=codes, scale=scale),
    )
    largest = 0x88 if p.weight_format == "int4" else 0x77  # -8 and 6
    left = dataclasses.replace(whole.weight, codes=np.full_like(codes, largest))
    left_before = dataclasses.replace(whole, weight=left)
    rows = [Rows(place, inputs, **options) for inputs in (whole, left_before, half)]
    ends = np.cumsum(counts)
    for hint in HINTS:
        expected, _, found = (each.run(0, int(ends[-1]), ends, max_tokens=hint) for each in rows)
        assert_bits_equal(found, expected, f"hint {hint}")


@pytest.mark.parametrize("hint", [1, 128, 4096])
@pytest.mark.parametrize("form", ["int4", "int4 groups of 128", "mxfp4"])
def test_outputs_so_many_that_they_are_streamed(place: Any, form: str, hint: int) -> None:
    """More than 150 million of few in_features (config.h), beside their halves, which are fewer."""
    tokens, outs, ins = 16384, 4608, 128
    p = dataclasses.replace(inputs_of(form).problem, counts=(1, 1))
    p = dataclasses.replace(p, out_features=outs, in_features=ins)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (EXPERTS * tokens, ins), np.uint8)
    x[x & 0x7F == NAN_BYTE & 0x7F] = 0
    inputs = dataclasses.replace(random_inputs(p), x=x, x_scale=None)
    rows = Rows(place, inputs, max_tokens=hint)
    whole = rows.run(0, 2 * tokens, (tokens, 2 * tokens))
    assert whole.size > 150e6
    first = rows.run(0, tokens, (tokens, tokens))
    assert_bits_equal(whole[:tokens], first, "first expert")
    second = rows.run(tokens, 2 * tokens, (0, tokens))
    assert_bits_equal(whole[tokens:], second, "second expert")
