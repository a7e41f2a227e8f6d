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

import dataclasses
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

import w4afp8
from w4afp8 import ops
from w4afp8.testing.tensors import float8_tensor, float_tensor, int_tensor, tensor_bits

pytestmark = pytest.mark.cpu_only

EXPERTS, OUT, IN, TOPK = 3, 72, 160, 2
FP8 = "float8_e4m3fn"
PROBES = (7, 1, 12)  # numbers of tokens


@dataclasses.dataclass(frozen=True)
class Program:
    """One operator on the inputs that `make` draws, all of them fed."""

    run: Callable[..., Any]
    make: Callable[[np.random.Generator, int], list[paddle.Tensor]]
    free: tuple[tuple[int, ...], ...]  # for each input, the dimensions that are unknown
    traced: tuple[list[int], ...]  # shapes of the outputs, -1 where unknown

    def specs(self) -> list[InputSpec]:
        inputs = self.make(np.random.default_rng(0), 4)
        shapes = [
            [-1 if axis in free else size for axis, size in enumerate(tensor.shape)]
            for tensor, free in zip(inputs, self.free, strict=True)
        ]
        return [InputSpec(s, str(t.dtype)[7:]) for s, t in zip(shapes, inputs, strict=True)]


CPU = paddle.CPUPlace()


def codes(rng: np.random.Generator, out: int = OUT) -> paddle.Tensor:
    return int_tensor(rng.integers(0, 256, (EXPERTS, out, IN // 2)), "uint8", CPU)


def halves(rng: np.random.Generator, *shape: int) -> paddle.Tensor:
    return float_tensor(rng.standard_normal(shape), "bfloat16", CPU)


def floats(rng: np.random.Generator, *shape: int) -> paddle.Tensor:
    return float_tensor(rng.uniform(0.5, 2, shape), "float32", CPU)


def float8s(rng: np.random.Generator, *shape: int) -> paddle.Tensor:
    return float8_tensor(rng.integers(0, 0x7F, shape).astype(np.uint8), CPU)


def sums(rng: np.random.Generator, tokens: int) -> paddle.Tensor:
    inner = np.sort(rng.integers(0, tokens + 1, EXPERTS - 1))
    return int_tensor([0, *inner, tokens], "int32", CPU)


def ids(rng: np.random.Generator, tokens: int) -> paddle.Tensor:
    return int_tensor(rng.integers(0, EXPERTS, (tokens, TOPK)), "int32", CPU)


def gemm_operands(rng: np.random.Generator, tokens: int) -> list[paddle.Tensor]:
    weight = ops.pack_weight(codes(rng))
    return [float8s(rng, tokens, IN), weight, floats(rng, EXPERTS, OUT), sums(rng, tokens)]


def mxfp4_operands(rng: np.random.Generator, tokens: int) -> list[paddle.Tensor]:
    weight = ops.pack_weight(codes(rng), weight_format="mxfp4")
    group_scale = int_tensor(rng.integers(250, 255, (EXPERTS, 2, OUT, 4)), "uint8", CPU)
    x, _, weight_scale, prefix = gemm_operands(rng, tokens)
    return [x, weight, weight_scale, prefix, group_scale]


def grouped_extras(rng: np.random.Generator, tokens: int) -> list[paddle.Tensor]:
    group_scale, x_scale = floats(rng, EXPERTS, IN // 32, OUT), floats(rng, tokens)
    return [*gemm_operands(rng, tokens), group_scale, x_scale, halves(rng, EXPERTS, OUT)]


def padded_operands(rng: np.random.Generator, tokens: int) -> list[paddle.Tensor]:
    _, weight, weight_scale, _ = gemm_operands(rng, tokens)
    # Every row holds a token: the others would hold anything.
    counts = int_tensor([5] * EXPERTS, "int64", CPU)
    return [float8s(rng, EXPERTS, 5, IN), weight, weight_scale, counts]


GEMM_FREE = ((0,), (0, 1, 2), (0,), (0,))
PROGRAMS = {
    "group_gemm": Program(ops.group_gemm, gemm_operands, GEMM_FREE, traced=([-1, OUT],)),
    "group_gemm_grouped": Program(
        lambda x, w, s, t, g, xs, b: ops.group_gemm(
            x, w, s, t, group_scale=g, x_scale=xs, bias=b, group_size=32
        ),
        grouped_extras,
        (*GEMM_FREE, (0,), (0,), (0,)),
        traced=([-1, OUT],),
    ),
    "group_gemm_mxfp4": Program(
        lambda x, w, s, t, g: ops.group_gemm(
            x, w, s, t, group_scale=g, weight_format="mxfp4", out_dtype="float16"
        ),
        mxfp4_operands,
        (*GEMM_FREE, (0,)),
        traced=([-1, OUT],),
    ),
    "group_gemm_padded": Program(
        lambda x, w, s, t: ops.group_gemm(x, w, s, t, token_padding=5),
        padded_operands,
        ((0,), (), (0, 1), ()),
        traced=([-1, 5, -1],),
    ),
    "pack_weight": Program(
        ops.pack_weight,
        lambda rng, tokens: [codes(rng, 8 * tokens)],
        ((0, 1),),
        traced=([-1, -1, 128],),
    ),
    "unpack_weight": Program(
        lambda packed: ops.unpack_weight(packed, out_features=OUT, in_features=IN),
        lambda rng, tokens: [ops.pack_weight(codes(rng))],
        ((0,),),
        traced=([-1, OUT, IN // 2],),
    ),
    "quant_per_token": Program(
        ops.quant_per_token,
        lambda rng, tokens: [halves(rng, tokens, 24)],
        ((0, 1),),
        traced=([-1, -1], [-1]),
    ),
    "activation_quant": Program(
        lambda h, tokens: ops.activation_quant(h, tokens, activation="swiglu_oai"),
        lambda rng, tokens: [halves(rng, tokens, 24), sums(rng, tokens)],
        ((0,), (0,)),
        traced=([-1, 12], [-1]),
    ),
    "moe_route": Program(
        lambda logits: ops.moe_route(logits, topk=TOPK, score="sigmoid", norm_topk_prob=False),
        lambda rng, tokens: [floats(rng, tokens, 8)],
        ((0,),),
        traced=([-1, TOPK], [-1, TOPK]),
    ),
    "moe_route_biased": Program(
        lambda logits, bias: ops.moe_route(
            logits, topk=TOPK, correction_bias=bias, routed_scaling_factor=2.5
        ),
        lambda rng, tokens: [floats(rng, tokens, 8), floats(rng, 8)],
        ((0,), ()),
        traced=([-1, TOPK], [-1, TOPK]),
    ),
    "moe_dispatch": Program(
        lambda x, topk_ids: ops.moe_dispatch(x, topk_ids, experts=EXPERTS),
        lambda rng, tokens: [halves(rng, tokens, 24), ids(rng, tokens)],
        ((0,), (0,)),
        traced=([-1, 24], [-1], [EXPERTS + 1], [-1, TOPK]),
    ),
    "moe_combine": Program(
        ops.moe_combine,
        lambda rng, tokens: [
            halves(rng, tokens * TOPK, 24),
            floats(rng, tokens, TOPK),
            int_tensor(np.arange(tokens * TOPK).reshape(tokens, TOPK), "int32", CPU),
        ],
        ((0,), (0,), (0,)),
        traced=([-1, 24],),
    ),
}


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
        (ops.quant_per_token, [2, 3, 4], "x: expected the shape"),
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
