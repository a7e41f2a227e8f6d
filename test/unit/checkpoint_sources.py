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
"""Small checkpoints in memory, of every format, from which the tests of the writers write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w4afp8.checkpoint import (
    Checkpoint,
    ConvertReport,
    ExpertWeights,
    MoELayerInfo,
    RouterWeights,
    SafetensorsFiles,
    convert,
    open_checkpoint,
    verify,
)
from w4afp8.checkpoint.atomic import write_json
from w4afp8.checkpoint.native import NativeCheckpoint
from w4afp8.checkpoint.native_writer import NativeWriter
from w4afp8.checkpoint.writers import CompressedTensorsWriter
from w4afp8.quant import QuantizedWeight, quantize

# in_features of 160 and out_features of 96 and 160 leave padding in every packed tensor.
HIDDEN, INTERMEDIATE, EXPERTS = 160, 96, 3

FORMATS: dict[str, dict[str, Any]] = {
    "int4 per channel": {"weight_format": "int4", "group_size": -1},
    "int4 groups": {"weight_format": "int4", "group_size": 32},
    "int4 bfloat16 groups": {
        "weight_format": "int4",
        "group_size": 32,
        "scale_dtype": "bfloat16",
    },
    "mxfp4": {"weight_format": "mxfp4", "group_size": 32},
}

# Everything that a layer may have besides its weights.
FULL: dict[str, Any] = {"has_bias": True, "activation": "swiglu_oai", "extras": True}


class MemoryCheckpoint(Checkpoint):
    """Random weights; int4 ones hold -8 too."""

    format = "memory"

    def __init__(self, layers: Sequence[MoELayerInfo], *, extras: bool = False) -> None:
        self.path = Path("somewhere/memory")
        self.layers = tuple(layers)
        self.extras = extras
        self.experts = {
            (layer.prefix, expert): self._make(layer, expert)
            for layer in layers
            for expert in range(layer.experts)
        }

    def _make(self, layer: MoELayerInfo, expert: int) -> ExpertWeights:
        rng = np.random.default_rng([*layer.prefix.encode(), expert])
        hidden, intermediate = layer.hidden_size, layer.intermediate_size
        extra: dict[str, Any] = {}
        if layer.has_bias:
            extra["up_gate_bias"] = rng.standard_normal(2 * intermediate, np.float32)
            extra["down_bias"] = rng.standard_normal(hidden, np.float32)
        if self.extras:
            extra["up_gate_input_scale"] = float(np.float32(rng.random() + 0.1))
            extra["down_input_scale"] = float(np.float32(rng.random() + 0.1))
        return ExpertWeights(
            up_gate=make_weight(rng, layer, (1, 2 * intermediate, hidden)),
            down=make_weight(rng, layer, (1, hidden, intermediate)),
            error=0.0 if layer.exact else float(np.float32(0.1 + expert / 8)),
            **extra,
        )

    def read_expert(self, layer: MoELayerInfo, expert: int) -> ExpertWeights:
        return self.experts[layer.prefix, expert]

    def read_router(self, layer: MoELayerInfo) -> RouterWeights | None:
        if not self.extras:
            return None
        rng = np.random.default_rng(layer.index)
        return RouterWeights(
            weight=rng.standard_normal((layer.hidden_size, layer.experts), np.float32),
            correction_bias=rng.standard_normal(layer.experts, np.float32),
            options={"scoring": "sigmoid", "routed_scaling_factor": 2.5},
        )


def make_weight(
    rng: np.random.Generator, layer: MoELayerInfo, shape: tuple[int, ...]
) -> QuantizedWeight:
    """One projection of one expert."""
    rounding: Any = "absmax/7.5" if layer.weight_format == "int4" else "absmax/7"
    # One group of zeros, and magnitudes of many binades.
    values = rng.standard_normal(shape, np.float32) * np.exp2(rng.integers(-9, 3, (*shape[:2], 1)))
    values[:, 5, :32] = 0
    return quantize(
        values.astype(np.float32),
        weight_format=layer.weight_format,
        group_size=layer.group_size,
        scale_dtype=layer.scale_dtype,
        rounding=rounding,
    )


def make_layer(index: int = 3, **changed: Any) -> MoELayerInfo:
    """A layer's description."""
    options: dict[str, Any] = {
        "prefix": f"model.layers.{index}.mlp",
        "experts": EXPERTS,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        **FORMATS["int4 groups"],
    }
    return MoELayerInfo(index=index, **{**options, **changed})


def make_checkpoint(*indices: int, extras: bool = False, **changed: Any) -> MemoryCheckpoint:
    """Layers of one description."""
    return MemoryCheckpoint(
        [make_layer(index, **changed) for index in indices or (3,)], extras=extras
    )


def write_compressed(source: MemoryCheckpoint, folder: Path, **options: Any) -> None:
    """Writes files that `open_checkpoint` opens; a file an expert with ``shard_bytes=1``."""
    writer = CompressedTensorsWriter(**options)
    folder.mkdir(exist_ok=True)
    for number, shard in enumerate(writer.shards(source)):
        writer.write(folder / f"{number}.safetensors", source, shard, lambda: None)
    write_json(folder / "config.json", writer.config(source))


def write_native(source: MemoryCheckpoint, folder: Path) -> NativeCheckpoint:
    """Writes native files, and opens them."""
    writer = NativeWriter()
    for number, shard in enumerate(writer.shards(source)):
        writer.write(folder / f"{number}.safetensors", source, shard, lambda: None)
    return NativeCheckpoint(SafetensorsFiles(folder))


def assert_same_expert(got: ExpertWeights, expected: ExpertWeights) -> None:
    """Every number of both experts has the same bits."""
    for name in ("up_gate", "down"):
        own, other = getattr(got, name), getattr(expected, name)
        assert own.weight_format == other.weight_format
        assert own.group_size == other.group_size
        assert own.scale_dtype == other.scale_dtype
        assert np.array_equal(own.codes, other.codes)
        assert own.scale.dtype == other.scale.dtype
        assert own.scale.tobytes() == other.scale.tobytes()
    for name in ("up_gate_bias", "down_bias"):
        own, other = getattr(got, name), getattr(expected, name)
        assert (own is None) == (other is None)
        assert own is None or (own.dtype, own.tobytes()) == (other.dtype, other.tobytes())
    for name in ("up_gate_input_scale", "down_input_scale", "error"):
        assert getattr(got, name) == getattr(expected, name)


def run_convert(source: Path, destination: Path, **options: Any) -> ConvertReport:
    """`convert` without a bar."""
    return convert(source, destination, progress=False, **options)


def assert_same(first: Path, second: Path) -> None:
    """Both checkpoints hold the same numbers."""
    report = verify(open_checkpoint(first), open_checkpoint(second), progress=False)
    assert report.same, (report.mismatches, report.differences)
    assert report.experts > 0


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
