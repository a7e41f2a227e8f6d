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
"""Every operator as a program with unknown sizes, and inputs for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle.static import InputSpec

from w4afp8 import ops
from w4afp8.testing.tensors import float8_tensor, float_tensor, int_tensor

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
    "group_gemm_activated": Program(
        lambda x, w, s, t: ops.group_gemm(x, w, s, t, activation="swiglu"),
        gemm_operands,
        GEMM_FREE,
        traced=([-1, OUT // 2],),
    ),
    "group_gemm_activated_padded": Program(
        lambda x, w, s, t: ops.group_gemm(x, w, s, t, token_padding=5, activation="swiglu_oai"),
        padded_operands,
        ((0,), (), (0, 1), ()),
        traced=([-1, 5, -1],),
    ),
    "pack_weight": Program(
        ops.pack_weight,
        lambda rng, tokens: [codes(rng, 8 * tokens)],
        ((0, 1),),
        traced=([-1, -1, 96],),
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
    "activation_quant_none": Program(
        lambda h, tokens: ops.activation_quant(h, tokens, activation="none"),
        lambda rng, tokens: [halves(rng, tokens, 24), sums(rng, tokens)],
        ((0, 1), (0,)),
        traced=([-1, -1], [-1]),
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
    "moe_route_grouped": Program(
        lambda logits: ops.moe_route(logits, topk=TOPK, n_group=4, topk_group=2),
        lambda rng, tokens: [floats(rng, tokens, 8)],
        ((0, 1),),
        traced=([-1, TOPK], [-1, TOPK]),
    ),
    "moe_dispatch_padded": Program(
        # Every row holds a token: the others would hold anything.
        lambda x, topk_ids: ops.moe_dispatch(
            x, topk_ids, experts=2, token_padding=1, first_expert=4
        ),
        lambda rng, tokens: [
            halves(rng, tokens, 24),
            int_tensor([[4, 5]] * tokens, "int32", CPU),
        ],
        ((0,), (0,)),
        traced=([2, 1, 24], [2, 1], [2], [-1, TOPK]),
    ),
    "activation_quant_hadamard": Program(
        lambda h, tokens: ops.activation_quant(h, tokens, hadamard_block_size=16),
        lambda rng, tokens: [halves(rng, tokens, 96), sums(rng, tokens)],
        ((0,), (0,)),
        traced=([-1, 48], [-1]),
    ),
    "moe_combine_shared": Program(
        lambda y, weights, rows, shared: ops.moe_combine(y, weights, rows, shared_output=shared),
        lambda rng, tokens: [
            halves(rng, EXPERTS, tokens, 24),
            floats(rng, tokens, TOPK),
            ids(rng, tokens),
            halves(rng, tokens, 24),
        ],
        ((0, 1), (0,), (0,), (0,)),
        traced=([-1, 24],),
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
    "mla_k_up": Program(
        lambda q, w_k, w_k_scale: ops.mla_k_up(q[:, :, :64], w_k, w_k_scale),
        lambda rng, tokens: [
            halves(rng, tokens, 2, 96),
            int_tensor(rng.integers(0, 256, (2, 128, 32)), "uint8", CPU),
            int_tensor(rng.integers(120, 130, (2, 4, 64)), "uint8", CPU),
        ],
        ((0,), (), ()),
        traced=([-1, 2, 128],),
    ),
    "mla_v_up": Program(
        ops.mla_v_up,
        lambda rng, tokens: [
            halves(rng, tokens, 2, 128),
            int_tensor(rng.integers(0, 256, (2, 64, 64)), "uint8", CPU),
            int_tensor(rng.integers(120, 130, (2, 64, 4)), "uint8", CPU),
        ],
        ((0, 1), (0, 1), (0,)),
        traced=([-1, -1, -1],),
    ),
    "mla_v_up of float8": Program(
        lambda x, w_v, w_v_scale, x_scale: ops.mla_v_up(x, w_v, w_v_scale, x_scale, "float16"),
        lambda rng, tokens: [
            float8s(rng, tokens, 2, 128),
            int_tensor(rng.integers(0, 256, (2, 64, 64)), "uint8", CPU),
            int_tensor(rng.integers(120, 130, (2, 64, 4)), "uint8", CPU),
            floats(rng, tokens, 2),
        ],
        ((0,), (), (), (0,)),
        traced=([-1, 2, 64],),
    ),
    "quant_per_token_and_head": Program(
        ops.quant_per_token_and_head,
        lambda rng, tokens: [halves(rng, tokens, 2, 96)],
        ((0,),),
        traced=([-1, 2, 96], [-1, 2]),
    ),
    "quant_per_token_and_head of unknown heads": Program(
        ops.quant_per_token_and_head,
        lambda rng, tokens: [halves(rng, tokens, 2, 96)],
        ((0, 1, 2),),
        traced=([-1, -1, -1], [-1, -1]),
    ),
}
