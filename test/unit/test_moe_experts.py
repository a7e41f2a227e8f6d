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
"""The experts of a layer on rows that are sorted or padded: one call, and operator by operator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import paddle
import pytest

from w4afp8._extension import extension
from w4afp8._routes import force_route
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.layers.experts import run_experts
from w4afp8.testing import float8
from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.tensors import float8_tensor, float_tensor, int_tensor, tensor_bits


@dataclass(frozen=True)
class Case:
    """`spare_rows`: behind the last token, padded behind the last one of the fullest expert."""

    counts: tuple[int, ...] = (3, 0, 7, 1, 0, 20)
    hidden: int = 128
    intermediate: int = 96
    weight_format: Any = "int4"
    group_size: int = -1
    activation: Any = "swiglu"
    dtype: str = "bfloat16"
    hadamard_block_size: int = -1
    has_bias: bool = False
    is_padded: bool = False
    spare_rows: int = 0
    tokens_dtype: str = "int32"
    starts_at_0: bool = True
    max_tokens: int = -1


MANY = (0, 3, 1, 0, 2, 0) * 100
CASES = {
    "int4": Case(),
    "rows behind the last": Case(spare_rows=9, max_tokens=4),
    "as FastDeploy has tokens": Case(tokens_dtype="int64", starts_at_0=False),
    "padded": Case(is_padded=True, spare_rows=5, tokens_dtype="int64", max_tokens=6),
    "padded, no hint": Case(is_padded=True, weight_format="mxfp4", has_bias=True),
    "groups, rotated": Case(
        group_size=128, intermediate=128, hadamard_block_size=32, dtype="float16"
    ),
    "mxfp4, gpt-oss's": Case(weight_format="mxfp4", activation="swiglu_oai", has_bias=True),
    "gelu": Case(activation="gelu", has_bias=True, hidden=64, intermediate=320),
    "many experts": Case(MANY, 64, 32, tokens_dtype="int64", starts_at_0=False, spare_rows=3),
    "many experts, padded": Case(MANY, 64, 32, tokens_dtype="int64", is_padded=True),
    "no rows": Case(counts=(0, 0, 0)),
    "no tokens": Case(counts=(0, 0, 0), spare_rows=4),
}


class Experts:
    """The projections of a case, and rows for them."""

    def __init__(self, case: Case, place: Any) -> None:
        self.case, self.place = case, place
        rng = np.random.default_rng(0)
        experts = len(case.counts)
        outputs = case.intermediate * (1 if case.activation == "gelu" else 2)
        shapes = (experts, outputs, case.hidden), (experts, case.hidden, case.intermediate)
        biases = [rng.standard_normal(shape[:2]) * 0.1 for shape in shapes]
        layer = W4AFP8MoEFFN.from_float(
            *(rng.standard_normal(shape, np.float32) * 0.1 for shape in shapes),
            topk=1,
            weight_format=case.weight_format,
            group_size=case.group_size,
            activation=case.activation,
            dtype=case.dtype,
            up_gate_bias=biases[0] if case.has_bias else None,
            down_bias=biases[1] if case.has_bias else None,
        )
        layer.to(device=place)
        self.projections = layer.up_gate_proj, layer.down_proj

    def rows(self, seed: int) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """FP8 rows, prefix sums or counts, scales. Rows without a token are NaN."""
        case, rng = self.case, np.random.default_rng(seed)
        holds = self.holds
        x = np.full((*holds.shape, case.hidden), float8.NAN, np.uint8)
        scale = np.full(holds.shape, np.nan, np.float32)
        x[holds] = float8.encode(rng.standard_normal((holds.sum(), case.hidden)) * 16)
        scale[holds] = rng.uniform(0.01, 0.02, holds.sum())
        tokens = np.array(case.counts)
        if not case.is_padded:
            tokens = np.append([0] * case.starts_at_0, np.cumsum(tokens))
        return (
            float8_tensor(x, self.place),
            int_tensor(tokens, case.tokens_dtype, self.place),
            float_tensor(scale, "float32", self.place),
        )

    @property
    def holds(self) -> np.ndarray:
        """Which rows hold a token."""
        counts, spare = np.array(self.case.counts), self.case.spare_rows
        if self.case.is_padded:
            return np.arange(counts.max() + spare) < counts[:, None]
        return np.arange(counts.sum() + spare) < counts.sum()

    def run(self, x: Any, tokens: Any, x_scale: Any, **options: Any) -> paddle.Tensor:
        padding = x.shape[1] if self.case.is_padded else 0
        return run_experts(
            *(*self.projections, x, tokens, x_scale),
            activation=self.case.activation,
            out_dtype=self.case.dtype,
            hadamard_block_size=self.case.hadamard_block_size,
            token_padding=padding,
            max_tokens=self.case.max_tokens,
            **options,
        )

    def run_by_operators(self, *rows: Any) -> paddle.Tensor:
        with force_route("registered"):
            return self.run(*rows)

    def assert_equal(self, out: paddle.Tensor, expected: paddle.Tensor, what: str = "") -> None:
        """Of rows that hold tokens."""
        assert out.dtype == expected.dtype
        assert out.shape == expected.shape
        assert out.place == expected.place
        found, right = (tensor_bits(t)[self.holds] for t in (out, expected))
        assert_bits_equal(found, right, what)


def assert_one_call_has_the_bits_of_the_operators(case: Case, place: Any) -> None:
    experts = Experts(case, place)
    rows = experts.rows(1)
    expected = experts.run_by_operators(*rows)
    assert expected.shape == [*rows[0].shape[:-1], case.hidden]
    assert tensor_bits(expected)[experts.holds].any() == (sum(case.counts) > 0)
    experts.assert_equal(experts.run(*rows), expected)


@pytest.mark.parametrize("name", CASES)
def test_one_call_has_the_bits_of_the_operators(name: str, place: Any) -> None:
    assert_one_call_has_the_bits_of_the_operators(CASES[name], place)


@pytest.mark.parametrize(
    ("in_one_call", "expected"),
    [(True, ["moe_experts"]), (False, ["group_gemm", "activation_quant", "group_gemm"])],
)
def test_eager_experts_are_one_call_unless_told_otherwise(
    in_one_call: bool, expected: list[str], place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    module = extension()

    def recorded(name: str) -> Any:
        run = getattr(module, name)

        def recording(*arguments: Any) -> Any:
            calls.append(name)
            return run(*arguments)

        return recording

    for name in ("group_gemm", "activation_quant", "moe_experts"):
        monkeypatch.setattr(module, name, recorded(name))
    experts = Experts(Case(), place)
    experts.run(*experts.rows(0), in_one_call=in_one_call)
    assert calls == expected


@pytest.mark.parametrize(
    ("case", "written"),
    [
        (Case((0, 8, 3), is_padded=True), [-5, 2**40, 3]),
        (Case((0, 0, 7, 4)), [-1, -7, 0, 7, 11]),
        (Case((0, 0, 7, 4)), [-1, -7, 0, 7, 2**40]),
        (Case((0, 5, 0), starts_at_0=False, spare_rows=4), [-3, 5, 5]),
    ],
    ids=["padded", "sums", "sums beyond the rows", "sums without 0"],
)
def test_counts_without_sense_are_clamped(case: Case, written: list[int], place: Any) -> None:
    """In one call too, whose second product reads them ahead of its turn."""
    experts = Experts(replace(case, tokens_dtype="int64"), place)
    x, tokens, scale = experts.rows(0)
    out = experts.run(x, int_tensor(written, "int64", place), scale)
    experts.assert_equal(out, experts.run(x, tokens, scale))


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(
    ("argument", "given", "message"),
    [
        ("x", (128,), r"x: expected .* got \[128\]"),
        ("x", (31, 64), "weight: expected the shape"),
        ("tokens", (5,), "tokens: expected"),
        ("x_scale", (30,), "x_scale: expected"),
        ("activation", "relu", "activation: expected .* got 'relu'"),
        ("hadamard_block_size", 48, "hadamard_block_size: expected .* got 48"),
        ("dtype", "float32", "out_dtype: expected .* got 'float32'"),
        ("max_tokens", -2, "max_tokens: expected .* got -2"),
    ],
    ids=str,
)
def test_wrong_arguments(argument: str, given: Any, message: str, place: Any) -> None:
    """`given`: a tensor's shape, or an option."""
    experts = Experts(Case(), place)
    rows = dict(zip(("x", "tokens", "x_scale"), experts.rows(0), strict=True))
    if argument == "x":
        rows["x"] = float8_tensor(np.zeros(given, np.uint8), place)
    elif argument == "tokens":
        rows["tokens"] = int_tensor(np.zeros(given), "int32", place)
    elif argument == "x_scale":
        rows["x_scale"] = float_tensor(np.zeros(given), "float32", place)
    else:
        experts.case = replace(experts.case, **{argument: given})
    with pytest.raises(ValueError, match=message):
        experts.run(**rows)
