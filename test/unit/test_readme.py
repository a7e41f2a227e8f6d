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
"""The README's examples run, and its table is one that the demonstration prints."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from w4afp8.demo.measure import Result
from w4afp8.demo.report import format_table

pytestmark = pytest.mark.cpu_only

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_runs(example: str) -> None:
    names: dict = {}
    exec(example, names)
    assert tuple(names["y"].shape) == (16, 1024)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2


def test_table_has_the_columns_that_are_printed() -> None:
    result = Result("float32", np.ones(2), np.ones(2), 2, 1, 1.0)
    header = format_table([result]).splitlines()[0]
    names = [cell.strip() for cell in header.strip("|").split("|")]
    rows = [line for line in README.splitlines() if line.startswith(f"| {names[0]} ")]
    assert [[cell.strip() for cell in row.strip("|").split("|")] for row in rows] == [names]
