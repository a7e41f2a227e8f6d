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
"""Weights that are no 4-bit numbers yet: bfloat16 and FP8 in blocks, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import FineGrainedFP8Config, Qwen3MoeForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

from checkpoint_fixtures.blocks import fp8_tokens, qwen3_block, qwen3_config
from checkpoint_fixtures.fixture import (
    Fixture,
    LayerValues,
    Sizes,
    expert_prefix,
    normal_weights,
    stack_experts,
)


def bfloat16() -> Fixture:
    """A whole small model, as save_pretrained writes it."""
    sizes = Sizes(64, 32, 3)
    rng = np.random.default_rng(4)
    torch.manual_seed(4)
    config = qwen3_config(sizes)
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    block = model.model.layers[0].mlp
    for parameter in (block.experts.gate_up_proj, block.experts.down_proj):
        for expert in range(sizes.experts):
            shape = tuple(parameter.shape[1:])
            parameter.data[expert] = normal_weights(rng, shape, group_size=32)
    block.gate.weight.data = torch.from_numpy(rng.standard_normal(block.gate.weight.shape)).to(
        torch.bfloat16
    )
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = load_file(Path(folder) / "model.safetensors")
    up_gate = block.experts.gate_up_proj.detach().float().numpy()
    down = block.experts.down_proj.detach().float().numpy()
    run = qwen3_block(
        config, fp8_tokens(rng, sizes.hidden), block.gate.weight.detach(), up_gate, down
    )
    full_config = config.to_diff_dict()
    layers = {0: LayerValues(up_gate, down, run)}
    return Fixture("bfloat16", ("transformers",), full_config, tensors, layers)


def fp8_block() -> Fixture:
    """E4M3 with a float32 multiplier for each 32 x 64 weights."""
    sizes = Sizes(128, 64, 2)
    rng = np.random.default_rng(5)
    quantization = FineGrainedFP8Config(weight_block_size=(32, 64))
    quantizer = SimpleNamespace(quantization_config=quantization)
    tensors: dict[str, torch.Tensor] = {}
    experts = []
    for expert in range(sizes.experts):
        values = {}
        for name, shape in sizes.projections.items():
            key = f"{expert_prefix(0, expert)}.{name}.weight"
            weight = normal_weights(rng, shape, group_size=32)
            made = Fp8Quantize(quantizer).convert({key: weight})
            assert made[key].dtype == torch.float8_e4m3fn
            tensors |= made
            values[name] = Fp8Dequantize(quantizer)._dequantize_one(
                made[key], made[f"{key}_scale_inv"], output_dtype=torch.float32
            )
        experts.append(values)
    up_gate, down = stack_experts(experts)
    gate = torch.from_numpy(rng.standard_normal((sizes.experts, sizes.hidden))).to(torch.bfloat16)
    tensors["model.layers.0.mlp.gate.weight"] = gate
    config = qwen3_config(sizes)
    run = qwen3_block(config, fp8_tokens(rng, sizes.hidden), gate, up_gate, down)
    declared = {"quant_method": "fp8", "weight_block_size": [32, 64], "fmt": "e4m3"}
    declared |= {"activation_scheme": "dynamic"}
    full_config = {**config.to_diff_dict(), "quantization_config": declared}
    layers = {0: LayerValues(up_gate, down, run)}
    return Fixture("fp8_block", ("transformers",), full_config, tensors, layers)
