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
"""A grouped GEMM with an activation in a CUDA graph: rows without a token are never written."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from test_gemm_activation import (
    ACTIVATIONS,
    FORMATS,
    hints,
    holds_token,
    inputs_of,
    launcher,
)
from test_streams_and_graphs import captured

from w4afp8.testing.compare import assert_bits_equal
from w4afp8.testing.gpu import as_torch, torch_on_paddle_stream
from w4afp8.testing.tensors import tensor_bits

SEVEN = 0x40E0  # in bfloat16
LARGE = {"spare_rows": 40, "out_features": 1408, "in_features": 4096}  # tiles, by a hint


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("options", [LARGE, {"token_padding": 330}], ids=["large", "padded"])
@pytest.mark.parametrize("form", FORMATS)
def test_replays_write_the_rows_of_tokens(
    place: Any, form: str, options: dict[str, int], activation: str
) -> None:
    inputs = inputs_of(form, counts=(70, 0, 300, 1), **options)
    p = inputs.problem
    live = holds_token(p)
    for hint in hints(place):
        launch = functools.partial(launcher(place, inputs), activation, hint)
        graph, out = captured(place, launch)
        with torch_on_paddle_stream(place) as stream:
            as_torch(out).fill_(7.0)
            graph.replay()
            stream.synchronize()
        found, expected = (
            tensor_bits(t).reshape(p.num_rows, p.out_features // 2) for t in (out, launch())
        )
        assert_bits_equal(found[live], expected[live], f"hint {hint}")
        assert (found[~live] == SEVEN).all()
