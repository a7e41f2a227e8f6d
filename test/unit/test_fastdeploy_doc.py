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
"""The example of docs/fastdeploy.md runs, and the document names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from w4afp8 import fastdeploy

pytestmark = pytest.mark.cpu_only

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "fastdeploy.md").read_text("utf-8")


def test_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["y"].shape == [6, 256]


@pytest.mark.parametrize("name", fastdeploy.__all__)
def test_is_named(name: str) -> None:
    assert f"`{name}`" in DOCUMENT
