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
"""A grouped GEMM with an activation: the bits of the product, then activation_quant's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.quant import pack
from w4afp8.testing import float8
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.gemm_inputs import GemmInputs, GemmProblem, random_inputs
from w4afp8.testing.tensors import (
    bits_of,
    float8_tensor,
    float_tensor,
    int_tensor,
    tensor_bits,
    values_of,
)

FORMATS: dict[str, tuple[Any, int]] = {
    "int4": ("int4", -1),
    "int4 groups of 128": ("int4", 128),
    "int4 groups of 32": ("int4", 32),
    "mxfp4": ("mxfp4", 32),
}
ACTIVATIONS = ("swiglu", "swiglu_oai")
# Below and above the tokens of every tile, and experts without any.
COUNTS = (5, 0, 700, 1, 64, 0, 65, 17, 130, 300, 76, 90, 104)
# An odd number of sub-blocks of 64 in each half, among others.
OUT_FEATURES = (128, 384, 1536)
TINY = 2.0**-116  # above 448 times the least scale

Bits = NDArray[Any]
# From an activation and max_tokens.
Launch = Callable[[str, int], paddle.Tensor]


def hints(place: Any) -> tuple[int, ...]:
    """On a GPU: what suits the counts, then decode, small, medium and, if they fit, large tiles."""
    return (-1,) if place.is_cpu_place() else (-1, 1, 64, 128, 4096)


@functools.cache
def inputs_of(
    form: str, out_features: int = 384, in_features: int = 512, counts: Any = COUNTS, **options: Any
) -> GemmInputs:
    weight_format, group_size = FORMATS[form]
    options = {"x_scale": "token", "has_bias": True, **options}
    sizes = (counts, out_features, in_features, weight_format, group_size)
    inputs = random_inputs(GemmProblem(*sizes, **options))
    if options["x_scale"] != "token":
        return inputs
    assert inputs.x_scale is not None
    # Rows of all sizes: gates that are nearly closed, and what clamps at 7.
    size = np.exp2(np.random.default_rng(1).integers(-8, 5, inputs.problem.num_rows))
    return dataclasses.replace(inputs, x_scale=(inputs.x_scale * size).astype(np.float32))


def launcher(
    place: Any,
    inputs: GemmInputs,
    *,
    out_dtype: str = "bfloat16",
    accumulation: Any = "default",
    tokens_dtype: str = "int32",
    leading_zero: bool = True,
) -> Launch:
    """The product on operands that are where it runs."""
    p, packed = inputs.problem, pack(inputs.weight, place=place)
    lead = [p.experts, p.token_padding] if p.token_padding else [p.num_rows]
    x = float8_tensor(inputs.x.reshape(*lead, p.in_features), place)
    tokens = int_tensor(p.tokens(leading_zero=leading_zero), tokens_dtype, place)
    scale, bias = inputs.x_scale, inputs.bias
    if scale is not None and p.x_scale == "token":
        scale = scale.reshape(lead)
    options: dict[str, Any] = {
        "group_scale": packed.group_scale,
        "x_scale": None if scale is None else float_tensor(scale, "float32", place),
        "bias": None if bias is None else float_tensor(bias, out_dtype, place),
        **{"weight_format": p.weight_format, "group_size": p.group_size},
        **{"token_padding": p.token_padding, "out_dtype": out_dtype, "accumulation": accumulation},
    }

    def launch(activation: Any, hint: int) -> paddle.Tensor:
        operands = (x, packed.weight, packed.weight_scale, tokens)
        return ops.group_gemm(*operands, activation=activation, max_tokens=hint, **options)

    return launch


def poison(shape: list[int], dtype: str, place: Any) -> None:
    """Leaves NaN in the memory that the next tensor of this shape probably gets."""
    float_tensor(np.full(shape, np.nan), dtype, place)


def holds_token(p: GemmProblem) -> NDArray[np.bool_]:
    live = np.zeros(p.num_rows, bool)
    for expert in range(p.experts):
        live[p.rows_of(expert)] = True
    return live


def activated_bits(h: Bits, activation: Any, dtype: str, place: Any) -> Bits:
    """What activation_quant makes of rows before it quantises them, in bits of `dtype`.

    Each feature is given a row of its own, whose largest magnitude it is: FP8's 448 times the
    scale, which is off by a float32 unit at most. Below the least scale it comes as any number.
    """
    pairs = np.stack([half.ravel() for half in np.split(h, 2, axis=-1)], axis=1)
    out, scale = ops.activation_quant(
        float_tensor(values_of(np.ascontiguousarray(pairs), dtype), dtype, place),
        int_tensor([len(pairs)], "int32", place),
        activation=activation,
    )
    values = float8.decode(tensor_bits(out))[:, 0] * tensor_bits(scale).view(np.float32)
    return bits_of(values, dtype).reshape(len(h), h.shape[1] // 2)


def check(
    place: Any,
    inputs: GemmInputs,
    activation: str,
    *,
    out_dtype: str = "bfloat16",
    hadamard_block_size: int = -1,
    **options: Any,
) -> None:
    """The output, and what becomes of it, for every tile."""
    p = inputs.problem
    launch = launcher(place, inputs, out_dtype=out_dtype, **options)
    live = holds_token(p)
    tokens = int_tensor(p.tokens(), "int32", place)

    def quantised(h: paddle.Tensor, name: Any) -> list[Bits]:
        both = ops.activation_quant(
            *(h, tokens),
            activation=name,
            token_padding=p.token_padding,
            hadamard_block_size=hadamard_block_size,
        )
        shapes = (p.num_rows, p.out_features // 2), (p.num_rows,)
        return [tensor_bits(t).reshape(shape)[live] for t, shape in zip(both, shapes, strict=True)]

    seen = np.empty(0)  # the product, whose bits the hint should not change
    for hint in hints(place):
        what = f"{p.out_features} outputs, hint {hint}"
        h = launch("none", hint)
        shape = [*h.shape[:-1], p.out_features // 2]
        poison(shape, out_dtype, place)
        out = launch(activation, hint)
        assert out.shape == shape
        assert out.dtype == h.dtype
        found = tensor_bits(out).reshape(p.num_rows, p.out_features // 2)
        product = tensor_bits(h).reshape(p.num_rows, p.out_features)[live]
        if not np.array_equal(product, seen):
            seen, expected = product, activated_bits(product, activation, out_dtype, place)
        both = np.stack([found[live], expected])
        both[:, (np.abs(values_of(both, out_dtype)) < TINY).all(axis=0)] = 0
        assert_bits_equal(*both, what)
        pairs = zip(quantised(out, "none"), quantised(h, activation), strict=True)
        for one, other in pairs:
            assert_bits_equal(one, other, f"{what}, quantised")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("accumulation", ["default", "half", "float32"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_way_to_sum(
    place: Any, form: str, accumulation: str, out_dtype: str, activation: str
) -> None:
    options = {"out_dtype": out_dtype, "accumulation": accumulation}
    check(place, inputs_of(form), activation, **options)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("out_features", OUT_FEATURES)
@pytest.mark.parametrize("form", FORMATS)
def test_every_size(place: Any, form: str, out_features: int, activation: str) -> None:
    check(place, inputs_of(form, out_features, 128), activation)


# Float16's sums of 5760 in_features are carried (docs/kernel.md); 160 are no whole k blocks.
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("form", "in_features"),
    [("int4", 5760), ("mxfp4", 5760), ("int4", 160), ("int4 groups of 32", 160), ("mxfp4", 32)],
)
def test_in_features(place: Any, form: str, in_features: int, out_dtype: str) -> None:
    inputs = inputs_of(form, 256, in_features, (40, 0, 300))
    check(place, inputs, "swiglu", out_dtype=out_dtype)


# The last k block is half a one; tiles lie in two bands of the weight.
@pytest.mark.parametrize("out_features", [384, 640, 1152])
@pytest.mark.parametrize("form", ["int4", "mxfp4"])
def test_half_a_k_block(place: Any, form: str, out_features: int) -> None:
    check(place, inputs_of(form, out_features, 192, (40, 0, 300)), "swiglu")


# Of few tiles the GPU makes lower ones, of many it evens out the last wave.
@pytest.mark.parametrize("out_features", OUT_FEATURES)
@pytest.mark.parametrize(
    "counts", [(1,), (0, 5), (64, 65), (300,), tuple(i % 7 for i in range(130)), (700, 1) * 4]
)
def test_every_number_of_tiles(place: Any, counts: tuple[int, ...], out_features: int) -> None:
    check(place, inputs_of("int4", out_features, 128, counts), "swiglu")


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", FORMATS)
def test_padded(place: Any, form: str, activation: str) -> None:
    """Rows without a token are NaN, and so is their scale."""
    counts = tuple(count for count in COUNTS if count < 150)
    check(place, inputs_of(form, counts=counts, token_padding=150), activation)


@pytest.mark.parametrize("tokens_dtype", ["int32", "int64"])
@pytest.mark.parametrize("leading_zero", [True, False])
def test_prefix_sums(place: Any, tokens_dtype: str, leading_zero: bool) -> None:
    inputs = inputs_of("int4", counts=(70, 0, 5), spare_rows=20)
    check(place, inputs, "swiglu", tokens_dtype=tokens_dtype, leading_zero=leading_zero)


@pytest.mark.parametrize("x_scale", ["none", "tensor", "token"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
def test_scales_and_biases(place: Any, x_scale: str, has_bias: bool, out_dtype: str) -> None:
    inputs = inputs_of("mxfp4", counts=(70, 0, 5), x_scale=x_scale, has_bias=has_bias)
    check(place, inputs, "swiglu_oai", out_dtype=out_dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_before_a_rotation(place: Any, activation: str) -> None:
    check(place, inputs_of("int4"), activation, hadamard_block_size=64)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("spare_rows", [0, 9])
def test_no_tokens(place: Any, spare_rows: int) -> None:
    inputs = inputs_of("int4", 128, 64, (0, 0), spare_rows=spare_rows)
    check(place, inputs, "swiglu")


def test_nan_stays_in_its_row(place: Any) -> None:
    inputs = inputs_of("int4", counts=(9, 20))
    x = inputs.x.copy()
    x[4, 50] = float8.NAN
    for activation in ACTIVATIONS:
        launches = launcher(place, inputs), launcher(place, dataclasses.replace(inputs, x=x))
        clean, dirty = (tensor_bits(launch(activation, -1)) for launch in launches)
        assert np.isnan(values_of(dirty, "bfloat16")[4]).all()
        others = np.arange(29) != 4
        assert_bits_equal(dirty[others], clean[others])


@pytest.mark.cpu_only
@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("out_features", [8, 72, 200])
def test_sizes_of_the_cpu(place: Any, out_features: int) -> None:
    check(place, inputs_of("int4", out_features, 96, (9, 0, 70)), "swiglu")
