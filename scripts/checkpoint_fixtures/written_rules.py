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
"""Formats without a package that runs here, written by their rules, one number at a time.

DeepSeek's W4AFP8 as TensorRT-LLM and SGLang read it; FastDeploy's as its loader reads it, and as
its operators read it after w4afp8_gemm_weight_convert and w4afp8_gemm_scale_permute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DeepseekV3Config

from checkpoint_fixtures.blocks import deepseek_block, fp8_tokens, qwen3_block, qwen3_config
from checkpoint_fixtures.fixture import Fixture, Float32, LayerValues, Sizes, expert_prefix

Codes = NDArray[np.int64]  # [out, in], -8..7
Tensors = dict[str, torch.Tensor]


def deepseek() -> Fixture:
    """Sigmoid routing; input scales under w1, w2, w3; a dense layer and shared experts beside."""
    sizes = Sizes(256, 128, 3)
    rng = np.random.default_rng(6)
    tensors: Tensors = {}
    experts = []
    for expert in range(sizes.experts):
        spelled, values = _deepseek_expert(rng, sizes, expert_prefix(1, expert))
        tensors |= spelled
        experts.append(values)
    up_gate = np.stack([np.concatenate(values[:2]) for values in experts])
    down = np.stack([values[2] for values in experts])
    gate = torch.from_numpy(rng.standard_normal((sizes.experts, sizes.hidden)) / 4)
    gate = gate.to(torch.bfloat16)
    correction = torch.from_numpy(rng.standard_normal(sizes.experts).astype(np.float32) / 4)
    tensors |= {
        "model.layers.1.mlp.gate.weight": gate,
        "model.layers.1.mlp.gate.e_score_correction_bias": correction,
        "model.layers.1.mlp.shared_experts.down_proj.weight": torch.ones(2, 2),
        "model.layers.0.mlp.down_proj.weight": torch.ones(2, 2),
    }
    config = _deepseek_config(sizes)
    x = fp8_tokens(rng, sizes.hidden)
    run = deepseek_block(config, x, gate, correction, up_gate, down)
    quantization: dict[str, Any] = {"quant_method": "w4afp8", "activation_scheme": "static"}
    quantization |= {"fmt": "e4m3", "weight_block_size": [128, 128]}
    full_config = {**config.to_diff_dict(), "quantization_config": quantization}
    layers = {1: LayerValues(up_gate, down, run)}
    return Fixture("deepseek_w4afp8", (), full_config, tensors, layers)


def _deepseek_config(sizes: Sizes) -> DeepseekV3Config:
    return DeepseekV3Config(
        architectures=["DeepseekV3ForCausalLM"],
        hidden_size=sizes.hidden,
        moe_intermediate_size=sizes.intermediate,
        n_routed_experts=sizes.experts,
        num_experts_per_tok=sizes.topk,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        num_hidden_layers=2,
        n_shared_experts=1,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
    )


def _deepseek_expert(
    rng: np.random.Generator, sizes: Sizes, prefix: str
) -> tuple[Tensors, list[Float32]]:
    """Tensors of an expert, and the values of gate, up and down."""
    tensors: Tensors = {}
    values = []
    for (name, shape), old in zip(sizes.projections.items(), ("w1", "w3", "w2"), strict=True):
        codes = _random_codes(rng, shape, least=-8)
        scale = _random_scale(rng, (shape[0], shape[1] // 128), shape[1])
        tensors[f"{prefix}.{name}.weight"] = _two_to_a_byte(codes, lambda code: code & 15)
        tensors[f"{prefix}.{name}.weight_scale_inv"] = torch.from_numpy(scale)
        tensors[f"{prefix}.{old}.input_scale"] = torch.tensor(float(rng.integers(1, 9)) / 448)
        values.append(_multiply(codes, scale))
    return tensors, values


def fastdeploy() -> Fixture:
    """As its checkpoints hold it: ``[in / 2, out]``, group scales with static activation scales."""
    sizes = Sizes(256, 128, 1, topk=1)

    def spell(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Tensors, Float32]:
        codes = _random_codes(rng, shape, least=-8)
        largest = _random_scale(rng, (shape[0], shape[1] // 128), shape[1]) * np.float32(7)
        tensors = {
            "quant_weight": _two_to_a_byte(codes, lambda code: code & 15).T,
            "weight_scale": torch.from_numpy(largest).T,
            "activation_scale": torch.tensor([float(rng.integers(1, 9))]),
        }
        return tensors, _multiply(codes, largest / np.float32(7))

    return _fastdeploy("fastdeploy", sizes, spell)


def fastdeploy_offset() -> Fixture:
    """Converted for its oldest operators, value + 7, one scale for each output channel."""

    def spell(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Tensors, Float32]:
        codes = _random_codes(rng, shape, least=-7)
        scale = _random_scale(rng, (shape[0],), shape[1])
        tensors = {
            "weight": _halves_of_64(codes, lambda code: code + 7),
            "weight_scale": torch.from_numpy(_permuted(scale * np.float32(512))),
        }
        return tensors, _multiply(codes, scale[:, None])

    return _fastdeploy("fastdeploy_offset", Sizes(128, 64, 2), spell)


def fastdeploy_sign_magnitude() -> Fixture:
    """Converted for its newest operators, sign and magnitude, scales of groups of 128."""

    def spell(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Tensors, Float32]:
        codes = _random_codes(rng, shape, least=-7)
        scale = _random_scale(rng, (shape[0], shape[1] // 128), shape[1])
        stored = np.empty((shape[0] // 128, shape[1] // 128, 128), np.float32)
        for group in range(shape[1] // 128):
            column = _permuted(scale[:, group] * np.float32(512))
            for block in range(shape[0] // 128):
                stored[block, group] = column[128 * block : 128 * (block + 1)]
        tensors = {
            "weight": _halves_of_64(codes, lambda code: code if code > 0 else 8 - code),
            "weight_scale": torch.from_numpy(stored),
        }
        return tensors, _multiply(codes, scale)

    return _fastdeploy("fastdeploy_sign_magnitude", Sizes(256, 128, 1, topk=1), spell)


def _fastdeploy(
    name: str,
    sizes: Sizes,
    spell: Callable[[np.random.Generator, tuple[int, int]], tuple[Tensors, Float32]],
) -> Fixture:
    """One layer of ERNIE's names; gate and up are one tensor, the router's weight is Paddle's."""
    rng = np.random.default_rng(7)
    mlp = "ernie.layers.0.mlp"
    tensors: Tensors = {}
    experts: list[list[Float32]] = []
    for expert in range(sizes.experts):
        experts.append([])
        for projection, shape in (
            ("up_gate_proj", (2 * sizes.intermediate, sizes.hidden)),
            ("down_proj", (sizes.hidden, sizes.intermediate)),
        ):
            spelled, values = spell(rng, shape)
            prefix = f"{mlp}.experts.{expert}.{projection}"
            tensors |= {f"{prefix}.{key}": tensor for key, tensor in spelled.items()}
            experts[-1].append(values)
    up_gate, down = (np.stack([expert[i] for expert in experts]) for i in range(2))
    gate = torch.from_numpy(rng.standard_normal((sizes.experts, sizes.hidden)) / 4).float()
    tensors[f"{mlp}.gate.weight"] = gate.T
    config: dict[str, Any] = {
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "model_type": "ernie4_5_moe",
        "hidden_size": sizes.hidden,
        "moe_intermediate_size": sizes.intermediate,
        "moe_num_experts": sizes.experts,
        "moe_k": sizes.topk,
        "hidden_act": "silu",
        "quantization_config": {
            "quantization": "mix_quant",
            "moe_quant_type": "w4afp8",
            "is_quantized": True,
            "hadamard_block_size": -1,  # FastDeploy rotates in blocks of 128 where this is left out
        },
    }
    x = fp8_tokens(rng, sizes.hidden)
    run = qwen3_block(qwen3_config(sizes), x, gate, up_gate, down)
    return Fixture(name, (), config, tensors, {0: LayerValues(up_gate, down, run)})


