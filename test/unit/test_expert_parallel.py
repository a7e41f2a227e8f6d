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
"""Expert parallelism over real processes, against one process with all experts."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expert_parallel_cases import CASES, PHASES, all_tokens, whole_layer
from expert_parallel_launch import launch

from w4afp8.testing.tensors import tensor_bits

pytestmark = pytest.mark.cpu_only

SURVIVED = 5  # the worker's code after an ExchangeError


@pytest.fixture(scope="module")
def outputs_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Outputs of all cases by name and phase, one array a rank; a number of ranks runs once."""
    known: dict[int, list[Any]] = {}

    def run(world_size: int) -> list[Any]:
        if world_size not in known:
            folder = tmp_path_factory.mktemp(f"ranks{world_size}")
            for rank, ended in enumerate(launch(world_size, folder, "cases")):
                assert ended.code == 0, f"rank {rank}: {ended.errors}"
            known[world_size] = [np.load(folder / f"{rank}.npz") for rank in range(world_size)]
        return known[world_size]

    return run


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", CASES)
def test_same_bits_as_one_process(name: str, phase: str, outputs_of: Any) -> None:
    case = CASES[name]
    expected = tensor_bits(whole_layer(case)(*all_tokens(case)))
    for rank, outputs in enumerate(outputs_of(case.world_size)):
        np.testing.assert_array_equal(outputs[f"{name}/{phase}"], expected[case.tokens_of(rank)])


def test_cases_tell_tokens_apart() -> None:
    """Or mixed up rows would go unnoticed."""
    for case in CASES.values():
        rows = tensor_bits(whole_layer(case)(*all_tokens(case)))
        assert len(np.unique(rows, axis=0)) == len(rows)
        assert not rows.size or (rows & 0x7FFF).any(axis=1).all()


def survivors(folder: Path, how: str, phase: str, lost: int, *, seconds: float) -> int:
    """Loses a rank of four; checks what the others said, and returns its code."""
    ended = launch(4, folder, how, phase, str(lost), seconds=seconds + 45)
    others = [rank for rank in range(4) if rank != lost]
    for rank in others:
        assert ended[rank].code == SURVIVED, ended[rank].errors
        took, message = (folder / f"{rank}.txt").read_text().split("\n", 1)
        assert float(took) < seconds
        assert f"rank {rank}: expected all of 4 ranks to take part in an exchange" in message
    return ended[lost].code


@pytest.mark.parametrize(("phase", "lost"), [("prefill", 0), ("decode", 2)])
def test_a_killed_rank_is_noticed_at_once(phase: str, lost: int, tmp_path: Path) -> None:
    # A closed connection takes no time; the limit is for a busy machine.
    assert survivors(tmp_path, "killed", phase, lost, seconds=10) == -signal.SIGKILL


def test_a_rank_that_refuses_its_tokens_ends_the_others(tmp_path: Path) -> None:
    assert survivors(tmp_path, "refuses", "decode", 1, seconds=10) == 1
    assert (
        "ValueError: x: expected up to 12 tokens to decode, got 13"
        in (tmp_path / "1.log").read_text()
    )
