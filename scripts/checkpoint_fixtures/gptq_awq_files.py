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
"""int4 as GPTQ-Model and AutoAWQ pack it, symmetric."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import FORMAT
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

from checkpoint_fixtures.blocks import fp8_tokens, qwen3_block, qwen3_config
from checkpoint_fixtures.fixture import (
    Fixture,
    LayerValues,
    Sizes,
    expert_prefix,
    stack_experts,
)

ZERO = 8  # the only zero point: codes 0..15 are -8..7
Packed = tuple[dict[str, torch.Tensor], torch.Tensor]  # tensors, values [out, in]


def gptq_v1() -> Fixture:
    """Zero points stored as 7 (one less), groups of 32."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
    config |= {"checkpoint_format": "gptq", "lm_head": False, "pack_dtype": "int32"}
    return _make("gptq_v1", ("gptqmodel",), Sizes(96, 64, 3), config, _gptq_linear)


def gptq_v2() -> Fixture:
    """Zero points stored as they are, one scale for each output channel."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True, "desc_act": False}
    config |= {"checkpoint_format": "gptq_v2", "lm_head": False, "pack_dtype": "int32"}
    return _make("gptq_v2", ("gptqmodel",), Sizes(96, 64, 3), config, _gptq_linear)


def awq() -> Fixture:
    """Packed along out_features in AWQ's order, groups of 32."""
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
    config |= {"version": "gemm", "modules_to_not_convert": ["gate"]}
    return _make("awq", ("autoawq",), Sizes(96, 64, 3), config, _awq_linear)


def _make(
    name: str, made_by: tuple[str, ...], sizes: Sizes, quantization: dict[str, Any], pack: Any
) -> Fixture:
    rng = np.random.default_rng(2)
    tensors: dict[str, torch.Tensor] = {}
    experts = []
    for expert in range(sizes.experts):
        values = {}
        for projection, shape in sizes.projections.items():
            packed, value = pack(rng, shape, quantization)
            prefix = f"{expert_prefix(0, expert)}.{projection}"
            tensors |= {f"{prefix}.{key}": tensor for key, tensor in packed.items()}
            values[projection] = value
        experts.append(values)
    up_gate, down = stack_experts(experts)
    gate = torch.from_numpy(rng.standard_normal((sizes.experts, sizes.hidden)) / 4)
    tensors["model.layers.0.mlp.gate.weight"] = gate = gate.to(torch.float16)
    config = qwen3_config(sizes)
    block = qwen3_block(config, fp8_tokens(rng, sizes.hidden), gate, up_gate, down)
    full_config = {**config.to_diff_dict(), "quantization_config": quantization}
    return Fixture(name, made_by, full_config, tensors, {0: LayerValues(up_gate, down, block)})


def _rounded_linear(
    rng: np.random.Generator, shape: tuple[int, int], group_size: int
) -> tuple[torch.nn.Linear, torch.Tensor]:
    """A float layer that lies on a grid of 16 values, and the grid's float16 scales
    ``[out, groups]``: what a packer is given after calibration. All 16 codes occur.
    """
    out_features, in_features = shape
    size = in_features if group_size == -1 else group_size
    scale = np.exp2(rng.uniform(-2, 2, (out_features, in_features // size))) / 5 / in_features**0.5
    scale = scale.astype(np.float16)
    codes = rng.normal(ZERO, 3.5, shape).round().clip(0, 15)
    weight = (codes - ZERO) * scale.astype(np.float32).repeat(size, axis=1)
    linear = torch.nn.Linear(in_features, out_features, bias=False)
    linear.weight.data = torch.from_numpy(weight.astype(np.float32))
    return linear, torch.from_numpy(scale)


def _gptq_linear(
    rng: np.random.Generator, shape: tuple[int, int], quantization: dict[str, Any]
) -> Packed:
    group_size = quantization["group_size"]
    linear, scale = _rounded_linear(rng, shape, group_size)
    module = TorchLinear(
        bits=4,
        group_size=group_size,
        sym=True,
        desc_act=False,
        in_features=shape[1],
        out_features=shape[0],
    )
    zeros = torch.full_like(scale, ZERO)
    size = shape[1] if group_size == -1 else group_size
    groups = torch.arange(shape[1], dtype=torch.int32) // size
    module.pack_original(linear, scale.float(), zeros.float(), groups)
    module.post_init()
    stored_scales = module.scales
    # The package multiplies in the type of the scales: float32 ones keep all bits of the products.
    module.scales = stored_scales.float()
    values = module.dequantize_weight().T.contiguous()
    module.scales = stored_scales
    if quantization["checkpoint_format"] == FORMAT.GPTQ.value:
        convert_gptq_v2_to_v1_format_module(module, SimpleNamespace(bits=4, pack_dtype=torch.int32))
    names = ("qweight", "qzeros", "scales", "g_idx")
    return {name: getattr(module, name).clone() for name in names}, values


def _awq_linear(
    rng: np.random.Generator, shape: tuple[int, int], quantization: dict[str, Any]
) -> Packed:
    gemm, packing = _autoawq()
    group_size = quantization["group_size"]
    linear, scale = _rounded_linear(rng, shape, group_size)
    scales = scale.T.contiguous()
    zeros = torch.full_like(scales, ZERO)
    module = gemm.WQLinear_GEMM.from_linear(linear, 4, group_size, False, scales, zeros)
    values = packing.dequantize_gemm(
        module.qweight, module.qzeros, module.scales.float(), 4, group_size
    )
    names = ("qweight", "qzeros", "scales")
    return {name: getattr(module, name).clone() for name in names}, values.T.contiguous()


def _autoawq() -> tuple[Any, Any]:
    """AutoAWQ's packer and its inverse.

    The package's own __init__ imports model classes that today's transformers no longer has; the
    two modules need none of them.
    """
    if "awq" not in sys.modules:
        found = find_spec("awq")
        assert found is not None
        assert found.submodule_search_locations is not None
        root = found.submodule_search_locations[0]
        for name in ("awq", "awq.modules", "awq.modules.linear", "awq.utils"):
            module = ModuleType(name)
            module.__path__ = ["/".join([root, *name.split(".")[1:]])]
            sys.modules[name] = module
    from awq.modules.linear import gemm
    from awq.utils import packing_utils

    return gemm, packing_utils
