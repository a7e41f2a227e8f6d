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
"""Native files that are wrong: refused by file and tensor, whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_sources import FORMATS, FULL, make_checkpoint, write_native
from safetensors import safe_open

from w4afp8.checkpoint import CheckpointError, MoELayerInfo, SafetensorsFiles
from w4afp8.checkpoint.native import NativeCheckpoint

pytestmark = pytest.mark.cpu_only


def rewrite_metadata(path: Path, **changed: str | None) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header["__metadata__"] | changed
    header["__metadata__"] = {name: text for name, text in metadata.items() if text is not None}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def layer_with(path: Path, **changed: Any) -> str:
    with safe_open(path, framework="numpy") as file:
        fields = json.loads(file.metadata()["layer"])
    return json.dumps({**fields, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": "1"}, r"version: expected '2' \(convert the original checkpoint again\)"),
        ({"version": None}, "version: expected '2'"),
        ({"layer": None}, "layer: expected a JSON object, got None"),
        ({"layer": "{"}, "layer: expected JSON"),
        ({"layer": "[]"}, "layer: expected a JSON object"),
        ({"layer": "[" * 100_000}, "layer: expected JSON"),
        ({"source": "{}"}, "source: expected"),
        ({"router": '{"options": {"scoring": "dice"}, "limits_groups": false}'}, "router.scoring"),
        ({"router": '{"options": {"hacks": 1}, "limits_groups": false}'}, "router.options.hacks"),
        ({"router": '{"options": {}, "limits_groups": false}'}, r"router\.weight: expected this"),
    ],
    ids=str,
)
def test_wrong_metadata(changed: dict[str, str], message: str, tmp_path: Path) -> None:
    write_native(make_checkpoint(), tmp_path)
    rewrite_metadata(tmp_path / "0.safetensors", **changed)
    with pytest.raises(CheckpointError, match=message):
        NativeCheckpoint(SafetensorsFiles(tmp_path))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"experts": 4}, r"up_gate_proj.weight: expected shape \[4, "),
        ({"experts": 10**9}, "layer.experts: expected 1 to 1024"),
        ({"experts": True}, "layer.experts: expected"),
        ({"hidden_size": 128}, "expected shape"),
        ({"hidden_size": 100}, "layer.in_features: expected a positive multiple of 32"),
        ({"hidden_size": 2**60}, "layer.hidden_size: expected 1 to"),
        ({"group_size": 7}, "layer.group_size: expected"),
        ({"group_size": 64}, "layer.group_size: expected a divisor"),
        ({"scale_dtype": "bfloat16"}, "group_scale: expected BF16, got F32"),
        ({"weight_format": "mxfp4"}, "group_scale: expected U8, got F32"),
        ({"weight_format": "int8"}, "layer.weight_format: expected one of"),
        ({"activation": "gelu"}, "expected shape"),
        ({"has_bias": True}, "bias: expected this tensor, got none"),
        ({"exact": False}, "error: expected this tensor, got none"),
        ({"index": "3"}, "layer.index: expected"),
        ({"more": 1}, "layer: expected"),
        ({"hadamard_block_size": 7}, "layer.hadamard_block_size: expected"),
    ],
    ids=str,
)
def test_wrong_layers(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_native(make_checkpoint(), tmp_path)
    path = tmp_path / "0.safetensors"
    rewrite_metadata(path, layer=layer_with(path, **changed))
    with pytest.raises(CheckpointError, match=message):
        NativeCheckpoint(SafetensorsFiles(tmp_path))


def test_files_from_before_there_were_rotations_are_read(tmp_path: Path) -> None:
    write_native(make_checkpoint(), tmp_path)
    path = tmp_path / "0.safetensors"
    fields = json.loads(layer_with(path))
    assert fields.pop("hadamard_block_size") == -1
    rewrite_metadata(path, layer=json.dumps(fields))
    assert NativeCheckpoint(SafetensorsFiles(tmp_path)).layers[0].hadamard_block_size == -1


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    """Packed int4 per channel and in_features of 96 or 128 have the same types and shapes."""
    write_native(make_checkpoint(**FORMATS["int4 per channel"]), tmp_path)
    path = tmp_path / "0.safetensors"
    rewrite_metadata(path, layer=layer_with(path, intermediate_size=128))
    with pytest.raises(CheckpointError, match="expected"):
        NativeCheckpoint(SafetensorsFiles(tmp_path))


def test_a_layer_twice_is_refused(tmp_path: Path) -> None:
    source = make_checkpoint()
    write_native(source, tmp_path)
    (tmp_path / "1.safetensors").write_bytes((tmp_path / "0.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="expected it once"):
        NativeCheckpoint(SafetensorsFiles(tmp_path))


@pytest.mark.parametrize("weight_format", FORMATS)
def test_scales_that_are_no_numbers_are_refused(weight_format: str, tmp_path: Path) -> None:
    native = write_native(make_checkpoint(**FORMATS[weight_format]), tmp_path)
    path, layer = tmp_path / "0.safetensors", native.layers[0]
    info = SafetensorsFiles(path).info(f"{layer.prefix}.down_proj.weight_scale")
    data = bytearray(path.read_bytes())
    data[info.offset : info.offset + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    native = NativeCheckpoint(SafetensorsFiles(path))
    with pytest.raises(CheckpointError, match=r"down_proj\.weight_scale: "):
        native.packed_layer(layer)
    with pytest.raises(CheckpointError, match=r"down_proj\.weight_scale: expert 0"):
        native.read_expert(layer, 0)


def test_biases_and_routers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    native = write_native(make_checkpoint(**FULL), tmp_path)
    path, layer = tmp_path / "0.safetensors", native.layers[0]
    data = bytearray(path.read_bytes())
    for name in ("down_proj.bias", "down_proj.input_scale", "router.correction_bias"):
        offset = SafetensorsFiles(path).info(f"{layer.prefix}.{name}").offset
        changed = data.copy()
        changed[offset : offset + 4] = np.float32(np.inf).tobytes()
        path.write_bytes(changed)
        native = NativeCheckpoint(SafetensorsFiles(path))
        read = native.read_router if name.startswith("router") else first_expert(native)
        with pytest.raises(CheckpointError, match=rf"{name}: expected finite numbers"):
            read(layer)
        if name == "down_proj.bias":
            with pytest.raises(CheckpointError, match=rf"{name}: expected finite numbers"):
                native.packed_layer(layer)


def first_expert(native: NativeCheckpoint) -> Callable[[MoELayerInfo], Any]:
    return lambda layer: native.read_expert(layer, 0)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_negative_scales_are_refused(weight_format: str, tmp_path: Path) -> None:
    native = write_native(make_checkpoint(**FORMATS[weight_format]), tmp_path)
    path, layer = tmp_path / "0.safetensors", native.layers[0]
    groups = "weight_scale" if layer.group_size == -1 else "group_scale"
    info = SafetensorsFiles(path).info(f"{layer.prefix}.up_gate_proj.{groups}")
    data = bytearray(path.read_bytes())
    # The sign, at the end of the first number; for E8M0 a byte above the channel's largest.
    last = info.offset + {"F32": 3, "BF16": 1, "U8": 0}[info.dtype]
    data[last] = 255 if info.dtype == "U8" else data[last] | 0x80
    path.write_bytes(data)
    native = NativeCheckpoint(SafetensorsFiles(path))
    with pytest.raises(CheckpointError, match=rf"{groups}: expected finite positive scales"):
        native.packed_layer(layer)
    with pytest.raises(CheckpointError, match="expert 0: "):
        native.read_expert(layer, 0)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_mutated_files_are_refused_or_read(weight_format: str, tmp_path: Path) -> None:
    """Any byte of the header or the tensors may be wrong: no other error, and nothing else read."""
    source = make_checkpoint(**FORMATS[weight_format], **FULL)
    write_native(source, tmp_path)
    path = tmp_path / "0.safetensors"
    original = path.read_bytes()
    header = 8 + int.from_bytes(original[:8], "little")
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(80):
        data = bytearray(original)
        place = int(rng.integers(0, header if number % 2 else len(data)))
        data[place] = int(rng.integers(0, 256))
        path.write_bytes(data)
        try:
            native = NativeCheckpoint(SafetensorsFiles(path))
            layer = native.layers[0]
            read = [native.read_expert(layer, expert) for expert in range(layer.experts)]
            native.packed_layer(layer)
            native.read_router(layer)
        except CheckpointError:
            refused += 1
        else:
            assert len(read) == 3
    assert refused > 20  # most bytes of the header matter


@pytest.mark.parametrize("expert", [-1, 3])
def test_an_expert_that_is_not_there(expert: int, tmp_path: Path) -> None:
    native = write_native(make_checkpoint(), tmp_path)
    with pytest.raises(CheckpointError, match=f"expert: expected 0 to 2, got {expert}"):
        native.read_expert(native.layers[0], expert)
