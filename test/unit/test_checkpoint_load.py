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
"""A checkpoint's layer in W4AFP8MoEFFN: the same numbers and router, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import paddle
import pytest
from checkpoint_files import write_checkpoint
from checkpoint_samples import (
    BY_NAME,
    CASES,
    EXPERTS,
    PREFIX,
    Case,
    draw_experts,
    spell,
)

from w4afp8.checkpoint import CheckpointError, convert, load_moe_ffn, open_checkpoint
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.quant import QuantizedWeight, unpack
from w4afp8.testing.tensors import tensor_bits

pytestmark = pytest.mark.cpu_only

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def written(case: Case, folder: Path, **more: Any) -> Path:
    tensors = spell(case, draw_experts(case, np.random.default_rng(0))) | more
    return write_checkpoint(folder, tensors, case.config)


def load(source: Any, **options: Any) -> W4AFP8MoEFFN:
    return load_moe_ffn(source, **{"layer": 3, "topk": 2, "progress": False} | options)


def weights_of(layer: W4AFP8MoEFFN, projection: str) -> QuantizedWeight:
    return unpack(getattr(layer, projection).packed_weight)


@every_case
def test_the_layer_holds_what_was_read(case: Case, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(written(case, tmp_path))
    layer = load(checkpoint)
    up_gate, down = (weights_of(layer, name) for name in ("up_gate_proj", "down_proj"))
    for number in range(EXPERTS):
        read = checkpoint.read_expert(checkpoint.layers[0], number)
        for got, expected in ((up_gate, read.up_gate), (down, read.down)):
            assert np.array_equal(got.codes[number], expected.codes[0])
            assert got.scale[number].tobytes() == expected.scale[0].tobytes()
        if case.has_bias:
            for got, bias in (
                (layer.up_gate_proj.bias, read.up_gate_bias),
                (layer.down_proj.bias, read.down_bias),
            ):
                bits = bias.astype(ml_dtypes.bfloat16).view(np.uint16)
                assert np.array_equal(tensor_bits(got[number]), bits)
    assert layer.activation == checkpoint.layers[0].activation
    logits = paddle.randn([5, EXPERTS])
    out = layer(paddle.randn([5, case.hidden]).astype("bfloat16"), logits)
    assert bool(paddle.isfinite(out.astype("float32")).all())


def test_bfloat16_scales_stay_so(tmp_path: Path) -> None:
    layer = load(written(BY_NAME["compressed-tensors groups"], tmp_path))
    assert layer.up_gate_proj.group_scale.dtype == paddle.bfloat16


ROUTER = np.random.default_rng(5).standard_normal((EXPERTS, 64)).astype(np.float32)


def with_router(folder: Path, config: dict[str, Any], **tensors: Any) -> Path:
    case = BY_NAME["deepseek"]
    all_tensors = spell(case, draw_experts(case, np.random.default_rng(0)))
    for name, values in tensors.items():
        all_tensors[f"{PREFIX}.{name.replace('__', '.')}"] = values
    return write_checkpoint(folder, all_tensors, config)


@pytest.mark.parametrize("name", ["gate__weight", "router__weight"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_router(name: str, dtype: Any, tmp_path: Path) -> None:
    layer = load(with_router(tmp_path, {}, **{name: ROUTER.astype(dtype)}))
    weight = ROUTER.astype(dtype).astype(np.float32).T
    assert np.array_equal(layer.router.weight.numpy(), weight)
    assert layer.router.correction_bias is None
    assert layer.router.scoring == "softmax"
    assert list(layer(paddle.ones([2, 64]).astype("bfloat16")).shape) == [2, 64]


def test_router_in_the_order_of_paddle(tmp_path: Path) -> None:
    layer = load(with_router(tmp_path, {}, gate__weight=ROUTER.T))
    assert np.array_equal(layer.router.weight.numpy(), ROUTER.T)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("gate__e_score_correction_bias", (EXPERTS,)),
        ("moe_statics__e_score_correction_bias", (1, EXPERTS)),
    ],
)
def test_correction_bias_and_options(name: str, shape: Any, tmp_path: Path) -> None:
    config = {"scoring_func": "sigmoid", "norm_topk_prob": False, "routed_scaling_factor": 2.5}
    bias = np.arange(EXPERTS, dtype=np.float32)
    folder = with_router(tmp_path, config, gate__weight=ROUTER, **{name: bias.reshape(shape)})
    router = load(folder).router
    assert np.array_equal(router.correction_bias.numpy(), bias)
    options = (router.scoring, router.norm_topk_prob, router.routed_scaling_factor)
    assert options == ("sigmoid", False, 2.5)
    assert load(folder, routed_scaling_factor=1.0).router.routed_scaling_factor == 1.0


DEEPSEEK_V3 = {"model_type": "deepseek_v3", "n_group": 2, "topk_group": 1}


def test_groups_of_experts(tmp_path: Path) -> None:
    source = with_router(tmp_path / "source", DEEPSEEK_V3, gate__weight=ROUTER)
    native = convert(source, tmp_path / "native", progress=False).path
    for folder in (source, native):
        router = load(folder, topk=1).router
        assert (router.n_group, router.topk_group, router.scoring) == (2, 1, "sigmoid")
        assert load(folder, topk=1, n_group=1).router.n_group == 1


def test_groups_that_are_no_number(tmp_path: Path) -> None:
    source = with_router(tmp_path, DEEPSEEK_V3 | {"topk_group": "one"}, gate__weight=ROUTER)
    with pytest.raises(CheckpointError, match="topk_group: expected a int, got 'one'"):
        load(source, topk=1)


@pytest.mark.parametrize(
    ("config", "bias", "is_loaded"),
    [
        ({}, np.zeros(EXPERTS, np.float32), True),
        ({}, np.ones(EXPERTS, np.float32), False),
        ({"n_group": 8, "topk_group": 4}, None, False),
        (DEEPSEEK_V3 | {"topk_method": "group_limited_greedy"}, None, False),
        ({"n_group": 1, "topk_group": 1}, None, True),
    ],
    ids=["bias of zeros", "bias", "groups", "other groups", "one group"],
)
def test_a_router_that_the_layer_does_not_compute(
    config: dict[str, Any], bias: Any, is_loaded: bool, tmp_path: Path
) -> None:
    biases = {} if bias is None else {"gate__bias": bias}
    layer = load(with_router(tmp_path, config, gate__weight=ROUTER, **biases))
    assert (layer.router.weight is not None) == is_loaded
    if not is_loaded:
        with pytest.raises(ValueError, match="logits: expected a tensor"):
            layer(paddle.ones([2, 64]).astype("bfloat16"))


def test_shards(tmp_path: Path) -> None:
    """Tensors of one expert in two files, found by the index or without it."""
    case = BY_NAME["deepseek"]
    tensors = spell(case, draw_experts(case, np.random.default_rng(0)))
    whole = load(write_checkpoint(tmp_path / "whole", tensors, {}))
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    folder = tmp_path / "shards"
    for file, part in shards.items():
        write_checkpoint(folder, {name: tensors[name] for name in part}, {})
        (folder / "model.safetensors").rename(folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    for _ in range(2):
        state = load(folder).state_dict()
        for name, tensor in whole.state_dict().items():
            assert np.array_equal(tensor_bits(state[name]), tensor_bits(tensor))
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("progress", [False, True])
def test_progress(progress: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    @contextmanager
    def record(title: str, total: int, *, shown: bool) -> Iterator[Any]:
        seen.append((title, total, shown))
        yield lambda: seen.append("step")

    monkeypatch.setattr("w4afp8.checkpoint.load.show_progress", record)
    load(written(BY_NAME["awq"], tmp_path), progress=progress)
    assert seen == [("layer 3", EXPERTS, progress), *["step"] * EXPERTS]


PEAK = """
import sys
from w4afp8.checkpoint import convert, load_moe_ffn, open_checkpoint
from w4afp8.checkpoint.native_layout import packed_bytes

