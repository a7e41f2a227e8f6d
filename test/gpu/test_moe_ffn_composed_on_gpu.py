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
from test_moe_ffn_composed import CASES, TOPK, check

from w4afp8.layers.experts import fuses_activation

MANY = {  # tokens whose copies have 96 MiB of outputs, or more
    **{name: 10923 for name in CASES if name.startswith("1536") and name != "1536, a part"},
    "1536, a part": 10923 * 3,
    "384": 43691,
    "384, gpt-oss": 43700,
    "float16": 43700,
    "rotated": 43700,
}


# Both products have large tiles with 512, of which a gated one needs more than 256, or medium ones.
@pytest.mark.parametrize("hidden", [128, 512])
@pytest.mark.parametrize("name", MANY)
def test_the_first_product_applies_the_activation(name: str, hidden: int, place: Any) -> None:
    case, tokens = replace(CASES[name], hidden=hidden), MANY[name]
    outputs = 2 * case.intermediate
    copies = tokens * TOPK * case.experts // case.router_experts
    assert fuses_activation(copies, outputs, hidden)
    check(case, tokens, place)


@pytest.mark.parametrize(("name", "tokens"), [("1536", 10922), ("192", 90000)])
def test_or_does_not(name: str, tokens: int, place: Any) -> None:
    case = CASES[name]
    assert not fuses_activation(tokens * TOPK, 2 * case.intermediate, case.hidden)
    check(case, tokens, place)
