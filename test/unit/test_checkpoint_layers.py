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
"""Layers of checkpoints of every format, against float64 and the ecosystems' own blocks."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixture_files import DATA, EXACT, PROJECTIONS, CheckpointCase, expected_arrays, name_layer
from moe_reference import Expected, MoEWeights, Routing, fp8_rows, reference, route_tokens
from test_moe_ffn import values

from w4afp8.checkpoint import Checkpoint, MoELayerInfo, load_moe_ffn, open_checkpoint
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.quant import QuantizedWeight
from w4afp8.testing.compare import Accumulator
from w4afp8.testing.tensors import float_tensor, tensor_bits

SIGMOID = Routing(2, "sigmoid", True, 2.5)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Input and routing of a fixture's layer, as the ecosystem's router decided."""

    x: np.ndarray
    logits: np.ndarray
    topk_weights: np.ndarray
    topk_ids: np.ndarray


def tokens_of(arrays: dict[str, Any]) -> Tokens:
    return Tokens(*(arrays[name] for name in ("x", "logits", "topk_weights", "topk_ids")))


def all_experts(checkpoint: Checkpoint, info: MoELayerInfo) -> MoEWeights:
    """The layer's experts, read one by one."""
    experts = [checkpoint.read_expert(info, expert) for expert in range(info.experts)]

    def join(name: str) -> QuantizedWeight:
        parts = [getattr(weights, name) for weights in experts]
        return replace(
            parts[0],
            codes=np.concatenate([part.codes for part in parts]),
            scale=np.concatenate([part.scale for part in parts]),
        )

    weights = {name: join(name) for name in PROJECTIONS}
    biases = []
    for name, weight in weights.items():
        rows = [getattr(expert, f"{name}_bias") for expert in experts]
        zeros = np.zeros(weight.out_features, np.float32)
        biases.append(np.stack([zeros if row is None else row for row in rows]).astype(np.float64))
    return MoEWeights(weights["up_gate"], weights["down"], *biases)


def block_output(
    tokens: Tokens, weights: MoEWeights, activation: str, accumulator: Accumulator
) -> Expected:
    return reference(
        tokens.x,
        weights,
        tokens.topk_weights,
        tokens.topk_ids,
        activation=activation,
        dtype="bfloat16",
        accumulator=accumulator,
    )


def run(layer: W4AFP8MoEFFN, tokens: Tokens, place: Any, *, by_own_router: bool) -> np.ndarray:
    x = float_tensor(tokens.x, "bfloat16", place)
    logits = None if by_own_router else float_tensor(tokens.logits, "float32", place)
    return values(layer(x, logits))


@pytest.mark.parametrize("case", EXACT, ids=name_layer)
def test_layer_matches_the_ecosystems_block(
    case: CheckpointCase, place: Any, accumulator: Accumulator
) -> None:
    index = case.layers[-1] if case.weight_format == "int4" else 0  # mxfp4's layer 1 is extreme
    arrays = expected_arrays(case.name, index)
    tokens = tokens_of(arrays)
    checkpoint = open_checkpoint(case.path)
    weights = all_experts(checkpoint, checkpoint.layer(index))
    expected = block_output(tokens, weights, case.activation, accumulator)

    # What both computed in float64 is the same thing: 2^-53 for each of 2 * 256 terms of the two
    # products, and sums of random signs are sqrt(256) = 2^4 times smaller than their terms' sum.
    np.testing.assert_array_equal(fp8_rows(tokens.x), tokens.x)
    largest = np.abs(arrays["out"]).max()
    np.testing.assert_allclose(expected.out, arrays["out"], rtol=0, atol=2.0**-40 * largest)

    topk = tokens.topk_ids.shape[1]
    layer = load_moe_ffn(case.path, layer=index, topk=topk, place=place, progress=False)
    # gpt-oss adds a bias to its logits, which the layer's router does not.
    own_router = case.format != "gpt-oss"
    # test_moe_reference.py: mistakes are further away than the bound, if that is well below 1.
    assert expected.norm_bound() < 0.25 * np.linalg.norm(expected.out)
    expected.assert_matches(run(layer, tokens, place, by_own_router=own_router))


