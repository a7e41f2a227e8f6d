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
"""Keeping ``paddle.jit.to_static`` from rewriting Python that needs no rewriting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import paddle

_Function = TypeVar("_Function", bound=Callable[..., Any])


def run_as_written(function: _Function) -> _Function:
    """Marks a function that a traced program calls as it stands.

    Its branches depend on no tensor's values. Paddle would turn them into branches of the program
    all the same, and shapes into tensors; some Python (``zip(.., strict=True)``) it cannot rewrite.

    Args:
        function: what to mark. Not the ``forward`` that ``to_static`` is called on.

    Returns:
        The same function.
    """
    paddle.jit.not_to_static(function)
    return function
