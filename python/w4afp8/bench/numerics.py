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
"""The error of the grouped GEMM against float64, and what part of it is whose.

Of each output the error is that of the whole operator, ``rounding`` that of rounding the float64
result to the output type, which no kernel can avoid, and ``accumulator`` that of the sum before it
is rounded. All are relative, ||difference|| / ||float64 result||, and the operands that the float64
result is made of are the quantised ones: the error of quantising is not in them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import paddle
from numpy.typing import NDArray

from w4afp8 import ops
from w4afp8.bench.errors import BenchError
from w4afp8.bench.rows import NUMERICS_KEYS, Machine, write_rows
from w4afp8.quant import pack
from w4afp8.quant.quantize import dequantize, quantize
from w4afp8.quant.weights import QuantizedWeight, WeightFormat
from w4afp8.testing import float8
from w4afp8.testing.gpu import gpu_place
from w4afp8.testing.tensors import (
    bits_of,
    float8_tensor,
    float_tensor,
    int_tensor,
    tensor_bits,
    values_of,
)

Data = Literal["normal", "heavy-tailed", "positive"]
Float64 = NDArray[np.float64]

FORMATS: tuple[tuple[WeightFormat, int], ...] = (("int4", -1), ("int4", 128), ("int4", 32))
FORMATS += (("mxfp4", 32),)
DATA: tuple[Data, ...] = ("normal", "heavy-tailed", "positive")
IN_FEATURES = (512, 1024, 2048, 4096, 8192, 16384)
OUT_DTYPES = ("bfloat16", "float16")
OUT_FEATURES, TOKENS = 256, 128
# The hint of tokens per expert chooses the kernel's tile: decode, and prefill, whose result is
# reported. The 128 tokens are the same, and so must the bits be.
DECODE_HINT, PREFILL_HINT = 1, 4096
PROBES = 16  # tokens whose sums are seen unrounded
DEGREES_OF_FREEDOM = 3.0  # of Student's t: heavy tails of finite variance


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """``x`` FP8 bits ``[tokens, in_features]``, one expert's weight, and their float64 product.

    The weight's scales are such that the product's root mean square is between 1/2 and 1: nothing
    of it overflows FP16 and next to nothing is subnormal.
    """

    x: NDArray[np.uint8]
    weight: QuantizedWeight
    product: Float64

    @property
    def size(self) -> float:
        return float(np.sqrt(np.mean(self.product**2)))


def draw(data: Data, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Random numbers of one kind."""
    if data == "heavy-tailed":
        return rng.standard_t(DEGREES_OF_FREEDOM, shape).astype(np.float32)
    normal = rng.standard_normal(shape, np.float32)
    return np.abs(normal) if data == "positive" else normal


def quantized_activations(data: Data, rng: np.random.Generator) -> NDArray[np.uint8]:
    """FP8 bits, each token scaled to the type's whole range, of the longest in_features."""
    x = draw(data, (TOKENS, max(IN_FEATURES)), rng)
    return float8.encode(x * (float8.LARGEST / np.abs(x).max(axis=1, keepdims=True)))


def quantized_weight(
    data: Data, weight_format: WeightFormat, group_size: int, rng: np.random.Generator
) -> QuantizedWeight:
    """One expert's weight of the longest in_features."""
    values = draw(data, (OUT_FEATURES, max(IN_FEATURES)), rng)[None]
    return quantize(values, weight_format=weight_format, group_size=group_size)


