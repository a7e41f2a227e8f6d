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
"""Conversions are exact, whatever wrote the source, and keep what belongs to the layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_sources import (
    FORMATS,
    assert_same,
    content,
    make_checkpoint,
    write_compressed,
)
from checkpoint_sources import run_convert as run
from safetensors.numpy import save_file

from w4afp8.checkpoint import (
    SafetensorsFiles,
    load_moe_ffn,
    open_checkpoint,
)
from w4afp8.checkpoint.files import INDEX_NAME
from w4afp8.checkpoint.native import NativeCheckpoint
from w4afp8.testing.tensors import tensor_bits

pytestmark = pytest.mark.cpu_only


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two layers of int4 groups."""
    write_compressed(make_checkpoint(2, 7), tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_there_and_back(weight_format: str, extras: bool, tmp_path: Path) -> None:
    options = {"has_bias": True, "activation": "swiglu_oai"} if extras else {}
    memory = make_checkpoint(2, 7, extras=extras, **FORMATS[weight_format], **options)
    first, native, again = (tmp_path / name for name in ("first", "native", "again"))
    write_compressed(memory, first)
    report = run(first, native)
    assert (report.path, report.files, report.reused, report.float32_scales) == (native, 2, 0, 0)
    assert report.errors == {2: 0.0, 7: 0.0}
    assert report.nbytes == sum(f.stat().st_size for f in native.glob("*.safetensors"))
    opened = open_checkpoint(native)
    assert isinstance(opened, NativeCheckpoint)
    assert opened.layers == memory.layers
    assert_same(first, native)
    run(native, again, to="compressed-tensors", shard_bytes=1)
    assert_same(first, again)
    for layer in memory.layers:
        router, expected = open_checkpoint(again).read_router(layer), memory.read_router(layer)
        assert (router is None) == (expected is None)
        assert router is None or router.options == expected.options  # type: ignore[union-attr]


def test_the_layer_runs_the_same_from_both(source: Path, tmp_path: Path) -> None:
    import paddle

    run(source, tmp_path / "native")
    x, logits = paddle.randn([5, 160]).astype("bfloat16"), paddle.randn([5, 3])
    outputs = [
        tensor_bits(load_moe_ffn(path, layer=7, topk=2, progress=False)(x, logits))
        for path in (source, tmp_path / "native")
    ]
    assert np.array_equal(outputs[0], outputs[1])


def test_the_source_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)
    run(Path("."), tmp_path / "native")
    native = open_checkpoint(tmp_path / "native")
    assert isinstance(native, NativeCheckpoint)
    assert [s.name for s in native.sources.values()] == ["source", "source"]
    assert {s.format for s in native.sources.values()} == {"compressed-tensors"}


def test_scales_that_are_no_bfloat16_numbers_are_counted(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "native")
    report = run(tmp_path / "native", tmp_path / "again", to="compressed-tensors")
    assert report.float32_scales == 2 * 3 * 3  # layers, experts, projections


def test_the_config_is_kept_but_for_its_quantisation(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text()) | {"num_experts_per_tok": 2}
    (source / "config.json").write_text(json.dumps(config))
    run(source, tmp_path / "native")
    kept = json.loads((tmp_path / "native" / "config.json").read_text())
    assert kept == {"num_experts_per_tok": 2}
    run(tmp_path / "native", tmp_path / "again", to="compressed-tensors")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def test_the_same_source_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(source, tmp_path / name)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert set(content(tmp_path / "a")) == {
        "config.json",
        INDEX_NAME,
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_a_rounded_source_tells_its_error_by_layer(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"gate_proj": (96, 160), "up_proj": (96, 160), "down_proj": (160, 96)}
    weights = {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight": rng.standard_normal(
            shape, np.float32
        )
        for layer in (0, 1)
        for expert in (0, 1)
        for name, shape in shapes.items()
    }
    (tmp_path / "source").mkdir()
    save_file(weights, tmp_path / "source" / "model.safetensors")
    report = run(tmp_path / "source", tmp_path / "native", weight_format="mxfp4")
    checkpoint = open_checkpoint(tmp_path / "source", weight_format="mxfp4")
    for layer in checkpoint.layers:
        errors = [checkpoint.read_expert(layer, expert).error for expert in (0, 1)]
        assert report.errors[layer.index] == max(errors) > 0
    native = open_checkpoint(tmp_path / "native")
    assert not native.layers[0].exact
    assert native.read_expert(native.layers[1], 1).error == np.float32(errors[1])


FIXTURES = Path(__file__).resolve().parents[1] / "data" / "checkpoints"


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("*/")))
def test_what_others_wrote(name: str, tmp_path: Path) -> None:
    """Each ecosystem's checkpoint, to the native format and on to compressed-tensors."""
    first, native, second = FIXTURES / name, tmp_path / "native", tmp_path / "second"
    report = run(first, native)
    run(native, second, to="compressed-tensors")
    assert_same(first, native)
    assert_same(first, second)
    exact = all(layer.exact for layer in open_checkpoint(first).layers)
    assert all((error == 0) == exact for error in report.errors.values())
    source, got = open_checkpoint(first), open_checkpoint(second)
    for layer, other in zip(source.layers, got.layers, strict=True):
        router, kept = source.read_router(layer), got.read_router(other)
        assert (router is None) == (kept is None)
        if router is not None and kept is not None:
            assert np.array_equal(router.weight, kept.weight)
            assert router.options == kept.options


@pytest.mark.parametrize("name", ["group", "channel", "mxfp4"])
def test_the_packages_own_bytes_come_back(name: str, tmp_path: Path) -> None:
    """What the compressed-tensors package wrote, through packing and back: the same tensors."""
    source = FIXTURES / f"compressed_tensors_{name}"
    run(source, tmp_path / "native")
    run(tmp_path / "native", tmp_path / "again", to="compressed-tensors")
    theirs, ours = SafetensorsFiles(source), SafetensorsFiles(tmp_path / "again")
    names = [name for name in theirs.tensors if ".experts." in name]
    assert names
    assert {name for name in ours.tensors if ".experts." in name} == set(names)
    for tensor in names:
        assert ours.info(tensor).dtype == theirs.info(tensor).dtype
        assert np.array_equal(ours.view(tensor), theirs.view(tensor))
    configs = [json.loads((path / "config.json").read_text()) for path in (source, ours.path)]
    theirs_said, we_say = (config.pop("quantization_config") for config in configs)
    assert configs[0] == configs[1]
    for key in ("format", "quant_method", "quantization_status"):
        assert theirs_said[key] == we_say[key]
    weights = [said["config_groups"]["group_0"]["weights"] for said in (theirs_said, we_say)]
    assert weights[0] == weights[1]


def test_there_are_fixtures() -> None:
    assert len(list(FIXTURES.glob("*/"))) >= 10


def test_an_unknown_target(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to: expected one of native, compressed-tensors"):
        run(source, tmp_path / "new", to="gguf")
