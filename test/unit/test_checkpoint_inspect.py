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
"""inspect counts and measures what is there, and prints it."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest
from checkpoint_sources import FORMATS, make_checkpoint

from w4afp8.checkpoint import ExpertWeights
from w4afp8.checkpoint.inspect import inspect
from w4afp8.checkpoint.table import print_summary
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.quant import QuantizedWeight
from w4afp8.quant.codes import split_nibbles

pytestmark = pytest.mark.cpu_only


def every_weight(checkpoint: Any) -> list[QuantizedWeight]:
    return [w for e in checkpoint.experts.values() for w in (e.up_gate, e.down)]


@pytest.mark.parametrize("weight_format", FORMATS)
def test_sizes_and_bytes(weight_format: str) -> None:
    checkpoint = make_checkpoint(2, 7, **FORMATS[weight_format])
    summary = inspect(checkpoint, progress=False)
    assert summary.format == "memory"
    assert [layer.layer for layer in summary.layers] == [2, 7]
    first = summary.layers[0]
    assert (first.experts, first.hidden_size, first.intermediate_size) == (3, 160, 96)
    assert (first.weight_format, first.group_size) == (
        checkpoint.layers[0].weight_format,
        checkpoint.layers[0].group_size,
    )
    assert first.packed_bytes == W4AFP8MoEFFN(160, 96, 3, 1, **FORMATS[weight_format]).weight_bytes
    assert first.error == 0


def test_share_of_minus_8() -> None:
    checkpoint = make_checkpoint()
    codes = np.concatenate([split_nibbles(w.codes).reshape(-1) for w in every_weight(checkpoint)])
    share = inspect(checkpoint, progress=False).layers[0].share_of_minus_8
    assert share == (codes == 8).mean()
    assert share > 0
    layer = inspect(make_checkpoint(**FORMATS["mxfp4"]), progress=False).layers[0]
    assert layer.share_of_minus_8 is None


def replace_all(checkpoint: Any, scale: np.ndarray, codes: np.ndarray) -> None:
    """Gives each projection's first three rows these scales and codes; the rest become zeros."""
    for key, expert in checkpoint.experts.items():
        parts = {}
        for name in ("up_gate", "down"):
            weight = getattr(expert, name)
            new_scale, new_codes = np.ones_like(weight.scale), np.zeros_like(weight.codes)
            new_scale[0, :3, :3], new_codes[0, :3, :48] = scale, np.repeat(codes, 16, axis=1)
            parts[name] = dataclasses.replace(weight, scale=new_scale, codes=new_codes)
        checkpoint.experts[key] = ExpertWeights(**parts)


def test_spread_of_int4_scales() -> None:
    checkpoint = make_checkpoint()
    # 0.5 and 3.9 are 2^-1 and 2^1.96: exponents -1 and 1. The third row's group of zeros would be
    # far away from the others.
    scale = np.array([[1, 1, 1], [0.5, 1, 3.9], [2, 2, 1e-9]], np.float32)
    codes = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0]], np.uint8)
    replace_all(checkpoint, scale, codes)
    layer = inspect(checkpoint, progress=False).layers[0]
    assert layer.exponent_spread == 2
    assert layer.smallest_scale == 0.5
    assert layer.largest_scale == np.float32(3.9)


def test_spread_of_mxfp4_scales() -> None:
    checkpoint = make_checkpoint(**FORMATS["mxfp4"])
    scale = np.array([[127, 127, 127], [120, 121, 131], [1, 100, 1]], np.uint8)
    codes = np.array([[1, 1, 1], [1, 1, 1], [0x88, 1, 0]], np.uint8)  # 0x88 is two of -0
    replace_all(checkpoint, scale, codes)
    layer = inspect(checkpoint, progress=False).layers[0]
    assert layer.exponent_spread == 11
    assert layer.smallest_scale == 2.0**-27
    assert layer.largest_scale == 2.0**4


def test_a_layer_of_zeros() -> None:
    checkpoint = make_checkpoint()
    replace_all(checkpoint, np.ones((3, 3), np.float32), np.zeros((3, 3), np.uint8))
    summary = inspect(checkpoint, progress=False)
    assert summary.layers[0].smallest_scale is None
    assert summary.layers[0].exponent_spread == 0
    printed = io.StringIO()
    print_summary(summary, file=printed)
    assert "all zeros" in printed.getvalue()


def test_the_largest_error_of_a_layer_is_told() -> None:
    layer = inspect(make_checkpoint(exact=False), progress=False).layers[0]
    assert layer.error == np.float32(0.1 + 2 / 8)


def test_table() -> None:
    checkpoint = make_checkpoint(2, 7, has_bias=True, activation="swiglu_oai")
    summary = inspect(checkpoint, progress=False)
    printed = io.StringIO()
    print_summary(summary, file=printed)
    text = printed.getvalue()
    assert "2 layers, 6 experts" in text.splitlines()[0]
    rows = [line for line in text.splitlines() if "int4, 32" in line]
    assert len(rows) == 2
    for row, layer in zip(rows, summary.layers, strict=True):
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[0] == str(layer.layer)
        assert "swiglu_oai, biases" in cells
        assert f"{layer.smallest_scale:.3g} to {layer.largest_scale:.3g}" in cells
        assert f"{layer.share_of_minus_8:.2%}" in cells
        assert "exact" in cells


def test_json() -> None:
    summary = inspect(make_checkpoint(), progress=False)
    again = json.loads(json.dumps(dataclasses.asdict(summary)))
    assert again["layers"][0]["experts"] == 3
    assert again["layers"][0]["smallest_scale"] == summary.layers[0].smallest_scale
