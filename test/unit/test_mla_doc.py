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
"""The examples of docs/mla.md run, and print what stands beside them."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest

pytestmark = pytest.mark.cpu_only

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "mla.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def test_layer() -> None:
    names: dict[str, Any] = {}
    exec(examples()[0], names)
    assert list(names["latent_q"].shape) == [4, 16, 512]
    assert list(names["out"].shape) == [4, 16, 128]
    assert 0 < names["up"].error.k < 1


def test_errors_of_both_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    code = examples()[1]
    exec(code, {})
    (comment,) = re.findall(r"# (ours .*)\n", code)
    assert capsys.readouterr().out.strip() == comment