def problem_of(x: NDArray[np.uint8], weight: QuantizedWeight, in_features: int) -> Problem:
    """The first ``in_features`` of both operands."""
    per_channel = weight.weight_format == "int4" and weight.group_size == -1
    groups = slice(None) if per_channel else slice(in_features // weight.group_size)
    cut = dataclasses.replace(
        weight, codes=weight.codes[..., : in_features // 2], scale=weight.scale[..., groups]
    )
    x = np.ascontiguousarray(x[:, :in_features])
    product = float8.decode(x) @ dequantize(cut)[0].astype(np.float64).T
    binades = int(np.floor(np.log2(np.sqrt(np.mean(product**2))))) + 1
    if weight.weight_format == "mxfp4":
        scale = (cut.scale.astype(np.int64) - binades).astype(np.uint8)
    else:
        scale = np.ldexp(cut.scale, -binades).astype(np.float32)
    return Problem(x, dataclasses.replace(cut, scale=scale), np.ldexp(product, -binades))


class Operator:
    """The grouped GEMM on one problem, with its tensors in place."""

    def __init__(self, problem: Problem, place: Any, options: dict[str, Any]) -> None:
        self._place, self._options = place, options
        self._weight = problem.weight
        self._packed = pack(problem.weight, place=place)
        self._x = float8_tensor(problem.x, place)
        self._tokens = int_tensor([0, len(problem.x)], "int32", place)

    def bits(
        self, out_dtype: str, max_tokens: int, bias: NDArray[np.float64] | None = None
    ) -> NDArray[np.uint16]:
        """Bits of the output ``[tokens, out_features]``; ``bias`` ``[out_features]``."""
        out = ops.group_gemm(
            self._x,
            self._packed.weight,
            self._packed.weight_scale,
            self._tokens,
            group_scale=self._packed.group_scale,
            bias=None if bias is None else float_tensor(bias[None], out_dtype, self._place),
            weight_format=self._weight.weight_format,
            group_size=self._weight.group_size,
            max_tokens=max_tokens,
            out_dtype=out_dtype,
            **self._options,
        )
        return tensor_bits(out)


def rounded(values: Float64, dtype: str) -> Float64:
    """Values as the output type holds them."""
    return values_of(bits_of(values, dtype), dtype).astype(np.float64)


def accumulator_error(operator: Operator, problem: Problem) -> float:
    """The error of the sums before they are rounded.

    A bias of minus the rounded result leaves the error itself in the output, of which FP16 rounds
    away 2^-11 at most. That resolves 2^-11 * 2^-12 of the result, and the float32 of the epilogue
    rounds by 2^-24 of it.
    """
    squares = 0.0
    for token in np.linspace(0, TOKENS - 1, PROBES).astype(int):
        near = rounded(problem.product[token], "float16")
        left = values_of(operator.bits("float16", PREFILL_HINT, -near)[token], "float16")
        squares += float(np.mean((left.astype(np.float64) + near - problem.product[token]) ** 2))
    probed = problem.product[np.linspace(0, TOKENS - 1, PROBES).astype(int)]
    return float(np.sqrt(squares / PROBES / np.mean(probed**2)))


def relative(difference: Float64, problem: Problem) -> float:
    return float(np.sqrt(np.mean(difference**2))) / problem.size


def measure(problem: Problem, place: Any) -> Iterator[dict[str, Any]]:
    """The values of a row for each output type and accumulation."""
    half, float32, carried = (
        accumulator_error(Operator(problem, place, {"accumulation": accumulation}), problem)
        for accumulation in ("half", "float32", "default")  # default: of float16 here
    )
    for out_dtype, accumulation, accumulator in (
        ("bfloat16", "default", half),
        ("bfloat16", "float32", float32),
        ("float16", "default", carried),
        ("float16", "float32", float32),
        ("float16", "half", half),
    ):
        operator = Operator(problem, place, {"accumulation": accumulation})
        bits = operator.bits(out_dtype, PREFILL_HINT)
        decode_bits = operator.bits(out_dtype, DECODE_HINT)
        result = values_of(bits, out_dtype).astype(np.float64)
        yield {
            "experts": 1,
            "out_features": OUT_FEATURES,
            "in_features": problem.x.shape[1],
            "tokens_per_expert": TOKENS,
            "routing": "even",
            "mode": "prefix",
            "format": problem.weight.weight_format,
            "group_size": problem.weight.group_size,
            "act_scale": "none",
            "out_dtype": out_dtype,
            "accumulation": accumulation,
            "error": relative(result - problem.product, problem),
            "rounding": relative(rounded(problem.product, out_dtype) - problem.product, problem),
            "accumulator": accumulator,
            "tiles_agree": bool((bits == decode_bits).all()),
        }


def measure_all(
    place: Any, in_features: tuple[int, ...] = IN_FEATURES, *, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """The values of every row."""
    for data in DATA:
        rng = np.random.default_rng(seed)
        x = quantized_activations(data, rng)
        for weight_format, group_size in FORMATS:
            weight = quantized_weight(data, weight_format, group_size, rng)
            for length in in_features:
                problem = problem_of(x, weight, length)
                for values in measure(problem, place):
                    yield {**values, "data": data, "error_bound": bound_of(data, values)}


def bound_of(data: Data, values: dict[str, Any]) -> float | None:
    """On normal data, default accumulation: twice the rounding of the output type."""
    promised = data == "normal" and values["accumulation"] == "default"
    return 2 * values["rounding"] if promised else None


def run(device: Literal["cpu", "gpu"], *, rows_file: pathlib.Path, commit: str) -> int:
    """Measures everything into a file, begun anew.

    Returns:
        The number of rows outside their bound, or whose tiles give different bits.

    Raises:
        BenchError: There is no such device.
    """
    if device == "cpu":
        place, machine = paddle.CPUPlace(), Machine("CPU", None, None, commit)
    else:
        from w4afp8.bench.on_gpu.device import this_machine

        place = gpu_place()
        if place is None:
            raise BenchError("Paddle sees no GPU here")
        machine = this_machine(commit)
    write_rows(rows_file, [], append=False)
    num_wrong = 0
    for values in measure_all(place):
        row = machine.row("numerics", values, extra_keys=NUMERICS_KEYS)
        write_rows(rows_file, [row], append=True)
        bound = row["error_bound"]
        num_wrong += not row["tiles_agree"] or (bound is not None and not row["error"] <= bound)
    print(f"{rows_file}: written, {num_wrong} rows outside their bounds")
    return num_wrong
