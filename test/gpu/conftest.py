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
"""Fixtures of the tests on a GPU, and the way to the operators' tests of test/unit, which run here
with them. ``make gpu`` runs this folder; elsewhere every test of it is skipped.
"""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

import pytest

# Before Paddle is imported. The device plugin copies from the host on CUDA's default stream, and
# such a copy may return before it has arrived; only blocking streams wait for it.
os.environ.setdefault("HOPPER_STREAM_BLOCKING", "1")

from w4afp8.testing.compare import HOPPER_ACCUMULATOR, Accumulator
from w4afp8.testing.gpu import gpu_place

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
UNIT_TESTS = ROOT / "test" / "unit"
sys.path[:0] = [str(UNIT_TESTS), str(ROOT)]
pytest.register_assert_rewrite(*(path.stem for path in UNIT_TESTS.glob("test_*.py")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what is not for a GPU; does not count it as skipped."""
    items[:] = [item for item in items if not _is_cpu_only(item)]


def _is_cpu_only(item: pytest.Item) -> bool:
    return item.path.parent == pathlib.Path(__file__).parent and bool(
        item.get_closest_marker("cpu_only")
    )


@pytest.fixture
def place() -> Any:
    """Where the tensors of a test live."""
    found = gpu_place()
    if found is None:
        pytest.skip("Paddle sees no GPU")
    return found


@pytest.fixture
def accumulator() -> Accumulator:
    """How the kernels under test sum."""
    return HOPPER_ACCUMULATOR
