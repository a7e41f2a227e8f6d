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
"""Weights as W4AFP8MoEFFN takes and counts them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from test_moe_ffn import Case, build, random_x, values

from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.quant import pack, quantize
from w4afp8.testing.tensors import float_tensor, tensor_bits

pytestmark = pytest.mark.cpu_only


def test_takes_paddle_tensors_and_half_floats() -> None:
    rng = np.random.default_rng(0)
    half = [
        float_tensor(rng.standard_normal(shape), "bfloat16", paddle.CPUPlace())
        for shape in ((2, 128, 64), (2, 64, 64))
    ]
    x, logits = random_x(rng, 5, 64, place=paddle.CPUPlace()), paddle.randn([5, 2])
    outs = [
        W4AFP8MoEFFN.from_float(*weights, topk=1)(x, logits)
        for weights in (half, [values(w) for w in half])
    ]
    np.testing.assert_array_equal(values(outs[0]), values(outs[1]))


def test_groups_of_one_projection_may_be_cut() -> None:
    """A group of 64 is two of 32 with the same scale, bit for bit."""
    rng = np.random.default_rng(0)
    up_gate, down = (
        quantize(rng.standard_normal(shape).astype(np.float32), group_size=64)
        for shape in ((2, 128, 64), (2, 64, 64))
    )
    cut = replace(down, scale=np.repeat(down.scale, 2, axis=2), group_size=32)
    x, logits = random_x(rng, 5, 64, place=paddle.CPUPlace()), paddle.randn([5, 2])
    whole, other = (W4AFP8MoEFFN.from_quantized(up_gate, w, topk=1) for w in (down, cut))
    assert (other.up_gate_proj.group_size, other.down_proj.group_size) == (64, 32)
    np.testing.assert_array_equal(values(other(x, logits)), values(whole(x, logits)))


def test_counts_its_bytes() -> None:
    layer, _, _ = build(Case(weight_format="int4", group_size=32), np.random.default_rng(0))
    # 4 experts: packed [128, 64 / 2] and [64, 64 / 2] codes, a float32 scale for each channel and
    # for each of two groups of it.
    assert layer.weight_bytes == 4 * (128 + 64) * (32 + 4 + 2 * 4)


def test_the_callers_tensors_are_not_the_layers() -> None:
    """Paddle moves and converts a layer's tensors in place."""
    rng = np.random.default_rng(0)
    packed = [
        pack(quantize(rng.standard_normal(shape).astype(np.float32), weight_format="mxfp4"))
        for shape in ((2, 128, 64), (2, 64, 64))
    ]
    gate_weight = paddle.randn([64, 2])
    up_gate_bias = paddle.randn([2, 128]).astype("bfloat16")
    layer = W4AFP8MoEFFN.from_quantized(
        *packed, topk=1, gate_weight=gate_weight, up_gate_bias=up_gate_bias
    )
    mine = [gate_weight, up_gate_bias]
    mine += [t for w in packed for t in (w.weight, w.weight_scale, w.group_scale)]
    before = [tensor_bits(tensor).copy() for tensor in mine]
    for tensor in layer.state_dict().values():
        tensor.value().get_tensor()._clear()
    for tensor, bits in zip(mine, before, strict=True):
        np.testing.assert_array_equal(tensor_bits(tensor), bits)
