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
"""The demonstration's inputs for tests: the real model and two sentences."""

from __future__ import annotations

import functools
import importlib.util

import pytest

from w4afp8.demo import model_files
from w4afp8.demo.inputs import DemoInputs, load_inputs

PAIR = ("This is an example sentence", "Each sentence is converted")


@functools.cache
def load_pair() -> DemoInputs:
    """Two sentences and the model, read once."""
    if importlib.util.find_spec(model_files.PACKAGE) is None:
        pytest.skip("the demonstration's model is not installed")
    return load_inputs(PAIR)