def _random_codes(rng: np.random.Generator, shape: tuple[int, int], *, least: int) -> Codes:
    codes = rng.normal(0, 3.5, shape).round().clip(least, 7).astype(np.int64)
    assert set(codes.flat) == set(range(least, 8))
    return codes


def _random_scale(rng: np.random.Generator, shape: tuple[int, ...], in_features: int) -> Float32:
    scale = np.exp2(rng.uniform(-2, 2, shape)) / 5 / in_features**0.5
    return scale.astype(np.float32)


def _multiply(codes: Codes, scale: Float32) -> Float32:
    """float32 ``[out, in]``; `scale` is ``[out, groups]``."""
    values = np.empty(codes.shape, np.float32)
    size = codes.shape[1] // scale.shape[1]
    for out, row in enumerate(codes):
        for i, code in enumerate(row):
            values[out, i] = np.float32(code) * scale[out, i // size]
    return values


def _two_to_a_byte(codes: Codes, spell: Callable[[int], int]) -> torch.Tensor:
    """int8 ``[out, in / 2]``, the even in_feature in the low nibble."""
    stored = np.empty((codes.shape[0], codes.shape[1] // 2), np.uint8)
    for out, row in enumerate(codes):
        for j in range(stored.shape[1]):
            stored[out, j] = spell(int(row[2 * j])) | spell(int(row[2 * j + 1])) << 4
    return torch.from_numpy(stored.view(np.int8))


def _halves_of_64(codes: Codes, spell: Callable[[int], int]) -> torch.Tensor:
    """int8 ``[out, in / 2]``: of 64 in_features byte j holds j high and j + 32 low."""
    stored = np.empty((codes.shape[0], codes.shape[1] // 2), np.uint8)
    for out, row in enumerate(codes):
        for j in range(stored.shape[1]):
            first = j // 32 * 64 + j % 32
            stored[out, j] = spell(int(row[first])) << 4 | spell(int(row[first + 32]))
    return torch.from_numpy(stored.view(np.int8))


def _permuted(scale: Float32) -> Float32:
    """Of each 16 outputs, the places 2 i and 2 i + 1 get i and i + 8."""
    stored = np.empty_like(scale)
    for start in range(0, len(scale), 16):
        for i in range(8):
            stored[start + 2 * i] = scale[start + i]
            stored[start + 2 * i + 1] = scale[start + i + 8]
    return stored
