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
"""test/unit/test_bad_input.py with tensors on the GPU; one of them left on the CPU."""

from __future__ import annotations

from typing import Any

import paddle
import pytest
from bad_input_cases import RIGHT
from bad_input_tensors import FP8, Zeros
from bad_mla_cases import FLOAT8, HEADS, K_UP, NOPE, TOKENS, V_UP
from test_bad_input import *  # noqa: F403
from test_bad_input import call, tensor_arguments, with_all_tensors

FLOAT8_K_UP = {**K_UP, "q_nope": Zeros(FP8, (TOKENS, HEADS, NOPE)), "q_scale": FLOAT8["x_scale"]}
# Every tensor but the first, which says where the operator runs.
LATER_TENSORS = [
    *(
        (op, with_all_tensors(op), name)
        for op, name in tensor_arguments()
        if name != next(iter(RIGHT[op]))
    ),
    ("mla_k_up", FLOAT8_K_UP, "q_scale"),
    ("mla_v_up", {**V_UP, **FLOAT8}, "x_scale"),
]
IDS = [f"{op}-{name}" for op, _, name in LATER_TENSORS]


@pytest.mark.parametrize(("op", "arguments", "name"), LATER_TENSORS, ids=IDS)
def test_left_on_the_cpu(
    place: Any, route: str, op: str, arguments: dict[str, Any], name: str
) -> None:
    left = arguments[name].on(paddle.CPUPlace())
    message = rf"{name}: expected a tensor on Place\(.*\) as the first one, got one on Place\(cpu\)"
    with pytest.raises(ValueError, match=message):
        call(op, {**arguments, name: left}, place)
