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
"""inspect, convert and verify on the command line: what they print, where, and how they end."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_sources import make_checkpoint, write_compressed
from safetensors.numpy import save_file

from w4afp8.checkpoint.convert import convert
from w4afp8.checkpoint.model import MoELayerInfo
from w4afp8.cli import build_parser, main

pytestmark = pytest.mark.cpu_only


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two layers of int4 groups."""
    write_compressed(make_checkpoint(2, 7), tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    """One layer of float weights."""
    rng = np.random.default_rng(0)
    shapes = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
    weights = {
        f"model.layers.0.mlp.experts.0.{name}.weight": rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }
    (tmp_path / "floats").mkdir()
    save_file(weights, tmp_path / "floats" / "model.safetensors")
    return tmp_path / "floats"


def damage(folder: Path) -> None:
    """Changes one code of the last expert."""
    file = folder / "1.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little")
    entries = json.loads(file.read_bytes()[8 : 8 + header])
    begin, _ = entries["model.layers.7.mlp.experts.2.down_proj.weight_packed"]["data_offsets"]
    data = bytearray(file.read_bytes())
    data[8 + header + begin] ^= 0x04
    file.write_bytes(data)


@pytest.mark.parametrize("command", ["inspect", "convert", "verify"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--weight-format" in capsys.readouterr().out


def test_the_commands_of_the_documents_exist() -> None:
    folder = Path(__file__).resolve().parents[2]
    for document, least in (("README.md", 3), ("docs/checkpoints.md", 4)):
        lines = (folder / document).read_text(encoding="utf-8").splitlines()
        commands = [line for line in lines if re.match(r"w4afp8 (inspect|convert|verify) ", line)]
        assert len(commands) >= least
        for line in commands:
            build_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_the_document_names_what_the_native_header_says() -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
    (row,) = re.findall(r"\| `layer` \| JSON: (.*) \|", document.read_text(encoding="utf-8"))
    assert row.split(", ") == [field.name for field in dataclasses.fields(MoELayerInfo)]


def test_inspect_prints_a_table(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(source)]) == 0
    printed = capsys.readouterr()
    assert "compressed-tensors, 2 layers, 6 experts" in printed.out
    assert printed.out.count("int4, 32") == 2


def test_inspect_prints_json_alone(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(source), "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["layers"][1]["layer"] == 7
    assert printed.err == ""


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_sees_progress(
    quiet: bool,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    monkeypatch.setenv("TERM", "xterm")
    assert main(["inspect", str(source), "--json", *(["--quiet"] if quiet else [])]) == 0
    assert ("inspect" in capsys.readouterr().err) != quiet


def test_a_pipe_sees_no_progress(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(source), "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_inspect_rounds_floats_as_it_is_told(
    floats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["inspect", str(floats), "--json", "--quiet", "--weight-format", "mxfp4"]
    assert main(arguments) == 0
    (layer,) = json.loads(capsys.readouterr().out)["layers"]
    assert layer["weight_format"] == "mxfp4"
    assert layer["error"] > 0


def test_convert_then_verify(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    native, again = str(tmp_path / "native"), str(tmp_path / "again")
    assert main(["convert", str(source), native]) == 0
    assert capsys.readouterr().out.startswith(f"{native}: 2 files, ")
    assert main(["convert", native, again, "--to", "compressed-tensors"]) == 0
    assert "18 scale tensors are float32" in capsys.readouterr().out
    assert main(["verify", str(source), again]) == 0
    assert capsys.readouterr().out.startswith("the same: 276480 weights of 6 experts, bit for bit")


def test_verify_names_the_difference(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(source, tmp_path / "native", progress=False)
    damage(source)
    assert main(["verify", str(source), str(tmp_path / "native")]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("layer 7, expert 2, down[0, 0]: ")
    assert printed.out.count("\n") == 1
    assert "differ" in printed.err


def test_verify_prints_the_worst_alone(
    floats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(floats, tmp_path / "native", progress=False, weight_format="mxfp4")
    assert main(["verify", str(floats), str(tmp_path / "native"), "--worst", "1"]) == 1
    first, more = capsys.readouterr().out.splitlines()
    assert first.startswith("layer 0, expert 0, ")
    assert more == "... and 1 more tensors that differ"


def test_verify_rounds_only_what_is_not_in_4_bits(
    floats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--weight-format", "mxfp4", "--quiet"]
    native = str(tmp_path / "native")
    assert main(["convert", str(floats), native, *options]) == 0
    (message,) = caplog.messages
    assert message.startswith(f"{floats}: layer 0: rounded to 4 bits, relative error 0.1")
    assert main(["verify", str(floats), native, *options]) == 0


def test_scales_rounded_to_bfloat16_stay_so(
    floats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--group-size", "32", "--scale-dtype", "bfloat16", "--to", "compressed-tensors"]
    assert main(["convert", str(floats), str(tmp_path / "new"), *options]) == 0
    assert "float32" not in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "new")]) == 0
    assert "int4, 32" in capsys.readouterr().out


def test_a_broken_run_is_told_to_go_on(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from w4afp8.checkpoint.per_expert import PerExpertCheckpoint

    read_expert = PerExpertCheckpoint.read_expert

    def interrupted(self: Any, layer: Any, expert: int) -> Any:
        if layer.index == 7:
            raise KeyboardInterrupt
        return read_expert(self, layer, expert)

    arguments = ["convert", str(source), str(tmp_path / "native"), "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(PerExpertCheckpoint, "read_expert", interrupted)
        assert main(arguments) == 1
    assert capsys.readouterr().err == "w4afp8 convert: interrupted; run it again to go on\n"
    assert main(arguments) == 0
    assert "2 files, 1 of them from an earlier run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "/no/such/folder"], "expected a .safetensors file or a folder of such"),
        (["convert", "/no/such/folder", "{new}"], "expected a .safetensors file"),
        (["verify", "{source}", "/no/such/folder"], "expected a .safetensors file"),
        (["convert", "{source}", "{source}"], "expected a name that is free"),
        (["inspect", "{source}", "--group-size", "32"], "expected no group_size"),
    ],
)
def test_mistakes_are_a_sentence(
    arguments: list[str],
    message: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"source": source, "new": tmp_path / "new"}
    assert main([argument.format(**names) for argument in arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"w4afp8 {arguments[0]}: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "a", "b", "--to", "gguf"], "invalid choice: 'gguf'"),
        (["convert", "a"], "required: dst"),
        (["verify", "a", "b", "--worst", "0"], "expected at least 1, got 0"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_table_without_rich_says_what_to_do(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("rich.console", "rich.table", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["inspect", str(source)]) == 1
    assert "run 'pip install rich', or ask for --json" in capsys.readouterr().err
    assert main(["inspect", str(source), "--json"]) == 0
