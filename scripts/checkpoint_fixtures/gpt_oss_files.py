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
"""gpt-oss's MXFP4, decoded by transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import MXFP4PackedCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from checkpoint_fixtures.blocks import fp8_tokens, gpt_oss_block
from checkpoint_fixtures.fixture import Fixture, LayerValues, Sizes, normal_weights, weight_groups

SIZES = Sizes(160, 64, 3)  # hidden is no multiple of 128, as gpt-oss's 2880
SCHEME = QuantizationScheme(targets=["Linear"], weights=PRESET_SCHEMES["MXFP4A16"]["weights"])
MLP = "model.layers.{}.mlp."
Tensors = dict[str, torch.Tensor]


def gpt_oss() -> Fixture:
    """Gate and up row by row, biases. Layer 1: every byte of codes, largest and least scales."""
    config = GptOssConfig(
        architectures=["GptOssForCausalLM"],
        hidden_size=SIZES.hidden,
        intermediate_size=SIZES.intermediate,
        num_local_experts=SIZES.experts,
        num_experts_per_tok=SIZES.topk,
        num_hidden_layers=2,
    )
    rng = np.random.default_rng(3)
    tensors: Tensors = {}
    layers = {}
    for index, make in enumerate((_rounded_layer, _extreme_layer)):
        mlp = make(rng)
        tensors |= {MLP.format(index) + name: tensor for name, tensor in mlp.items()}
        layers[index] = _values(rng, mlp, config if index == 0 else None)
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": skipped}
    full_config = {**config.to_diff_dict(), "quantization_config": quantization}
    packages = ("transformers", "compressed-tensors")
    return Fixture("gpt_oss", packages, full_config, tensors, layers)


def _values(rng: np.random.Generator, mlp: Tensors, config: GptOssConfig | None) -> LayerValues:
    gate_up, down = (
        convert_moe_packed_tensors(
            mlp[f"experts.{name}_blocks"], mlp[f"experts.{name}_scales"], dtype=torch.float32
        )
        for name in ("gate_up_proj", "down_proj")
    )
    assert gate_up.isfinite().all()
    assert down.isfinite().all()
    block: dict[str, Any] = {}
    if config is not None:
        block = gpt_oss_block(config, fp8_tokens(rng, SIZES.hidden), mlp, gate_up, down)
    bias = mlp["experts.gate_up_proj_bias"].float()
    block["up_gate_bias"] = torch.cat([bias[:, 0::2], bias[:, 1::2]], dim=1).numpy()
    block["down_bias"] = mlp["experts.down_proj_bias"].float().numpy()
    rows = gate_up.transpose(1, 2)
    up_gate = torch.cat([rows[:, 0::2], rows[:, 1::2]], dim=1)
    return LayerValues(up_gate.numpy(), down.transpose(1, 2).contiguous().numpy(), block)


def _rounded_layer(rng: np.random.Generator) -> Tensors:
    """Normal weights, rounded by compressed-tensors; some gates and ups beyond the clamp at 7."""
    mlp = {}
    for name, shape in (
        ("gate_up_proj", (2 * SIZES.intermediate, SIZES.hidden)),
        ("down_proj", (SIZES.hidden, SIZES.intermediate)),
    ):
        packed, scales = [], []
        for _ in range(SIZES.experts):
            weight = normal_weights(rng, shape, group_size=32)
            groups = weight_groups(weight, 32)
            scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), SCHEME.weights)
            module = {"weight": weight, "weight_scale": scale}
            module = MXFP4PackedCompressor.compress(module, SCHEME)
            packed.append(module["weight_packed"].reshape(shape[0], shape[1] // 32, 16))
            scales.append(module["weight_scale"])
        mlp[f"experts.{name}_blocks"] = torch.stack(packed)
        mlp[f"experts.{name}_scales"] = torch.stack(scales)
    return mlp | _biases_and_router(rng)


def _extreme_layer(rng: np.random.Generator) -> Tensors:
    """Random codes; scales of 2^-127, 2^127 and between, in one row and in rows of their own."""
    mlp = {}
    for name, rows, columns in (
        ("gate_up_proj", 2 * SIZES.intermediate, SIZES.hidden),
        ("down_proj", SIZES.hidden, SIZES.intermediate),
    ):
        shape = (SIZES.experts, rows, columns // 32)
        blocks = rng.integers(0, 256, (*shape, 16), dtype=np.uint8)
        blocks[:, -1] &= 0xBB  # magnitudes up to 1.5: times 2^127 they are float32 numbers
        scales = rng.integers(0, 251, shape, dtype=np.uint8)
        scales[:, 0], scales[:, 1], scales[:, -1] = 0, 1, 254
        scales[:, -1, 0] = 0
        mlp[f"experts.{name}_blocks"] = torch.from_numpy(blocks)
        mlp[f"experts.{name}_scales"] = torch.from_numpy(scales)
    return mlp | _biases_and_router(rng)


def _biases_and_router(rng: np.random.Generator) -> Tensors:
    """Biases of sixteenths, exact in bfloat16."""

    def normal(*shape: int, scale: float) -> torch.Tensor:
        values = np.rint(16 * scale * rng.standard_normal(shape)) / 16
        return torch.from_numpy(values).to(torch.bfloat16)

    return {
        "experts.gate_up_proj_bias": normal(SIZES.experts, 2 * SIZES.intermediate, scale=4),
        "experts.down_proj_bias": normal(SIZES.experts, SIZES.hidden, scale=1),
        "router.weight": normal(SIZES.experts, SIZES.hidden, scale=0.25),
        "router.bias": normal(SIZES.experts, scale=1),
    }
