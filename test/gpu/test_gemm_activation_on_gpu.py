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
"""test/unit/test_gemm_activation.py with tensors on the GPU, and what only a GPU refuses."""

from __future__ import annotations

from typing import Any

import pytest
from bad_input_cases import EXPERTS, GEMM, PADDED_IN
from bad_input_tensors import Zeros
from test_bad_input import call
from test_gemm_activation import *  # noqa: F403
from test_gemm_activation import ACTIVATIONS, check, inputs_of


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("out_features", [8, 64, 192, 136])
def test_sizes_that_are_refused(place: Any, out_features: int, activation: str) -> None:
    padded = -(-out_features // 64) * 64
    arguments = {
        **GEMM,
        "weight": Zeros("uint8", (EXPERTS, padded, PADDED_IN // 2)),
        "weight_scale": Zeros("float32", (EXPERTS, out_features)),
    }
    call("group_gemm", arguments, place)
    message = (
        "out_features of weight_scale with an activation on a GPU: expected a positive multiple of "
        f"128, got {out_features}"
    )
    with pytest.raises(ValueError, match=message):
        call("group_gemm", {**arguments, "activation": activation}, place)


# Of all widths. The last block of some clusters has no outputs.
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("form", "out_dtype"),
    [
        *[(form, "bfloat16") for form in ("int4", "int4 groups of 128", "mxfp4")],
        *[(form, "float16") for form in ("int4", "mxfp4")],
    ],
)
def test_large_tiles(place: Any, form: str, out_dtype: str, activation: str) -> None:
    """Which the hint for them chooses from 4096 in_features on."""
    inputs = inputs_of(form, 1408, 4096, (5, 0, 700, 1, 300, 130, 100))
    check(place, inputs, activation, out_dtype=out_dtype)