def work(path, to):
    if to == "layer":
        return load_moe_ffn(path, layer=3, topk=1, progress=False)
    return convert(path, path + ".converted", to=to, progress=False)

def resident(field):  # KiB
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

work(sys.argv[2], sys.argv[1])  # libraries, tables, thread pools
before = max(resident("VmRSS"), resident("VmHWM"))
made = work(sys.argv[3], sys.argv[1])
assert resident("VmHWM") > before
packed = packed_bytes(open_checkpoint(sys.argv[3]).layers[0])
print((resident("VmHWM") - before) * 1024 / packed)
"""


@pytest.mark.parametrize(
    ("name", "to", "least", "most"),
    [
        # The layer itself is new memory; not much less, or something else was measured.
        ("compressed-tensors groups", "layer", 0.9, 1.3),
        ("gpt-oss", "layer", 0.9, 1.3),
        ("float", "layer", 0.9, 1.3),
        # One expert of 64, and what reading and packing it takes.
        ("compressed-tensors groups", "native", 0.0, 0.3),
        # The experts of a file, here all of them.
        ("gpt-oss", "compressed-tensors", 0.9, 1.3),
    ],
)
def test_memory(name: str, to: str, least: float, most: float, tmp_path: Path) -> None:
    """Above the process before, in units of the packed layer."""
    script = [sys.executable, "-c", PEAK, to]
    for experts in (1, 64):
        make_large(name, tmp_path / str(experts), experts)
        script.append(str(tmp_path / str(experts)))
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert least < float(done.stdout) <= most


def make_large(name: str, folder: Path, experts: int) -> None:
    """64 experts: some 54 MB packed. Random bits are right codes in these formats."""
    hidden, intermediate, rng = 1024, 512, np.random.default_rng(0)
    sizes = {"gate_proj": (intermediate, hidden), "up_proj": (intermediate, hidden)}
    sizes["down_proj"] = (hidden, intermediate)
    if name == "gpt-oss":
        tensors: dict[str, Any] = {}
        for part, out, groups in (
            ("gate_up_proj", 2 * intermediate, hidden // 32),
            ("down_proj", hidden, intermediate // 32),
        ):
            blocks = rng.integers(0, 256, (experts, out, groups, 16), np.uint8)
            tensors[f"{PREFIX}.experts.{part}_blocks"] = blocks
            tensors[f"{PREFIX}.experts.{part}_scales"] = blocks[..., 0] % 128
            tensors[f"{PREFIX}.experts.{part}_bias"] = np.zeros((experts, out), np.float32)
        write_checkpoint(folder, tensors, {})
        return
    one = {projection: make_projection(name, rng, *size) for projection, size in sizes.items()}
    tensors = {
        f"{PREFIX}.experts.{number}.{projection}.{field}": values
        for number in range(experts)
        for projection, fields in one.items()
        for field, values in fields.items()
    }
    write_checkpoint(folder, tensors, {})


def make_projection(name: str, rng: Any, out: int, in_features: int) -> dict[str, Any]:
    def words(rows: int, columns: int) -> Any:
        return rng.integers(-(2**31), 2**31, (rows, columns), np.int32)

    if name == "float":
        return {"weight": rng.standard_normal((out, in_features)).astype(ml_dtypes.bfloat16)}
    groups = in_features // 128
    return {
        "weight_packed": words(out, in_features // 8),
        "weight_scale": np.ones((out, groups), ml_dtypes.bfloat16),
        "weight_shape": np.array([out, in_features]),
    }
