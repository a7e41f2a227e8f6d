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
"""Arguments of wrong Python types: ValueError with name, what was expected, what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from checkpoint_files import write_checkpoint

from w4afp8 import ops
from w4afp8.checkpoint import load_mla_up
from w4afp8.distributed import ExpertPartition
from w4afp8.layers import ExpertLinear, MLAUpProjections, W4AFP8MoEFFN
from w4afp8.quant import MLAUpWeights, UpError, quantize, split_kv_b_proj

pytestmark = pytest.mark.cpu_only

HEADS, NOPE, LORA, V = 2, 64, 128, 64
CODES = np.zeros((HEADS * (NOPE + V), LORA // 2), np.uint8)
SCALES = np.zeros((HEADS * (NOPE + V), LORA // 32), np.uint8)
FLOATS = np.ones((1, 8, 64), np.float32)


def split(**change: Any) -> Any:
    sizes = {"heads": HEADS, "nope": NOPE, "v": V}
    return split_kv_b_proj(**{"weight": CODES, "scale": SCALES, **sizes, **change})


def mla(**change: Any) -> MLAUpProjections:
    sizes = {"heads": HEADS, "nope": NOPE, "lora": LORA, "v": V}
    return MLAUpProjections(**{**sizes, **change})


def mla_from(**change: Any) -> MLAUpProjections:
    sizes = {"heads": HEADS, "nope": NOPE, "v": V}
    return MLAUpProjections.from_kv_b_proj(CODES, SCALES, **{**sizes, **change})


def linear(**change: Any) -> ExpertLinear:
    sizes = {"in_features": 64, "out_features": 8, "num_experts": 2}
    return ExpertLinear(**{**sizes, **change})


def moe(**change: Any) -> W4AFP8MoEFFN:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_experts": 4, "topk": 2}
    return W4AFP8MoEFFN(**{**sizes, **change})


NOT_INTS: list[tuple[Callable[..., Any], str]] = [
    *((split, name) for name in ("heads", "nope", "v")),
    *((mla, name) for name in ("heads", "nope", "lora", "v")),
    *((mla_from, name) for name in ("heads", "nope", "v", "rank", "world_size")),
    *((linear, name) for name in ("in_features", "out_features", "num_experts", "group_size")),
    *((moe, name) for name in ("hidden_size", "intermediate_size", "num_experts", "topk")),
    *((moe, name) for name in ("group_size", "hadamard_block_size", "n_group", "topk_group")),
    (lambda **options: moe(router_experts=8, **options), "first_expert"),
    (lambda **options: quantize(FLOATS, **options), "group_size"),
    (lambda **options: ExpertPartition.even(**{"world_size": 2, **options}), "num_experts"),
    (lambda **options: ExpertPartition.even(num_experts=2, **options), "world_size"),
    (lambda experts_per_rank: ExpertPartition.of([2, experts_per_rank]), "experts_per_rank"),
]


@pytest.mark.parametrize("value", [2.0, "2", None, True], ids=repr)
@pytest.mark.parametrize(
    ("call", "name"), NOT_INTS, ids=[f"{i}-{name}" for i, (_, name) in enumerate(NOT_INTS)]
)
def test_not_an_int(call: Callable[..., Any], name: str, value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(ValueError, match=rf"^{name}: expected an int, got {kind}$"):
        call(**{name: value})


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int16])
def test_ints_of_numpy(kind: type) -> None:
    """Sizes are ints of Python from then on: 64 + 64 of int8 would not be 128."""
    sizes = {"heads": kind(HEADS), "nope": kind(NOPE), "v": kind(V)}
    up = split(**sizes)
    layer = MLAUpProjections(**sizes, lora=kind(LORA))
    layer.set_weights(up)
    assert {type(getattr(layer, name)) for name in ("heads", "nope", "lora", "v")} == {int}
    assert mla_from(**sizes, rank=kind(1), world_size=kind(2)).heads == 1


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (128, "block: expected two positive ints, got 128"),
        (None, "block: expected two positive ints, got None"),
        ((128, 128, 128), r"block: expected two positive ints, got \(128, 128, 128\)"),
        ((0, 128), "block: expected 1 to 2147483647, got 0"),
        ((128, -1), "block: expected 1 to 2147483647, got -1"),
        ((128.0, 128), "block: expected an int, got float"),
        (("1", "2"), "block: expected an int, got str"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("make", [split, mla_from])
def test_blocks(make: Callable[..., Any], block: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(block=block)
    weight, scale = np.zeros((HEADS * (NOPE + V), LORA), np.float32), np.ones((2, 1), np.float32)
    with pytest.raises(ValueError, match=message):
        split(weight=weight, scale=scale, block=block)


@pytest.mark.parametrize("value", ["no", 1, None, np.True_], ids=repr)
def test_requantize_is_a_bool(value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(ValueError, match=f"requantize: expected a bool, got {kind}"):
        split(requantize=value)


@pytest.mark.parametrize("dtype", ["V2", "int32", "O", [("a", "f4")]], ids=str)
def test_arrays_that_are_no_floats(dtype: Any) -> None:
    weight = np.zeros((HEADS * (NOPE + V), LORA), dtype)
    message = re.escape(f"weight: expected floats, got {weight.dtype}")
    with pytest.raises(ValueError, match=message):
        split(weight=weight, scale=None)
    with pytest.raises(ValueError, match=message):
        quantize(weight[None])


def test_floats_of_another_byte_order() -> None:
    values = np.random.default_rng(0).standard_normal((HEADS * (NOPE + V), LORA), np.float32)
    ups = [split(weight=values.astype(order), scale=None) for order in (">f4", "<f4")]
    assert (ups[0].w_k.numpy() == ups[1].w_k.numpy()).all()


@pytest.mark.parametrize("options", [{"world_size": 2.0}, {"world_size": "2"}, {"rank": "0"}])
@pytest.mark.parametrize("rank", [{}, {"rank": 0.5}, {"rank": None}], ids=repr)
def test_ranks_of_a_checkpoint(options: Any, rank: Any, tmp_path: Path) -> None:
    config = {"num_attention_heads": HEADS, "kv_lora_rank": LORA}
    config |= {"qk_nope_head_dim": NOPE, "v_head_dim": V}
    name = "model.layers.0.self_attn.kv_b_proj"
    tensors = {f"{name}.weight": CODES, f"{name}.weight_scale": SCALES}
    path = write_checkpoint(tmp_path, tensors, config)
    with pytest.raises(ValueError, match=r"^(rank|world_size): expected an int, got "):
        load_mla_up(path, layer=0, **{**options, **rank})


NOT_TENSORS = [None, [[[1.0]]], np.zeros((3, HEADS, NOPE), np.float32)]


@pytest.mark.parametrize("value", NOT_TENSORS, ids=lambda value: type(value).__name__)
def test_activations_are_tensors(value: Any) -> None:
    expected = f"expected a paddle.Tensor, got {type(value).__name__}"
    scale = paddle.ones([3, HEADS])
    for call, name in (
        (ops.quant_per_token_and_head, "x"),
        (mla().absorb_q, "q_nope"),
        (lambda x: mla().absorb_q(x, scale), "q_nope"),
        (mla().project_v, "x"),
        (lambda x: moe()(x, paddle.ones([3, 4])), "x"),
        (linear(has_bias=True).set_bias, "bias"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: {expected}$"):
            call(value)


@pytest.mark.parametrize("value", NOT_TENSORS[1:], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", ["logits", "shared_output"])
def test_what_comes_beside_activations_is_a_tensor(name: str, value: Any) -> None:
    given = {"logits": paddle.ones([3, 4]), name: value}
    expected = f"^{name}: expected a paddle.Tensor, got {type(value).__name__}$"
    with pytest.raises(ValueError, match=expected):
        moe()(paddle.ones([3, 64], "bfloat16"), **given)


@pytest.mark.parametrize("value", [2, None, "22"], ids=repr)
def test_a_partition_is_made_of_a_sequence(value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(
        ValueError, match=f"^experts_per_rank: expected a sequence of ints, got {kind}$"
    ):
        ExpertPartition.of(value)


def test_sparse_activations() -> None:
    sparse = paddle.sparse.sparse_coo_tensor([[0], [0], [0]], [1.0], [3, HEADS, NOPE])
    with pytest.raises(ValueError, match="x: expected a dense tensor, got another kind of tensor"):
        ops.quant_per_token_and_head(sparse)


@pytest.mark.parametrize("value", [{}, None, CODES], ids=lambda value: type(value).__name__)
def test_packed_weights(value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(ValueError, match=f"^up: expected a MLAUpWeights, got {kind}$"):
        mla().set_weights(value)
    with pytest.raises(ValueError, match=f"^weight: expected a PackedWeight, got {kind}$"):
        linear().set_weight(value)


def test_packed_weights_that_hold_no_tensors() -> None:
    with pytest.raises(ValueError, match=r"^up.w_k: expected a paddle.Tensor, got ndarray$"):
        mla().set_weights(MLAUpWeights(CODES, CODES, CODES, CODES, UpError()))  # type: ignore
