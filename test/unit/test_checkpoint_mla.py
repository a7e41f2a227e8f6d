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
"""``kv_b_proj`` read from checkpoints of every form, whole and by ranks; what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import Tensors, write_checkpoint

from w4afp8.checkpoint import CheckpointError, SafetensorsFiles, load_mla_up, read_kv_b_proj
from w4afp8.quant import UpError, split_kv_b_proj, unpack_kv_b_proj
from w4afp8.testing.mla import MLAProblem, random_kv_b_proj
from w4afp8.testing.tensors import tensor_bits

pytestmark = pytest.mark.cpu_only

P = MLAProblem(0, 8, 64, 256, 128)
CONFIG = {
    **{"num_attention_heads": P.heads, "qk_nope_head_dim": P.nope},
    **{"v_head_dim": P.v, "kv_lora_rank": P.lora},
}
PREFIX = "model.layers.3.self_attn.kv_b_proj"
FORMS = ("quark", "compressed-tensors", "fp8-block", "bfloat16", "float32")


def tensors_of(form: str, prefix: str = PREFIX) -> Tensors:
    """As the ecosystem spells them; bfloat16 and FP8 as ml_dtypes, which safetensors writes."""
    q = random_kv_b_proj(P)
    if form in ("quark", "compressed-tensors"):
        field = "weight" if form == "quark" else "weight_packed"
        return {f"{prefix}.{field}": q.codes[0], f"{prefix}.weight_scale": q.scale[0]}
    rng = np.random.default_rng(1)
    if form == "fp8-block":
        bits = rng.integers(0, 0x7F, (P.rows, P.lora)).astype(np.uint8)
        scale = rng.uniform(0.5, 2, (P.rows // 128, P.lora // 128)).astype(np.float32)
        weight = bits.view(ml_dtypes.float8_e4m3fn)
        return {f"{prefix}.weight": weight, f"{prefix}.weight_scale_inv": scale}
    values = rng.standard_normal((P.rows, P.lora), np.float32)
    kind: Any = ml_dtypes.bfloat16 if form == "bfloat16" else np.float32
    return {f"{prefix}.weight": values.astype(kind)}


def write(folder: Path, tensors: Tensors, **config: Any) -> Path:
    return write_checkpoint(folder, tensors, {**CONFIG, **config})


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = tensors_of(form)
    path = write(tmp_path, tensors)
    with caplog.at_level(logging.WARNING, "w4afp8.checkpoint"):
        layer = load_mla_up(path, layer=3)
    weight, *scale = tensors.values()
    expected = split_kv_b_proj(weight, scale[0] if scale else None, P.heads, P.nope, P.v)
    for name in ("w_k", "w_k_scale", "w_v", "w_v_scale"):
        assert (tensor_bits(getattr(layer, name)) == tensor_bits(getattr(expected, name))).all()
    assert layer.error == expected.error
    exact = form in ("quark", "compressed-tensors")
    assert (layer.error == UpError()) is exact
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if exact else 1)
    assert exact or f"{PREFIX}: rounded to 4 bits, relative error 0." in said[0]


def test_the_bytes_of_the_checkpoint_are_in_the_layer(tmp_path: Path) -> None:
    layer = load_mla_up(write(tmp_path, tensors_of("quark")), layer=PREFIX)
    back, q = unpack_kv_b_proj(layer.weights), random_kv_b_proj(P)
    assert (back.codes == q.codes).all()
    assert (back.scale == q.scale).all()


@pytest.mark.parametrize("form", ["quark", "fp8-block"])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks(form: str, world_size: int, tmp_path: Path) -> None:
    files = SafetensorsFiles(write(tmp_path, tensors_of(form)))
    whole = load_mla_up(files, layer=3, dtype="float16")
    parts = [
        load_mla_up(files, layer=3, rank=rank, world_size=world_size, dtype="float16")
        for rank in range(world_size)
    ]
    assert all(part.activation_dtype == "float16" for part in parts)
    for name in ("w_k", "w_k_scale", "w_v", "w_v_scale"):
        joined = np.concatenate([tensor_bits(getattr(part, name)) for part in parts])
        assert (joined == tensor_bits(getattr(whole, name))).all()


def test_layers_are_told_apart(tmp_path: Path) -> None:
    other = "model.layers.13.self_attn.kv_b_proj"
    both = {**tensors_of("quark"), **tensors_of("bfloat16", other), "model.norm.weight": np.ones(4)}
    path = write(tmp_path, both)
    assert read_kv_b_proj(path, layer=3).scale is not None
    assert read_kv_b_proj(path, layer=13).prefix == other
    for layer in (0, "model.layers.3"):
        with pytest.raises(CheckpointError, match=rf"layer: expected one of .*3 \({PREFIX}\), 13"):
            read_kv_b_proj(path, layer=layer)


def changed(form: str, field: str, change: Any) -> Tensors:
    tensors = tensors_of(form)
    name = f"{PREFIX}.{field}"
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    return tensors


def with_one(value: int) -> Any:
    def change(array: np.ndarray) -> np.ndarray:
        found = array.copy()
        found[5, 6] = value
        return found

    return change


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (changed("quark", "weight_scale", None), "weight_scale: expected this tensor, got none"),
        (changed("quark", "weight", None), "expected weight or weight_packed beside it, got none"),
        (
            changed("quark", "weight", lambda a: a[:64]),
            r"weight: expected shape \[1536, 128\], got \[64, 128\]",
        ),
        (
            changed("quark", "weight_scale", lambda a: a[:, :4]),
            r"weight_scale: expected shape \[1536, 8\], got \[1536, 4\]",
        ),
        (
            changed("quark", "weight_scale", lambda a: a.astype(np.float32)),
            "weight_scale: expected U8 or F8_E8M0, got F32",
        ),
        (changed("quark", "weight_scale", with_one(255)), r"0..254, got 255 at \[5, 6\]"),
        (
            changed("quark", "weight", lambda a: a.astype(np.int32)),
            "weight: expected U8 .* got I32",
        ),
        (
            changed("fp8-block", "weight_scale_inv", None),
            r"weight_scale_inv: expected this tensor \(fp8-block\), got none",
        ),
        (
            changed("float32", "weight", with_one(np.nan)),
            "weight: expected finite numbers, got nan",
        ),
        (
            changed("float32", "weight", lambda a: a[:, :64]),
            r"shape \[1536, 256\], got \[1536, 64\]",
        ),
    ],
)
def test_wrong_tensors(tensors: Tensors, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_mla_up(write(tmp_path, tensors), layer=3)


def test_scales_beyond_bfloat16(tmp_path: Path) -> None:
    path = write(tmp_path, changed("quark", "weight_scale", with_one(253)))
    with pytest.raises(
        CheckpointError, match=r"_scale: expected E8M0 bytes of 0..252 .* got 253 at"
    ):
        load_mla_up(path, layer=3)


@pytest.mark.parametrize("key", CONFIG)
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "8", True])
def test_wrong_config(key: str, value: Any, tmp_path: Path) -> None:
    path = write(tmp_path, tensors_of("quark"), **{key: value})
    with pytest.raises(CheckpointError, match=rf"config.json: {key}: expected a positive integer"):
        read_kv_b_proj(path, layer=3)


@pytest.mark.parametrize(
    ("rank", "world_size", "message"),
    [
        (0, 3, "world_size: expected a divisor of 8 heads, got 3"),
        (2, 2, "rank: expected 0 to 1, got 2"),
    ],
)
def test_wrong_ranks(rank: int, world_size: int, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, tensors_of("quark"))
    with pytest.raises(ValueError, match=message):
        load_mla_up(path, layer=3, rank=rank, world_size=world_size)
