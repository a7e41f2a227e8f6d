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
"""test/unit/test_moe_experts.py with tensors on the GPU; calls one behind the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import test_moe_experts
from test_layer_graph import captured
from test_moe_experts import *  # noqa: F403

from w4afp8.layers.experts import fuses_activation
from w4afp8.testing.gpu import as_torch, torch_on_paddle_stream

CASES = {
    "few": replace(test_moe_experts.CASES["int4"], max_tokens=4),
    "padded": test_moe_experts.CASES["padded"],
    "rotated": test_moe_experts.CASES["groups, rotated"],
}
# Outputs of the first product take 40 MiB.
MANY = test_moe_experts.Case(counts=(900, 0, 2100, 5, 1200), intermediate=2560)


def check_fused(case: test_moe_experts.Case, place: Any) -> None:
    assert fuses_activation(sum(case.counts), 2 * case.intermediate, case.hidden)
    test_moe_experts.assert_one_call_has_the_bits_of_the_operators(case, place)


@pytest.mark.parametrize("weight_format", ["int4", "mxfp4"])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize(("activation", "hidden"), [("swiglu", 288), ("swiglu_oai", 128)])
def test_the_first_product_applies_the_activation(
    activation: str, hidden: int, is_padded: bool, weight_format: str, place: Any
) -> None:
    case = replace(MANY, activation=activation, is_padded=is_padded, weight_format=weight_format)
    case = replace(case, hidden=hidden)
    if is_padded:
        case = replace(case, max_tokens=841)
    check_fused(case, place)


@pytest.mark.parametrize("weight_format", ["int4", "mxfp4"])
def test_large_tiles_apply_the_activation(weight_format: str, place: Any) -> None:
    check_fused(replace(MANY, weight_format=weight_format, intermediate=1280, hidden=4096), place)


@pytest.mark.parametrize("name", CASES)
def test_calls_one_behind_the_other(name: str, place: Any) -> None:
    """Launches begin before the one in front has ended: none may see another call's tokens.

    All batches lie in the same memory, where a copy brings each right before its call.
    """
    case = CASES[name]
    orders = [case.counts, case.counts[::-1], tuple(sorted(case.counts))]
    batches = [
        test_moe_experts.Experts(replace(case, counts=counts), place).rows(seed)
        for seed, counts in enumerate(orders)
    ]
    experts = [test_moe_experts.Experts(replace(case, counts=counts), place) for counts in orders]
    with torch_on_paddle_stream(place) as stream:
        expected = [one.run_by_operators(*rows) for one, rows in zip(experts, batches, strict=True)]
        memory = [tensor.clone() for tensor in batches[0]]

        def run_all() -> list[Any]:
            outs = []
            for one, rows in zip(experts, batches, strict=True):
                for to, tensor in zip(memory, rows, strict=True):
                    as_torch(to).copy_(as_torch(tensor))
                outs.append(one.run(*memory))
            return outs

        graph, replayed = captured(run_all, stream)
        for _ in range(20):
            for out in replayed:
                as_torch(out).fill_(float("nan"))
            graph.replay()
            eager = run_all()
            stream.synchronize()
            for outs in (replayed, eager):
                for one, out, right in zip(experts, outs, expected, strict=True):
                    one.assert_equal(out, right, name)
