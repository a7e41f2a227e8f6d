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
"""Outputs of whole layers, computed in float64 by transformers' own modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DeepseekV3Config, GptOssConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from checkpoint_fixtures.fixture import Float32, Sizes

TOKENS = 6
# The chosen experts are at least this far above the others: no rounding changes the choice.
MARGIN = 0.01


def qwen3_config(sizes: Sizes, *, layers: int = 1) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"],
        hidden_size=sizes.hidden,
        moe_intermediate_size=sizes.intermediate,
        num_experts=sizes.experts,
        num_experts_per_tok=sizes.topk,
        norm_topk_prob=True,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        vocab_size=16,
    )


def fp8_tokens(rng: np.random.Generator, hidden: int) -> Float32:
    """Tokens that rounding to FP8 by rows leaves as they are.

    Each holds the largest E4M3 number, 448, times 2^-7, so its scale is 2^-7; the others are
    normal numbers rounded to E4M3, which bfloat16 holds exactly.
    """
    x = torch.from_numpy(rng.standard_normal((TOKENS, hidden))).clamp(-3.5, 3.5)
    x = (x * 128).to(torch.float8_e4m3fn).to(torch.float32) / 128
    x[torch.arange(TOKENS), torch.from_numpy(rng.integers(0, hidden, TOKENS))] = 3.5
    return x.numpy()


def qwen3_block(
    config: Qwen3MoeConfig, x: Float32, gate: torch.Tensor, up_gate: Float32, down: Float32
) -> dict[str, NDArray[Any]]:
    """``silu(gate) * up`` behind softmax routing."""
    return _run_swiglu(Qwen3MoeSparseMoeBlock(_eager(config)), x, gate, up_gate, down)


def deepseek_block(
    config: DeepseekV3Config,
    x: Float32,
    gate: torch.Tensor,
    correction_bias: torch.Tensor,
    up_gate: Float32,
    down: Float32,
) -> dict[str, NDArray[Any]]:
    """``silu(gate) * up`` behind sigmoid routing; the shared experts are zeros."""
    block = DeepseekV3MoE(_eager(config))
    for parameter in block.shared_experts.parameters():
        parameter.data.zero_()
    block.gate.e_score_correction_bias.data = correction_bias
    run = _run_swiglu(block, x, gate, up_gate, down)
    return run | {"correction_bias": correction_bias.numpy()}


def gpt_oss_block(
    config: GptOssConfig, x: Float32, tensors: dict[str, torch.Tensor], up_gate: Any, down: Any
) -> dict[str, NDArray[Any]]:
    """gpt-oss's SwiGLU with biases. `up_gate` and `down` as convert_moe_packed_tensors has them:
    ``[experts, in_features, out_features]``, gate and up in turns.
    """
    block = GptOssMLP(_eager(config)).to(torch.float64)
    block.router.weight.data = tensors["router.weight"].double()
    block.router.bias.data = tensors["router.bias"].double()
    block.experts.gate_up_proj.data = up_gate.double()
    block.experts.gate_up_proj_bias.data = tensors["experts.gate_up_proj_bias"].double()
    block.experts.down_proj.data = down.double()
    block.experts.down_proj_bias.data = tensors["experts.down_proj_bias"].double()
    return _run(block, block.router, x)


def _eager(config: Any) -> Any:
    config._experts_implementation = "eager"
    return config


def _run_swiglu(
    block: torch.nn.Module, x: Float32, gate: torch.Tensor, up_gate: Float32, down: Float32
) -> dict[str, NDArray[Any]]:
    block = block.to(torch.float64)
    block.gate.weight.data = gate.double()
    block.experts.gate_up_proj.data = torch.from_numpy(up_gate).double()
    block.experts.down_proj.data = torch.from_numpy(down).double()
    return _run(block, block.gate, x)


def _run(block: torch.nn.Module, router: Any, x: Float32) -> dict[str, NDArray[Any]]:
    with torch.no_grad():
        rows = torch.from_numpy(x).double()
        logits, topk_weights, topk_ids = router(rows)
        out = block(rows[None])
    # gpt-oss's returns its routing too.
    out = (out[0] if isinstance(out, tuple) else out)[0]
    ordered = logits.sort(dim=1, descending=True).values
    topk = topk_ids.shape[1]
    assert topk == ordered.shape[1] or (ordered[:, topk - 1] - ordered[:, topk]).min() > MARGIN
    assert out.dtype == torch.float64
    return {
        "x": x,
        "logits": logits.numpy(),
        "topk_weights": topk_weights.numpy(),
        "topk_ids": topk_ids.numpy(),
        "out": out.numpy(),
    }
