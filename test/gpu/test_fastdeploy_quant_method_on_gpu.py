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
"""test/unit/test_fastdeploy_quant_method.py with tensors on the GPU, and what a call launches."""

from typing import Any

import numpy as np
import pytest
from test_fastdeploy_quant_method import *  # noqa: F403
from test_fastdeploy_quant_method import CASES, float_tensor, loaded, tokens_of
from test_layer_graph import MOST_LAUNCHES, captured, node_types

from w4afp8.testing.gpu import torch_on_paddle_stream
from w4afp8.testing.tensors import tensor_bits


@pytest.mark.parametrize("name", ["dynamic", "dynamic groups"])
def test_a_call_is_the_layers_launches_and_no_more(name: str, place: Any) -> None:
    method, layer = loaded(CASES[name], place)
    x, logits = tokens_of(CASES[name], place)
    given = float_tensor(logits, "float32", place)
    with torch_on_paddle_stream(place) as stream:
        expected = tensor_bits(method.apply_tp(layer, x, lambda _: given))
        graph, out = captured(lambda: method.apply_tp(layer, x, lambda _: given), stream)
        assert len(node_types(graph.raw_cuda_graph())) <= MOST_LAUNCHES
        graph.replay()
        stream.synchronize()
        np.testing.assert_array_equal(tensor_bits(out), expected)
