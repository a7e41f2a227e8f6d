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
"""The writer of compressed-tensors, and the file writer under both formats."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from checkpoint_sources import (
    FORMATS,
    MemoryCheckpoint,
    assert_same_expert,
    make_checkpoint,
    make_layer,
    write_compressed,
)
from safetensors import safe_open

from w4afp8.checkpoint import CheckpointError, open_checkpoint
from w4afp8.checkpoint.header import read_header
from w4afp8.checkpoint.shard_writer import SafetensorsWriter, TensorSpec
from w4afp8.checkpoint.writers import CompressedTensorsWriter, compressed_expert
from w4afp8.quant import dequantize
from w4afp8.quant.bfloat16 import bfloat16_values
from w4afp8.quant.codes import E2M1_MAGNITUDES

pytestmark = pytest.mark.cpu_only


@pytest.mark.parametrize("weight_format", [name for name in FORMATS if name != "mxfp4"])
def test_int4_as_the_format_defines_it(weight_format: str) -> None:
    """Element i of a row is at bits 4 * (i % 8) of word i / 8, plus 8; the scale multiplies."""
    source = make_checkpoint(**FORMATS[weight_format])
    weights = source.read_expert(source.layers[0], 1)
    tensors = compressed_expert("e", weights)
    rows = {"gate_proj": slice(96), "up_proj": slice(96, 192), "down_proj": slice(None)}
    for name, part in rows.items():
        weight = weights.down if name == "down_proj" else weights.up_gate
        dtype, words = tensors[f"e.{name}.weight_packed"]
        assert (dtype, words.dtype) == ("I32", np.int32)
        unsigned = words.view(np.uint32)[..., None] >> (4 * np.arange(8, dtype=np.uint32))
        values = (unsigned & 15).astype(np.float32).reshape(len(words), -1) - 8
        dtype, stored = tensors[f"e.{name}.weight_scale"]
        scale = bfloat16_values(stored) if dtype == "BF16" else stored
        groups = values.reshape(*scale.shape, -1) * scale[..., None]
        expected = dequantize(weight)[0, part]
        assert np.array_equal(groups.reshape(values.shape), expected)
        assert tensors[f"e.{name}.weight_shape"][1].tolist() == list(expected.shape)
        assert tensors[f"e.{name}.weight_shape"][0] == "I64"


def test_mxfp4_as_the_format_defines_it() -> None:
    source = make_checkpoint(**FORMATS["mxfp4"])
    weights = source.read_expert(source.layers[0], 1)
    tensors = compressed_expert("e", weights)
    codes, scale = (tensors[f"e.up_proj.{name}"] for name in ("weight_packed", "weight_scale"))
    assert (codes[0], scale[0]) == ("U8", "U8")
    nibbles = np.stack([codes[1] & 15, codes[1] >> 4], axis=-1).reshape(96, 5, 32)
    values = E2M1_MAGNITUDES[nibbles & 7] * np.where(nibbles & 8, -1, 1)
    values = values * 2.0 ** (scale[1].astype(int) - 127)[..., None]
    assert np.array_equal(values.reshape(96, 160), dequantize(weights.up_gate)[0, 96:])
    assert "e.up_proj.weight_shape" not in tensors


@pytest.mark.parametrize(
    ("weight_format", "dtype"),
    [("int4 bfloat16 groups", "BF16"), ("int4 groups", "F32"), ("int4 per channel", "F32")],
)
def test_scales_are_bfloat16_only_where_nothing_is_lost(weight_format: str, dtype: str) -> None:
    source = make_checkpoint(**FORMATS[weight_format])
    tensors = compressed_expert("e", source.read_expert(source.layers[0], 0))
    got, stored = tensors["e.gate_proj.weight_scale"]
    assert got == dtype
    assert stored.shape == (96, 1 if "channel" in weight_format else 5)


def test_biases_are_bfloat16_only_where_nothing_is_lost() -> None:
    source = make_checkpoint(has_bias=True)
    weights = source.read_expert(source.layers[0], 0)
    halves = dataclasses.replace(weights, down_bias=np.full(160, 0.5, np.float32))
    tensors = compressed_expert("e", halves)
    assert tensors["e.down_proj.bias"][0] == "BF16"
    assert (tensors["e.down_proj.bias"][1] == 0x3F00).all()
    dtype, up = tensors["e.up_proj.bias"]
    assert dtype == "F32"
    assert np.array_equal(up, weights.up_gate_bias[96:])  # type: ignore[index]


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_the_reader_gets_every_number_back(
    weight_format: str, extras: bool, tmp_path: Path
) -> None:
    options = {"has_bias": True, "activation": "swiglu_oai"} if extras else {}
    source = make_checkpoint(2, 7, extras=extras, **FORMATS[weight_format], **options)
    write_compressed(source, tmp_path, shard_bytes=1)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "compressed-tensors"
    assert checkpoint.layers == source.layers
    for layer in source.layers:
        for expert in range(layer.experts):
            assert_same_expert(
                checkpoint.read_expert(layer, expert), source.read_expert(layer, expert)
            )
        router, expected = checkpoint.read_router(layer), source.read_router(layer)
        assert (router is None) == (expected is None)
        if router is not None and expected is not None:
            assert np.array_equal(router.weight, expected.weight)
            assert np.array_equal(router.correction_bias, expected.correction_bias)  # type: ignore[arg-type]
            assert router.options == expected.options


def test_experts_are_cut_into_files_by_size(tmp_path: Path) -> None:
    source = make_checkpoint(2, 7, experts=5)
    one = 3 * 160 * 96 // 2
    shards = CompressedTensorsWriter(shard_bytes=2 * one + 1).shards(source)
    assert [list(shard.experts) for shard in shards] == [[0, 1], [2, 3], [4]] * 2
    assert len(CompressedTensorsWriter().shards(source)) == 2


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([make_layer(0), make_layer(1, **FORMATS["mxfp4"])], "expected layers of one format"),
        ([make_layer(0), make_layer(1, group_size=-1)], "expected layers of one format"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(layers: list, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        CompressedTensorsWriter().shards(MemoryCheckpoint(layers))


def test_experts_without_a_gate_are_refused() -> None:
    source = make_checkpoint()
    source.layers = (make_layer(activation="gelu"),)
    with pytest.raises(CheckpointError, match="layer 3: expected a gate"):
        CompressedTensorsWriter().shards(source)


SPECS = {
    "small": TensorSpec("F32", (3,)),
    "bits": TensorSpec("BF16", (2, 8)),
    "codes": TensorSpec("U8", (2, 3, 64)),
    "none": TensorSpec("U8", (0, 4)),
    "shape": TensorSpec("I64", (2,)),
}


def test_the_safetensors_package_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 255, (2, 3, 64), np.uint8)
    with SafetensorsWriter(path, SPECS, {"format": "pt"}) as file:
        file.write("small", np.array([1, 2, 3], np.float32))
        file.write("shape", np.array([5, -6], np.int64))
        file.write("bits", np.full((2, 8), 0x3F80, np.uint16))
        file.write_row("codes", 1, codes[1])
        file.write_row("codes", 0, codes[0])
    with safe_open(path, framework="paddle") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(SPECS)
        assert np.array_equal(file.get_tensor("codes").numpy(), codes)
        assert file.get_tensor("small").tolist() == [1, 2, 3]
        assert file.get_tensor("shape").tolist() == [5, -6]
        assert (file.get_tensor("bits").astype("float32").numpy() == 1).all()


def test_tensors_begin_at_multiples_of_their_own_alignment(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with SafetensorsWriter(path, SPECS, {}):
        pass
    offsets = {name: info.offset for name, info in read_header(path).tensors.items()}
    assert offsets["codes"] % 64 == 0
    assert offsets["bits"] % 32 == 0
    assert offsets["shape"] % 16 == 0
    assert offsets["small"] % 4 == 0


@pytest.mark.parametrize(
    "array", [np.zeros(4, np.float32), np.zeros(3, np.float64), np.zeros((1, 3), np.float32)]
)
def test_arrays_that_do_not_fit_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    with (
        SafetensorsWriter(tmp_path / "a.safetensors", SPECS, {}) as file,
        pytest.raises(ValueError, match=r"small: expected float32 \[3\], got "),
    ):
        file.write("small", array)


def test_metadata_of_another_length_is_refused(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "a.safetensors", SPECS, {"hash": "0" * 64}) as file:
        file.replace_metadata({"hash": "f" * 64})
        with pytest.raises(ValueError, match="metadata: expected"):
            file.replace_metadata({"hash": "f" * 200})
    assert read_header(tmp_path / "a.safetensors").metadata == {"hash": "f" * 64}


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(FileExistsError):
        SafetensorsWriter(tmp_path / "a.safetensors", SPECS, {})
    assert (tmp_path / "a.safetensors").read_text() == "mine"
