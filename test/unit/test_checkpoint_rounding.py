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
"""What was lost of weights that are not in 4 bits is told, whether or not anybody asks."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from checkpoint_samples import BY_NAME, PREFIX, draw_experts, spell
from checkpoint_sources import run_convert

from w4afp8.checkpoint import LoadReport, load_moe_ffn, open_checkpoint

pytestmark = pytest.mark.cpu_only

EXPERTS = 3


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    """One layer of float weights."""
    rng = np.random.default_rng(0)
    weights = {
        f"{PREFIX}.experts.{number}.{name}.weight": rng.standard_normal(shape).astype(np.float32)
        for number in range(EXPERTS)
        for name, shape in (("w1", (64, 32)), ("w3", (64, 32)), ("w2", (32, 64)))
    }
    return write_checkpoint(tmp_path / "floats", weights, {})


def load(source: Any, **options: Any) -> LoadReport:
    """Loads the layer; returns the one report."""
    reports: list[LoadReport] = []
    load_moe_ffn(source, layer=3, topk=2, progress=False, report=reports.append, **options)
    (report,) = reports
    return report


def sentence(path: Path, error: float) -> str:
    return f"{path}: layer 3: rounded to 4 bits, relative error {error:.4f} in the worst expert"


def test_of_a_layer_that_is_loaded(floats: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = open_checkpoint(floats, group_size=32)
    report = load(checkpoint)
    (layer,) = checkpoint.layers
    errors = [checkpoint.read_expert(layer, number).error for number in range(EXPERTS)]
    assert report.layer == layer
    assert report.errors == tuple(errors)
    assert min(errors) < report.error < max(errors)
    assert np.square(errors).mean() == pytest.approx(report.error**2)
    assert caplog.messages == [sentence(floats, max(errors))]
    assert caplog.records[0].levelno == logging.WARNING


def test_of_a_native_layer_of_a_rounded_source(
    floats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error = run_convert(floats, tmp_path / "native").errors[3]
    assert caplog.messages == [sentence(floats, error)]
    caplog.clear()
    report = load(tmp_path / "native")
    assert caplog.messages == [sentence(tmp_path / "native", error)]
    source = load(floats)
    # The native format keeps them as float32.
    assert report.errors == tuple(float(np.float32(error)) for error in source.errors)


def test_nothing_is_said_of_codes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = BY_NAME["awq"]
    tensors = spell(case, draw_experts(case, np.random.default_rng(0)))
    folder = write_checkpoint(tmp_path / "awq", tensors, case.config)
    assert set(load(folder).errors) == {0.0}
    run_convert(folder, tmp_path / "native")
    assert set(load(tmp_path / "native").errors) == {0.0}
    assert caplog.messages == []


SCRIPT = """
import sys
from w4afp8.checkpoint import convert, load_moe_ffn

load_moe_ffn(sys.argv[1], layer=3, topk=1)
convert(sys.argv[1], sys.argv[2])
"""


def test_on_standard_error_unless_logging_is_set_up(floats: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(floats), str(tmp_path / "native")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Paddle puts a date before it.
    said = [line.rpartition(" - ")[2] for line in done.stderr.splitlines() if "rounded" in line]
    checkpoint = open_checkpoint(floats)
    layer = checkpoint.layers[0]
    worst = max(checkpoint.read_expert(layer, number).error for number in range(EXPERTS))
    assert said == [sentence(floats, worst)] * 2
