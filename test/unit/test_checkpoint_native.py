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
"""The native format: what is written is read, and is used where the file is mapped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from checkpoint_sources import (
    FORMATS,
    FULL,
    MemoryCheckpoint,
    assert_same_expert,
    make_checkpoint,
    write_native,
)
from safetensors import safe_open
from safetensors.numpy import save_file

from w4afp8 import ops
from w4afp8.checkpoint import SafetensorsFiles, load_moe_ffn
from w4afp8.checkpoint.native import is_native
from w4afp8.checkpoint.native_layout import packed_bytes
from w4afp8.checkpoint.native_writer import update_digest
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.quant import QuantizedWeight, pack
from w4afp8.testing.tensors import tensor_bits

pytestmark = pytest.mark.cpu_only

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"


def whole(source: MemoryCheckpoint, name: str) -> QuantizedWeight:
    """All experts of the first layer in one."""
    parts = [getattr(weights, name) for weights in source.experts.values()]
    return dataclasses.replace(
        parts[0],
        codes=np.concatenate([part.codes for part in parts]),
        scale=np.concatenate([part.scale for part in parts]),
    )


@pytest.mark.parametrize("changed", [{}, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_every_number_comes_back(
    weight_format: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    source = make_checkpoint(2, 7, **FORMATS[weight_format], **changed)
    native = write_native(source, tmp_path)
    assert native.layers == source.layers
    for layer in source.layers:
        for expert in range(layer.experts):
            assert_same_expert(native.read_expert(layer, expert), source.read_expert(layer, expert))
        router, expected = native.read_router(layer), source.read_router(layer)
        if expected is None:
            assert router is None
        else:
            assert router is not None
            assert np.array_equal(router.weight, expected.weight)
            assert np.array_equal(router.correction_bias, expected.correction_bias)  # type: ignore[arg-type]
            assert router.bias is None
            assert router.options == expected.options


def test_the_error_of_a_rounded_source_is_kept(tmp_path: Path) -> None:
    source = make_checkpoint(exact=False)
    native = write_native(source, tmp_path)
    layer = native.layers[0]
    assert not layer.exact
    assert [native.read_expert(layer, expert).error for expert in range(3)] == [
        source.read_expert(layer, expert).error for expert in range(3)
    ]


@pytest.mark.parametrize("weight_format", FORMATS)
def test_the_file_holds_the_layers_own_tensors(weight_format: str, tmp_path: Path) -> None:
    """Read with the safetensors package itself, which checks the file too."""
    source = make_checkpoint(**FORMATS[weight_format])
    write_native(source, tmp_path)
    layer = W4AFP8MoEFFN.from_quantized(whole(source, "up_gate"), whole(source, "down"), topk=2)
    state = layer.state_dict()
    with safe_open(tmp_path / "0.safetensors", framework="paddle") as file:
        names = set(file.keys())
        assert names == {f"model.layers.3.mlp.{name}" for name in state}
        for name, tensor in state.items():
            got = file.get_tensor(f"model.layers.3.mlp.{name}")
            assert got.dtype == tensor.dtype
            assert np.array_equal(tensor_bits(got), tensor_bits(tensor))
        metadata = file.metadata()
    assert metadata["format"] == "w4afp8"
    assert metadata["version"] == "2"
    assert "| `version` | `2` |" in DOCUMENT.read_text(encoding="utf-8")
    assert json.loads(metadata["layer"])["hidden_size"] == 160


def test_bytes_in_the_file_are_those_in_memory(tmp_path: Path) -> None:
    source = make_checkpoint()
    native = write_native(source, tmp_path)
    layer = W4AFP8MoEFFN.from_quantized(whole(source, "up_gate"), whole(source, "down"), topk=2)
    assert packed_bytes(native.layers[0]) == layer.weight_bytes


def test_the_source_hash_is_of_the_numbers(tmp_path: Path) -> None:
    source = make_checkpoint(**FORMATS["mxfp4"], **FULL)
    native = write_native(source, tmp_path)
    digest = hashlib.sha256()
    for weights in source.experts.values():
        for name in ("up_gate", "down"):
            weight, scale = getattr(weights, name), getattr(weights, f"{name}_input_scale")
            digest.update(weight.codes.tobytes() + weight.scale.tobytes())
            digest.update(getattr(weights, f"{name}_bias").tobytes())
            digest.update(np.float32(scale).tobytes())
    assert native.sources["model.layers.3.mlp"].sha256 == digest.hexdigest()
    assert native.sources["model.layers.3.mlp"].format == "memory"
    again = hashlib.sha256()
    for expert in range(3):
        update_digest(again, native.read_expert(native.layers[0], expert))
    assert again.hexdigest() == digest.hexdigest()


@pytest.mark.parametrize("weight_format", FORMATS)
def test_loads_without_packing_or_copying(
    weight_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint(**FORMATS[weight_format])
    expected = W4AFP8MoEFFN.from_quantized(whole(source, "up_gate"), whole(source, "down"), topk=2)
    native = write_native(source, tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("packed again")

    for name in ("pack_weight", "unpack_weight"):
        monkeypatch.setattr(ops, name, fail)
    layer = load_moe_ffn(native, layer=3, topk=2, place=paddle.CPUPlace())
    for projection in (layer.up_gate_proj, layer.down_proj):
        for name in ("weight", "weight_scale", "group_scale"):
            tensor = getattr(projection, name)
            if tensor is not None:
                assert is_mapped(tmp_path / "0.safetensors", tensor)
                assert tensor.data_ptr() % 16 == 0  # what the operators ask for
    x, logits = paddle.randn([5, 160]).astype("bfloat16"), paddle.randn([5, 3])
    assert np.array_equal(tensor_bits(layer(x, logits)), tensor_bits(expected(x, logits)))


def is_mapped(path: Path, tensor: paddle.Tensor) -> bool:
    """Whether the tensor's memory is the file's."""
    address = int(tensor.data_ptr())
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return line.endswith(str(path))
    return False


def test_tensors_in_memory_are_not_taken_for_mapped(tmp_path: Path) -> None:
    assert not is_mapped(tmp_path / "0.safetensors", paddle.ones([3]))


def test_the_map_is_private(tmp_path: Path) -> None:
    native = write_native(make_checkpoint(), tmp_path)
    before = (tmp_path / "0.safetensors").read_bytes()
    packed = native.packed_layer(native.layers[0])
    packed.up_gate.weight_scale.fill_(7.0)
    assert (packed.up_gate.weight_scale.numpy() == 7).all()
    assert (tmp_path / "0.safetensors").read_bytes() == before


def test_tensors_outlive_the_checkpoint(tmp_path: Path) -> None:
    source = make_checkpoint()
    native = write_native(source, tmp_path)
    packed = native.packed_layer(native.layers[0])
    del native
    (tmp_path / "0.safetensors").unlink()
    expected = pack(whole(source, "down"))
    assert np.array_equal(tensor_bits(packed.down.weight), tensor_bits(expected.weight))


def test_is_native(tmp_path: Path) -> None:
    write_native(make_checkpoint(), tmp_path)
    assert is_native(SafetensorsFiles(tmp_path))
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "0.safetensors", {"format": "pt"})
    assert not is_native(SafetensorsFiles(tmp_path))
