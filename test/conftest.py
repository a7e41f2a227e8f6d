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
"""The routes that every test of an operator runs through."""

from __future__ import annotations

from collections.abc import Iterator

import paddle
import pytest
from paddle.jit.dy2static.parameter_recorder import _global_inplace_map, _global_parameter_recorder

from w4afp8._routes import Route, force_route


@pytest.fixture(autouse=True)
def _cpu_is_current() -> Iterator[None]:
    """Paddle's own operators make their tensors on the CPU; ours run where their tensors are."""
    before = paddle.device.get_device()
    paddle.device.set_device("cpu")
    yield
    paddle.device.set_device(before)


@pytest.fixture(autouse=True)
def _failed_traces_are_forgotten() -> Iterator[None]:
    """Paddle keeps the parameters of a trace that raised, under the address of its program.

    Another trace whose program lands on that address would take them for its own and crash.
    """
    yield
    _global_parameter_recorder.params_dict.clear()
    _global_parameter_recorder.tensor2value.clear()
    _global_inplace_map.params_dict.clear()


@pytest.fixture(params=["pybind", "registered"])
def route(request: pytest.FixtureRequest) -> Iterator[Route]:
    """Sends w4afp8.ops through the pybind module, then through Paddle's dispatch."""
    with force_route(request.param):
        yield request.param
