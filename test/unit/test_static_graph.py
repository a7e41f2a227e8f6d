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
"""Every operator in a traced program with unknown sizes, saved, and loaded in a new process."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec
from traced_programs import CPU, PROBES, PROGRAMS, Program

import w4afp8
from w4afp8 import ops
from w4afp8.testing.tensors import int_tensor, tensor_bits

pytestmark = pytest.mark.cpu_only


class Traced(paddle.nn.Layer):
    """A program as Paddle saves it."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(  # to_static wants named parameters
        self,
        a: Any,
        b: Any = None,
        c: Any = None,
        d: Any = None,
        e: Any = None,
        f: Any = None,
        g: Any = None,
    ) -> Any:
        return self.program.run(*[t for t in (a, b, c, d, e, f, g) if t is not None])


def as_list(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def dtype_name(tensor: Any) -> str:
    """Traced and eager tensors have dtypes of different classes."""
    return str(paddle.empty([0], dtype=tensor.dtype).dtype)


def assert_same(found: Any, expected: Any) -> None:
    pairs = list(zip(as_list(found), as_list(expected), strict=True))
    for have, want in pairs:
        assert have.dtype == want.dtype
        assert have.shape == want.shape
        np.testing.assert_array_equal(tensor_bits(have), tensor_bits(want))


@pytest.mark.parametrize("name", PROGRAMS)
def test_traced_shapes_keep_what_is_unknown(name: str) -> None:
    program = PROGRAMS[name]
    traced = paddle.jit.to_static(Traced(program), input_spec=program.specs(), full_graph=True)
    outputs = traced.forward.concrete_program.outputs
    eager = as_list(program.run(*program.make(np.random.default_rng(0), 4)))
    assert [list(output.shape) for output in outputs] == list(program.traced)
    assert [dtype_name(output) for output in outputs] == [dtype_name(t) for t in eager]


@pytest.mark.parametrize("name", PROGRAMS)
def test_to_static_gives_the_same_bits(name: str) -> None:
    program = PROGRAMS[name]
    traced = paddle.jit.to_static(Traced(program), input_spec=program.specs(), full_graph=True)
    for seed, tokens in enumerate(PROBES):
        inputs = program.make(np.random.default_rng(seed), tokens)
        assert_same(traced(*inputs), program.run(*inputs))


def test_tracing_by_bytecode_gives_the_same_bits() -> None:
    program = PROGRAMS["group_gemm"]
    traced = paddle.jit.to_static(program.run, full_graph=False)
    inputs = program.make(np.random.default_rng(0), 5)
    assert_same(traced(*inputs), program.run(*inputs))


@pytest.mark.parametrize("name", PROGRAMS)
def test_save_and_load(name: str, tmp_path: pathlib.Path) -> None:
    program = PROGRAMS[name]
    path = str(tmp_path / name)
    paddle.jit.save(Traced(program), path, input_spec=program.specs())
    loaded = paddle.jit.load(path)
    for seed, tokens in enumerate(PROBES):
        inputs = program.make(np.random.default_rng(seed), tokens)
        assert_same(loaded(*inputs), program.run(*inputs))


LOAD = """
import sys
import w4afp8  # registers the operators
import paddle
paddle.device.set_device("cpu")
loaded = paddle.jit.load(sys.argv[1])
out, scale = loaded(paddle.ones([3, 24]).astype("bfloat16"))
print(out.shape == [3, 24], scale.numpy().tolist())
"""


def test_a_new_process_needs_only_the_import(tmp_path: pathlib.Path) -> None:
    program = PROGRAMS["quant_per_token"]
    path = str(tmp_path / "saved")
    paddle.jit.save(Traced(program), path, input_spec=program.specs())
    package = pathlib.Path(w4afp8.__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, path],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == f"True {[float(np.float32(1) / np.float32(448))] * 3}"


def trace(run: Callable[..., Any], shape: list[int], dtype: str = "float32") -> Any:
    program = Program(run, lambda rng, tokens: [], (), ())
    spec = [InputSpec(shape, dtype)]
    return paddle.jit.to_static(Traced(program), input_spec=spec, full_graph=True)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda x: ops.moe_route(None, topk=1), "logits: expected a paddle.Tensor, got None"),
        (lambda x: ops.moe_route(x, topk=2.0), "topk: expected an int, got float"),
        (lambda x: ops.moe_route(x, topk=1, score=None), "score: expected a str, got None"),
    ],
)
def test_wrong_kinds_while_tracing(run: Callable[..., Any], message: str) -> None:
    traced = trace(run, [-1, 4])
    with pytest.raises(ValueError, match=message):
        _ = traced.forward.concrete_program


# Shapes are inferred from arguments that nobody has checked: tracing must survive all of them.
@pytest.mark.parametrize(
    ("run", "shape", "message"),
    [
        (ops.quant_per_token, [3], "x: expected the shape"),
        (ops.quant_per_token, [], "x: expected the shape"),
        (ops.quant_per_token, [2, 3, 4, 5], "x: expected the shape"),
        (lambda x: ops.moe_route(x, topk=0), [3, 4], "topk: expected at least 1"),
        (lambda x: ops.moe_route(x, topk=-7), [3, 4], "topk: expected at least 1"),
        (lambda x: ops.moe_route(x, topk=1), [], "logits: expected the shape"),
        (lambda x: ops.moe_route(x, topk=1, score="x"), [3, 4], "score: expected 'softmax'"),
        (lambda x: ops.moe_dispatch(x, x, experts=-3), [3, 4], "x: expected dtype"),
        (lambda x: ops.moe_dispatch(x, x, experts=2**63 - 1), [], "x: expected dtype"),
        (lambda x: ops.moe_combine(x, x, x), [], "y: expected dtype"),
        (lambda x: ops.activation_quant(x, x, activation="x"), [], "h: expected dtype"),
        (lambda x: ops.activation_quant(x, x, activation="gelu"), [3], "h: expected dtype"),
        (ops.pack_weight, [], "codes: expected dtype"),
        (
            lambda x: ops.unpack_weight(x, out_features=-8, in_features=-64),
            [1],
            "packed: expected dtype",
        ),
        (lambda x: ops.group_gemm(x, x, x, x, out_dtype="x"), [], "x: expected dtype"),
        (lambda x: ops.group_gemm(x, x, x, x, token_padding=-1), [3], "x: expected dtype"),
    ],
)
def test_wrong_values_trace_and_then_raise(
    run: Callable[..., Any], shape: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trace(run, shape)(paddle.ones(shape))


def test_wrong_values_when_a_traced_program_runs() -> None:
    program = PROGRAMS["group_gemm"]
    traced = paddle.jit.to_static(Traced(program), input_spec=program.specs(), full_graph=True)
    x, weight, weight_scale, _ = program.make(np.random.default_rng(0), 4)
    with pytest.raises(ValueError, match=r"tokens: expected prefix sums of 3 experts.*, got 5"):
        traced(x, weight, weight_scale, int_tensor([0, 1, 2, 3, 4], "int32", CPU))
