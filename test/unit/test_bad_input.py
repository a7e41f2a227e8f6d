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
"""Every argument of every operator, wrong in every way: a ValueError with name, expected, got."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import paddle
import pytest
from bad_input_cases import (
    CASES,
    GEMM,
    GROUPED,
    MXFP4,
    OPTIONAL,
    OPTIONS,
    PADDED,
    RIGHT,
    WRONG_KINDS,
)
from bad_input_tensors import Zeros

from w4afp8 import ops


def call(op: str, arguments: dict[str, Any], place: Any) -> Any:
    made = {name: a.on(place) if isinstance(a, Zeros) else a for name, a in arguments.items()}
    return getattr(ops, op)(**made)


def check(place: Any, op: str, arguments: dict[str, Any], expected: str, got: str) -> None:
    """The error names the first argument of `expected`, and what came."""
    with pytest.raises(ValueError, match=f"{re.escape(expected)}.*, got {re.escape(got)}"):
        call(op, arguments, place)


def tensor_arguments() -> list[tuple[str, str]]:
    return [
        (op, name)
        for op, arguments in RIGHT.items()
        for name, value in {**arguments, **OPTIONAL.get(op, {})}.items()
        if isinstance(value, Zeros)
    ]


def with_all_tensors(op: str) -> dict[str, Any]:
    grouped = {"group_size": 32} if op == "group_gemm" else {}
    return {**RIGHT[op], **OPTIONAL.get(op, {}), **grouped}


@pytest.mark.parametrize("op", RIGHT)
def test_the_right_arguments_pass(place: Any, route: str, op: str) -> None:
    call(op, RIGHT[op], place)
    call(op, with_all_tensors(op), place)


@pytest.mark.parametrize("change", [MXFP4, GROUPED, PADDED], ids=["mxfp4", "grouped", "padded"])
def test_the_right_modes_pass(place: Any, route: str, change: dict[str, Any]) -> None:
    call("group_gemm", {**GEMM, **change}, place)


@pytest.mark.parametrize(("op", "name"), tensor_arguments())
def test_not_a_tensor(place: Any, route: str, op: str, name: str) -> None:
    values = [[1, 2], np.zeros(3), 1.0, "x"]
    if name not in OPTIONAL.get(op, {}):
        values.append(None)
    for value in values:
        kind = type(value).__name__
        with pytest.raises(ValueError, match=f"^{name}: expected a paddle.Tensor, got .*{kind}"):
            call(op, {**with_all_tensors(op), name: value}, place)


@pytest.mark.parametrize(("op", "name"), tensor_arguments())
def test_wrong_dtype(place: Any, route: str, op: str, name: str) -> None:
    right = with_all_tensors(op)
    wrong = dataclasses.replace(right[name], dtype="int8")
    check(place, op, {**right, name: wrong}, f"{name}: expected dtype ", "int8")


@pytest.mark.parametrize(("op", "name"), tensor_arguments())
def test_wrong_rank(place: Any, route: str, op: str, name: str) -> None:
    right = with_all_tensors(op)
    shape = (*right[name].shape, 1, 1)
    wrong = dataclasses.replace(right[name], shape=shape)
    check(place, op, {**right, name: wrong}, f"{name}: expected the shape ", str(list(shape)))


@pytest.mark.parametrize(("op", "name"), tensor_arguments())
def test_not_contiguous(place: Any, route: str, op: str, name: str) -> None:
    right = with_all_tensors(op)
    wrong = dataclasses.replace(right[name], form="strided")
    check(place, op, {**right, name: wrong}, f"{name}: expected a contiguous tensor", "strides")


@pytest.mark.parametrize(("op", "name"), tensor_arguments())
def test_sparse(place: Any, route: str, op: str, name: str) -> None:
    right = with_all_tensors(op)
    wrong = Zeros("float32", (4, 4), "sparse")
    expected = f"{name}: expected a dense tensor"
    check(place, op, {**right, name: wrong}, expected, "another kind of tensor")


@pytest.mark.parametrize(
    ("op", "name", "kind"),
    [(op, name, kind) for op, options in OPTIONS.items() for name, kind in options.items()],
)
def test_wrong_kind_of_option(place: Any, route: str, op: str, name: str, kind: type) -> None:
    for value in WRONG_KINDS[kind]:
        if name == "out_dtype" and value is not None:
            continue  # anything may be a dtype; the next test has wrong ones
        with pytest.raises(ValueError, match=f"^.*{name}: expected .*, got "):
            call(op, {**RIGHT[op], name: value}, place)


@pytest.mark.parametrize(("op", "change", "expected", "got"), CASES)
def test_wrong_value(
    place: Any, route: str, op: str, change: dict[str, Any], expected: str, got: str
) -> None:
    check(place, op, {**RIGHT[op], **change}, expected, got)


def test_a_tensor_without_data(place: Any, route: str) -> None:
    with pytest.raises(ValueError, match="codes: expected "):
        ops.pack_weight(paddle.Tensor())


def test_the_route_itself() -> None:
    with (
        pytest.raises(ValueError, match="route: expected 'pybind' or 'registered', got 'fast'"),
        ops.force_route("fast"),  # type: ignore[arg-type]
    ):
        pass
