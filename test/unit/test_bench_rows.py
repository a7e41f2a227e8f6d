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
"""Rows of results, the turns they are timed in, and the command that starts it all."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from w4afp8.bench.command import clean_commit
from w4afp8.bench.errors import BenchError
from w4afp8.bench.rows import KEYS, Machine, format_table, markdown_table, read_rows, write_rows
from w4afp8.bench.turns import medians_in_turns
from w4afp8.cli import main

pytestmark = pytest.mark.cpu_only

MACHINE = Machine("a GPU", "1.2", "13.0", "abc1234")


def test_row_has_every_key_and_null_where_one_does_not_apply() -> None:
    row = MACHINE.row("gemm", {"us": 1.5})
    assert tuple(row) == KEYS
    assert (row["bench"], row["gpu"], row["commit"], row["us"]) == ("gemm", "a GPU", "abc1234", 1.5)
    assert row["heads"] is None
    assert row["time"].endswith("+00:00")


def test_extra_keys_come_last() -> None:
    row = MACHINE.row("numerics", {"data": "normal"}, extra_keys=("data",))
    assert tuple(row) == (*KEYS, "data")


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got also \['speed'\]"):
        MACHINE.row("gemm", {"speed": 1})


def test_rows_come_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert read_rows(path) == []
    write_rows(path, [{"us": 1.0}], append=False)
    write_rows(path, [{"us": None}], append=True)
    assert read_rows(path) == [{"us": 1.0}, {"us": None}]
    write_rows(path, [], append=False)
    assert read_rows(path) == []


def test_tables() -> None:
    assert format_table(["a", "bb"], [["ccc", 1]]) == "a    bb\nccc   1"
    assert markdown_table(["a", "b"], [["c", 1]]) == "|a|b|\n|-|-:|\n|c|1|"


def test_turns_alternate_and_medians_count() -> None:
    order = []
    slow, fast = iter([30.0, 10.0, 20.0]), iter([1.0, 3.0, 2.0])

    def measure(name: str, times: object) -> float:
        order.append(name)
        return next(times)  # type: ignore[call-overload, no-any-return]

    medians = medians_in_turns(
        {"slow": lambda: measure("slow", slow), "fast": lambda: measure("fast", fast)},
        3,
        rest=lambda: order.append("rest"),
    )
    assert medians == {"slow": 20.0, "fast": 2.0}
    assert order == ["rest", "slow", "rest", "fast"] * 3


def git(folder: pathlib.Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=b")
    done = subprocess.run(
        ["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_commit_is_of_a_clean_tree(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BenchError, match="--commit"):
        clean_commit(tmp_path)
    git(tmp_path, "init", "-q")
    file = tmp_path / "a"
    file.write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    assert git(tmp_path, "rev-parse", "HEAD").startswith(clean_commit(tmp_path))
    file.write_text("2")
    with pytest.raises(BenchError, match="differ"):
        clean_commit(tmp_path)


def test_missing_pytorch_is_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["bench", "gemm", "--commit", "abc", "--rows", "/nowhere/rows"]) == 1
    assert capsys.readouterr().err.startswith("w4afp8 bench: ")


@pytest.mark.parametrize(
    "words", [["bench"], ["bench", "gemm", "--set", "all"], ["bench", "numerics", "--device", "x"]]
)
def test_wrong_arguments(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_missing_documents_are_a_sentence(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "report", "--results", str(tmp_path), "--docs", str(tmp_path)]) == 1
    assert "w4afp8 bench report: there is no" in capsys.readouterr().err
