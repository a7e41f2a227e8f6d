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
"""What W4AFP8MoEFFN refuses: ValueError with the argument's name, what was expected, what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.quant import quantize

pytestmark = pytest.mark.cpu_only

GOOD: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_experts": 4,
    "topk": 2,
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_size": 40}, "hidden_size: expected a positive multiple of 32, got 40"),
        ({"hidden_size": 0}, "hidden_size: expected a positive multiple of 32, got 0"),
        ({"intermediate_size": 33}, "intermediate_size: expected .* got 33"),
        ({"num_experts": 0}, "num_experts: expected 1 to 1024, got 0"),
        ({"num_experts": 1025}, "num_experts: expected 1 to 1024, got 1025"),
        ({"topk": 5}, "topk: expected 1 to 4, got 5"),
        ({"topk": 0}, "topk: expected 1 to 4, got 0"),
        ({"weight_format": "int8"}, "weight_format: expected one of int4, mxfp4, got 'int8'"),
        ({"group_size": 48}, "group_size: expected -1, 32, 64 or a multiple of 128.* got 48"),
        ({"group_size": 128}, "group_size: expected a divisor of in_features 64, got 128"),
        ({"weight_format": "mxfp4", "group_size": 64}, "group_size: expected 32.* got 64"),
        ({"scale_dtype": "float16"}, "scale_dtype: expected one of float32, bfloat16"),
        (
            {"activation": "relu"},
            "activation: expected one of swiglu, swiglu_oai, gelu, got 'relu'",
        ),
        ({"scoring": "tanh"}, "scoring: expected one of softmax, sigmoid, got 'tanh'"),
        ({"dtype": "float32"}, "dtype: expected bfloat16 or float16.* got float32"),
        ({"n_group": 3}, "n_group: expected a divisor of 4 experts, got 3"),
        ({"n_group": 0}, "n_group: expected 1 to 4, got 0"),
        ({"n_group": 2, "topk_group": 3}, "topk_group: expected 1 to 2, got 3"),
        ({"n_group": 4}, r"topk_group: expected .* at least 2 experts .* got 1 groups of 1"),
        ({"router_experts": 3}, "router_experts: expected 4 to 1024, got 3"),
        ({"first_expert": 1}, "first_expert: expected 0 to 0, got 1"),
        ({"router_experts": 8, "first_expert": -1}, "first_expert: expected 0 to 4, got -1"),
        ({"hadamard_block_size": 256}, "hadamard_block_size: .* divides 128, got 256"),
        ({"hadamard_block_size": 48}, "hadamard_block_size: .* divides 128, got 48"),
        ({"hadamard_block_size": 0}, "hadamard_block_size: .* divides 128, got 0"),
    ],
    ids=str,
)
def test_constructor(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        W4AFP8MoEFFN(**{**GOOD, **changed})


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "up_gate": rng.standard_normal((4, 256, 64)).astype(np.float32),
        "down": rng.standard_normal((4, 64, 128)).astype(np.float32),
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"up_gate": np.zeros((4, 256), np.float32)}, "up_gate: weight: expected .* got .4, 256"),
        ({"up_gate": np.zeros((4, 128, 64), np.float32)}, "up_gate.out_features: expected 256"),
        ({"activation": "gelu"}, "up_gate.out_features: expected 128, got 256"),
        ({"up_gate": np.zeros((3, 256, 64), np.float32)}, "up_gate.weight: expected .*4, 256, 32"),
        ({"down": np.full((4, 64, 128), np.nan, np.float32)}, "down: weight: expected finite"),
        ({"down": np.zeros((4, 64, 100), np.float32)}, "down: in_features: expected .* got 100"),
        ({"down_bias": np.zeros((4, 63), np.float32)}, "down_bias: shape: expected .4, 64"),
        ({"up_gate_bias": np.zeros((256,), np.float32)}, "up_gate_bias: shape: expected .4, 256"),
        ({"gate_weight": np.zeros((4, 64), np.float32)}, "gate_weight: shape: expected .64, 4"),
        ({"correction_bias": np.zeros(3, np.float32)}, "correction_bias: shape: expected .4., got"),
    ],
)
def test_from_float(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        W4AFP8MoEFFN.from_float(**{"topk": 2, **weights(), **changed})


def test_from_quantized_refuses_mixed_formats() -> None:
    up_gate = quantize(weights()["up_gate"], weight_format="mxfp4")
    down = quantize(weights()["down"])
    with pytest.raises(ValueError, match=r"up_gate\.weight_format: expected int4, got mxfp4"):
        W4AFP8MoEFFN.from_quantized(up_gate, down, topk=2)


@pytest.mark.parametrize("name", ["up_gate", "down"])
def test_from_quantized_refuses_floats(name: str) -> None:
    quantized = {called: quantize(weight) for called, weight in weights().items()}
    with pytest.raises(ValueError, match=f"{name}: weight: expected a QuantizedWeight, got ndarr"):
        W4AFP8MoEFFN.from_quantized(**{**quantized, name: weights()[name]}, topk=2)


@pytest.mark.parametrize(
    ("x", "logits", "message"),
    [
        (([5, 64], "float32"), ([5, 4], "float32"), "x: expected bfloat16.* got float32"),
        (([5, 64], "float16"), ([5, 4], "float32"), "x: expected bfloat16.* got float16"),
        (
            ([5, 32], "bfloat16"),
            ([5, 4], "float32"),
            r"x: expected shape \[..., 64\], got \[5, 32\]",
        ),
        (([], "bfloat16"), ([5, 4], "float32"), r"x: expected shape \[..., 64\], got \[\]"),
        (([5, 64], "bfloat16"), None, "logits: expected a tensor .* got None"),
        (
            ([5, 64], "bfloat16"),
            ([4, 4], "float32"),
            r"logits: expected shape \[5, 4\], got \[4, 4\]",
        ),
        (
            ([5, 64], "bfloat16"),
            ([5, 3], "float32"),
            r"logits: expected shape \[5, 4\], got \[5, 3\]",
        ),
        (([5, 64], "bfloat16"), ([5, 4], "int32"), "logits: expected .*float32.* got .*int32"),
    ],
)
def test_forward(x: Any, logits: Any, message: str) -> None:
    layer = W4AFP8MoEFFN.from_float(**weights(), topk=2)

    def zeros(shape: list[int], dtype: str) -> paddle.Tensor:
        return paddle.zeros(shape, dtype=dtype)

    with pytest.raises(ValueError, match=message):
        layer(zeros(*x), None if logits is None else zeros(*logits))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ([4, 64], "bfloat16", r"shared_output: shape: expected \[5, 64\], got \[4, 64\]"),
        ([5, 64], "float16", "shared_output: dtype: expected bfloat16, got float16"),
    ],
)
def test_shared_output(shape: list[int], dtype: str, message: str) -> None:
    layer = W4AFP8MoEFFN.from_float(**weights(), topk=2)
    x, logits = paddle.zeros([5, 64], dtype="bfloat16"), paddle.zeros([5, 4])
    with pytest.raises(ValueError, match=message):
        layer(x, logits, shared_output=paddle.zeros(shape, dtype=dtype))
