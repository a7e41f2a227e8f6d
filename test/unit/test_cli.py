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
"""The command line: help, wrong arguments, messages instead of tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import paddle
import pytest

from w4afp8 import _extension
from w4afp8.cli import main

pytestmark = pytest.mark.cpu_only


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "demo" in printed
    assert "info" in printed


def test_bench_moe_help_says_what_its_routings_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "moe", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "('zipf 0.5'): a model of the skew of real routers, not a trace" in printed


def test_demo_help_names_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    options = ("--text", "--out", "--device", "--dtype", "--rounding", "--copy", "--save-copy")
    assert all(option in printed for option in options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["demo", "--device", "abacus"], "invalid choice: 'abacus'"),
        (["demo", "--dtype", "float32"], "invalid choice: 'float32'"),
        (["demo", "--no-such-option"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_text_is_a_sentence_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--text", str(tmp_path / "none.txt")]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("w4afp8 demo: cannot read")
    assert printed.count("\n") == 1


def test_copy_and_text_exclude_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--copy", "a.npz", "--text", "b.txt"]) == 1
    assert "leave out --text" in capsys.readouterr().err


@pytest.mark.skipif(
    paddle.is_compiled_with_cuda() or bool(paddle.device.get_all_custom_device_type()),
    reason="only where Paddle sees no GPU",
)
def test_no_gpu_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--device", "gpu"]) == 1
    assert "no GPU is visible to Paddle" in capsys.readouterr().err


def test_info_prints_the_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "cuda: " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["demo", "info"])
def test_missing_operators_are_a_sentence_not_a_traceback(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_extension, "_LOADED", ImportError("no file"))
    assert main([command, *(["--device", "cpu"] if command == "demo" else [])]) == 1
    printed = capsys.readouterr().err
    assert f"w4afp8 {command}: the operators of w4afp8 are missing" in printed
    assert _extension.BUILD_COMMAND in printed


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "w4afp8", "demo", "--text", "/no/such/file"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(p for p in sys.path if p)},
    )
    assert done.returncode == 1
    assert "w4afp8 demo: cannot read /no/such/file" in done.stderr
    assert done.stderr.count("\n") == 1  # and no warnings