@pytest.mark.cpu_only
@pytest.mark.parametrize("case", EXACT, ids=name_layer)
def test_routing_is_the_ecosystems(case: CheckpointCase) -> None:
    """The reference routes as transformers does: float32 there, 2^-20 for exp and the sums."""
    arrays = expected_arrays(case.name, case.layers[-1] if case.weight_format == "int4" else 0)
    tokens = tokens_of(arrays)
    bias = arrays.get("correction_bias")
    routing = Routing(tokens.topk_ids.shape[1]) if bias is None else SIGMOID
    weights, ids = route_tokens(tokens.logits.astype(np.float64), routing, bias)
    for got_ids, got, want_ids, want in zip(
        ids, weights, tokens.topk_ids, tokens.topk_weights, strict=True
    ):
        assert set(got_ids) == set(want_ids)
        got_order, want_order = np.argsort(got_ids), np.argsort(want_ids)
        np.testing.assert_allclose(got[got_order], want[want_order], rtol=2.0**-20)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("name", "left_out", "default"),
    [
        ("deepseek_w4afp8", (), {"scoring": "sigmoid", "norm_topk_prob": True}),
        ("compressed_tensors_channel", ("norm_topk_prob",), {"norm_topk_prob": False}),
        ("compressed_tensors_channel", (), {"norm_topk_prob": True}),
    ],
)
def test_a_configs_defaults_are_its_models(
    name: str, left_out: tuple[str, ...], default: dict[str, Any], tmp_path: Path
) -> None:
    """transformers leaves out of config.json what its configuration classes have anyway."""
    folder = tmp_path / name
    shutil.copytree(DATA / name, folder)
    config = json.loads((folder / "config.json").read_text())
    assert "scoring_func" not in config
    for key in left_out:
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    router = checkpoint.read_router(checkpoint.layers[0])
    assert router is not None
    assert default.items() <= router.options.items()


@pytest.mark.parametrize(
    ("name", "weight_format", "group_size"),
    [
        ("bfloat16", "int4", -1),
        ("bfloat16", "mxfp4", 32),
        ("fp8_block", "int4", 32),
        ("fp8_block", "mxfp4", 32),
    ],
)
def test_layer_of_weights_rounded_on_the_way(
    name: str, weight_format: Any, group_size: int, place: Any, accumulator: Accumulator
) -> None:
    """Its own reference: test_checkpoint_fixtures.py has what the weights are rounded to."""
    checkpoint = open_checkpoint(DATA / name, weight_format=weight_format, group_size=group_size)
    tokens = tokens_of(expected_arrays(name, 0))
    expected = block_output(
        tokens, all_experts(checkpoint, checkpoint.layers[0]), "swiglu", accumulator
    )
    reports: list[Any] = []
    layer = load_moe_ffn(
        checkpoint, layer=0, topk=2, place=place, progress=False, report=reports.append
    )
    expected.assert_matches(run(layer, tokens, place, by_own_router=True))
    experts = range(checkpoint.layers[0].experts)
    errors = [checkpoint.read_expert(checkpoint.layers[0], e).error for e in experts]
    assert [list(report.errors) for report in reports] == [errors]


@pytest.mark.cpu_only
@pytest.mark.parametrize("case", EXACT, ids=name_layer)
def test_the_layer_holds_the_checkpoints_bits(case: CheckpointCase) -> None:
    """Streaming into the layer gives what packing all experts at once gives."""
    checkpoint = open_checkpoint(case.path)
    for index in case.layers:
        weights = all_experts(checkpoint, checkpoint.layer(index))
        streamed = load_moe_ffn(checkpoint, layer=index, topk=1, progress=False)
        whole = W4AFP8MoEFFN.from_quantized(weights.up_gate, weights.down, topk=1)
        for name in ("up_gate_proj", "down_proj"):
            for field in ("weight", "weight_scale", "group_scale", "format"):
                got, want = (getattr(getattr(layer, name), field) for layer in (streamed, whole))
                assert (got is None) == (want is None)
                if got is not None:
                    assert got.dtype == want.dtype
                    assert np.array_equal(tensor_bits(got), tensor_bits(want)), (index, name, field)
