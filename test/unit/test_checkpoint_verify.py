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
"""verify finds every difference, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from checkpoint_sources import FORMATS, FULL, MemoryCheckpoint, make_checkpoint, make_layer

from w4afp8.checkpoint import ExpertWeights
from w4afp8.checkpoint.verify import verify
from w4afp8.quant import dequantize

pytestmark = pytest.mark.cpu_only

SPOT = ("model.layers.3.mlp", 1)  # the expert that the tests change


def changed(checkpoint: MemoryCheckpoint, **fields: Any) -> MemoryCheckpoint:
    checkpoint.experts[SPOT] = dataclasses.replace(checkpoint.experts[SPOT], **fields)
    return checkpoint


def with_code(weights: ExpertWeights, row: int, pair: int, byte: int) -> Any:
    codes = weights.down.codes.copy()
    codes[0, row, pair] = byte
    return dataclasses.replace(weights.down, codes=codes)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_the_same(weight_format: str) -> None:
    options = {**FORMATS[weight_format], **FULL}
    report = verify(make_checkpoint(2, 7, **options), make_checkpoint(2, 7, **options))
    assert report.same
    assert report.experts == 2 * 3
    assert report.values == 2 * 3 * 3 * 160 * 96


def test_other_scales_for_the_same_numbers_are_the_same() -> None:
    """MXFP4 of half the codes and twice the scale; 0.5 and 1 are the codes 1 and 2."""
    first, second = (make_checkpoint(**FORMATS["mxfp4"]) for _ in range(2))
    for checkpoint, code, shift in ((first, 0x22, 0), (second, 0x11, 1)):
        down = checkpoint.experts[SPOT].down
        codes = np.full_like(down.codes, code)
        scale = np.full_like(down.scale, 120 + shift)
        changed(checkpoint, down=dataclasses.replace(down, codes=codes, scale=scale))
    assert verify(first, second, progress=False).same


@pytest.mark.parametrize("weight_format", FORMATS)
def test_one_code_is_found_and_named(weight_format: str) -> None:
    first, second = (make_checkpoint(**FORMATS[weight_format]) for _ in range(2))
    down = first.experts[SPOT].down
    byte = int(down.codes[0, 7, 11])
    changed(second, down=with_code(second.experts[SPOT], 7, 11, byte ^ 0x40))
    report = verify(first, second, progress=False)
    assert not report.same
    assert not report.mismatches
    (difference,) = report.differences
    # The high nibble of pair 11 is in_feature 23.
    assert difference.place == (7, 23)
    assert (difference.layer, difference.expert, difference.tensor) == (3, 1, "down")
    assert (difference.count, difference.size) == (1, 160 * 96)
    assert difference.first == dequantize(down)[0, 7, 23]
    assert difference.second == dequantize(second.experts[SPOT].down)[0, 7, 23]
    assert str(difference).startswith("layer 3, expert 1, down[7, 23]: ")
    assert "1 of 15360 differ" in str(difference)


def test_the_worst_comes_first() -> None:
    first, second = (make_checkpoint() for _ in range(2))
    for expert, factor in ((0, 1.5), (1, 4.0), (2, 1.25)):
        key = ("model.layers.3.mlp", expert)
        up_gate = second.experts[key].up_gate
        scaled = dataclasses.replace(up_gate, scale=up_gate.scale * np.float32(factor))
        second.experts[key] = dataclasses.replace(second.experts[key], up_gate=scaled)
    report = verify(first, second, progress=False)
    assert report.differences[0].expert == 1
    worst = [difference.worst for difference in report.differences]
    assert worst == sorted(worst, reverse=True)
    expected = np.abs(
        dequantize(first.experts[SPOT].up_gate).astype(np.float64)
        - dequantize(second.experts[SPOT].up_gate)
    ).max()
    assert worst[0] == expected


def test_the_sign_of_a_zero_is_a_difference() -> None:
    first, second = (make_checkpoint(**FORMATS["mxfp4"]) for _ in range(2))
    for checkpoint, byte in ((first, 0x00), (second, 0x08)):
        changed(checkpoint, down=with_code(checkpoint.experts[SPOT], 0, 0, byte))
    (difference,) = verify(first, second, progress=False).differences
    assert difference.place == (0, 0)
    assert difference.worst == 0
    assert "0.0 against -0.0" in str(difference)


@pytest.mark.parametrize("name", ["up_gate_bias", "down_bias"])
def test_biases_are_compared(name: str) -> None:
    first, second = (make_checkpoint(**FULL) for _ in range(2))
    bias = getattr(second.experts[SPOT], name).copy()
    bias[5] += 1
    (difference,) = verify(first, changed(second, **{name: bias}), progress=False).differences
    assert (difference.tensor, difference.place) == (name, (5,))


@pytest.mark.parametrize("name", ["up_gate_input_scale", "down_input_scale"])
def test_input_scales_are_compared(name: str) -> None:
    first, second = (make_checkpoint(**FULL) for _ in range(2))
    (difference,) = verify(first, changed(second, **{name: 3.0}), progress=False).differences
    assert (difference.tensor, difference.second) == (name, 3.0)
    report = verify(first, changed(second, **{name: None}), progress=False)
    assert report.mismatches == (f"layer 3, expert 1: {name} only in the first",)
    assert not report.same


def test_routers_are_compared() -> None:
    first, second, without = (make_checkpoint(extras=extras) for extras in (True, True, False))
    router = first.read_router(first.layers[0])
    assert router is not None
    weight = router.weight.copy()
    weight[7, 2] += 1
    second.read_router = lambda _: dataclasses.replace(router, weight=weight)  # type: ignore[method-assign]
    (difference,) = verify(first, second, progress=False).differences
    assert (difference.expert, difference.tensor, difference.place) == (None, "weight", (7, 2))
    assert str(difference).startswith("layer 3, router, weight[7, 2]: ")
    messages = verify(first, without, progress=False).mismatches
    assert messages[:2] == (
        "layer 3, router: weight only in the first",
        "layer 3, router: correction_bias only in the first",
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"experts": 2}, "layer 3: experts 3 against 2"),
        ({"intermediate_size": 64}, "layer 3: intermediate_size 96 against 64"),
        ({"activation": "swiglu_oai"}, "layer 3: activation swiglu against swiglu_oai"),
    ],
    ids=str,
)
def test_layers_of_other_sizes_differ(other: dict[str, Any], message: str) -> None:
    report = verify(make_checkpoint(), make_checkpoint(**other), progress=False)
    assert report.mismatches == (message,)
    assert not report.same


def test_a_layer_that_only_one_has_differs() -> None:
    report = verify(make_checkpoint(1, 2), make_checkpoint(2, 5), progress=False)
    assert [text.split(":")[0] for text in report.mismatches] == ["layer 1", "layer 5"]
    assert report.experts == 3


def test_two_layers_of_one_index_are_told_apart_by_their_names() -> None:
    layers = [make_layer(0, prefix=name) for name in ("main.layers.0.mlp", "mtp.layers.0.mlp")]
    first, second = MemoryCheckpoint(layers), MemoryCheckpoint(layers[::-1])
    report = verify(first, second, progress=False)
    assert report.same
    assert report.experts == 6
