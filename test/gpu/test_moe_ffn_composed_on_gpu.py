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
"""test/unit/test_moe_ffn_composed.py with tensors on the GPU, and with more of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_moe_ffn_composed import *  # noqa: F403
from test_moe_ffn_composed import CASES, TOPK, Case, check

from w4afp8.layers.experts import fuses_activation

MANY = {  # tokens whose copies have 40 MiB of outputs, or more
    **{name: 4552 for name in CASES if name.startswith("1536") and name != "1536, a part"},
    "1536, a part": 4552 * 3,
    "384": 18205,
    "384, gpt-oss": 18210,
    "float16": 18210,
    "rotated": 18210,
}


def check_fused(case: Case, tokens: int, place: Any) -> None:
    copies = tokens * TOPK * case.experts // case.router_experts
    assert fuses_activation(copies, 2 * case.intermediate, case.hidden)
    check(case, tokens, place)


# In medium tiles. Behind them some have large ones with 512.
@pytest.mark.parametrize("hidden", [128, 512])
@pytest.mark.parametrize("name", MANY)
def test_the_first_product_applies_the_activation(name: str, hidden: int, place: Any) -> None:
    check_fused(replace(CASES[name], hidden=hidden), MANY[name], place)


@pytest.mark.parametrize(
    "case",
    [
        Case(384),
        Case(384, group_size=128),
        Case(384, "swiglu_oai", "mxfp4"),
        Case(384, weight_format="mxfp4", dtype="float16"),
    ],
    ids=["int4", "groups of 128", "mxfp4, gpt-oss", "mxfp4 in float16"],
)
def test_large_tiles_apply_the_activation(case: Case, place: Any) -> None:
    """From 4096 in_features on."""
    check_fused(replace(case, hidden=4096), 4552, place)


@pytest.mark.parametrize(("name", "tokens"), [("1536", 4551), ("192", 90000)])
def test_or_does_not(name: str, tokens: int, place: Any) -> None:
    case = CASES[name]
    assert not fuses_activation(tokens * TOPK, 2 * case.intermediate, case.hidden)
    check(case, tokens, place)
