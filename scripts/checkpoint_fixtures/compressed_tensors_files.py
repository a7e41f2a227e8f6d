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
"""int4 and MXFP4 as compressed-tensors writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import (
    ModelCompressor,
    MXFP4PackedCompressor,
    PackedQuantizationCompressor,
)
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
from compressed_tensors.quantization.utils import calculate_qparams

from checkpoint_fixtures.blocks import fp8_tokens, qwen3_block, qwen3_config
from checkpoint_fixtures.fixture import (
    Fixture,
    LayerValues,
    Sizes,
    expert_prefix,
    normal_weights,
    stack_experts,
    weight_groups,
)

PACKAGES = ("compressed-tensors",)
Module = dict[str, torch.Tensor]  # tensors of one linear layer, by their last name


def group() -> Fixture:
    """Groups of 128, bfloat16 scales absmax / 7.5, two shards."""
    weights = QuantizationArgs(num_bits=4, strategy="group", group_size=128, symmetric=True)
    return _make("compressed_tensors_group", Sizes(256, 128, 2), weights, layers=1, shards=2)


def channel() -> Fixture:
    """One scale for each output channel."""
    weights = QuantizationArgs(num_bits=4, strategy="channel", symmetric=True)
    return _make("compressed_tensors_channel", Sizes(96, 64, 3), weights, layers=1)


def mxfp4() -> Fixture:
    """E2M1 with E8M0 scales. Layer 1 holds every byte of codes and the largest and least scales."""
    weights = PRESET_SCHEMES["MXFP4A16"]["weights"]
    return _make("compressed_tensors_mxfp4", Sizes(96, 64, 3), weights, layers=1, extreme_layer=1)


def _make(
    name: str,
    sizes: Sizes,
    weights: QuantizationArgs,
    *,
    layers: int,
    extreme_layer: int | None = None,
    shards: int = 1,
) -> Fixture:
    rng = np.random.default_rng(1)
    indices = [*range(layers)] + ([] if extreme_layer is None else [extreme_layer])
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    model, compressor = _compressed_model(rng, sizes, scheme, indices)
    tensors = {k: v.detach().clone() for k, v in model.state_dict().items()}
    if extreme_layer is not None:
        _make_extreme(rng, tensors, f"model.layers.{extreme_layer}.")
    config = qwen3_config(sizes, layers=len(indices))
    values = {}
    for index in indices:
        up_gate, down = stack_experts(
            [_decompress(tensors, expert_prefix(index, e), scheme) for e in range(sizes.experts)]
        )
        gate = torch.from_numpy(rng.standard_normal((sizes.experts, sizes.hidden)) / 4)
        gate = gate.to(torch.bfloat16)
        tensors[f"model.layers.{index}.mlp.gate.weight"] = gate
        block = {}
        if index != extreme_layer:
            x = fp8_tokens(rng, sizes.hidden)
            block = qwen3_block(config, x, gate, up_gate, down)
        values[index] = LayerValues(up_gate, down, block)
    quantization = compressor.quantization_config.model_dump(mode="json")
    full_config = {**config.to_diff_dict(), "quantization_config": quantization}
    return Fixture(name, PACKAGES, full_config, tensors, values, shards)


def _compressed_model(
    rng: np.random.Generator, sizes: Sizes, scheme: QuantizationScheme, layers: list[int]
) -> tuple[torch.nn.Module, Any]:
    """Linear layers under the names of a model, quantised with the package's own scales."""
    model = torch.nn.Module()
    for layer in layers:
        for expert in range(sizes.experts):
            for name, shape in sizes.projections.items():
                linear = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16)
                linear.weight.data = normal_weights(rng, shape, group_size=32)
                _add(model, f"{expert_prefix(layer, expert)}.{name}", linear)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            weights = module.quantization_scheme.weights
            groups = weight_groups(module.weight.data, weights.group_size)
            scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), weights)
            module.weight_scale.data = scale.to(torch.bfloat16)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    return model, compressor


def _add(model: torch.nn.Module, path: str, linear: torch.nn.Module) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        if parent not in dict(model.named_children()):
            model.add_module(parent, torch.nn.Module())
        model = model.get_submodule(parent)
    model.add_module(last, linear)


def _decompress(
    tensors: dict[str, torch.Tensor], prefix: str, scheme: QuantizationScheme
) -> dict[str, torch.Tensor]:
    """Values by the package's own code.

    It multiplies in the type of the scales; float32 ones keep the products of int4 from being
    rounded to bfloat16. Products of E2M1 and powers of two are bfloat16 numbers.
    """
    values = {}
    for name in ("gate_proj", "up_proj", "down_proj"):
        start = f"{prefix}.{name}."
        module = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        if scheme.weights.type == "int":
            module["weight_scale"] = module["weight_scale"].to(torch.float32)
            values[name] = PackedQuantizationCompressor.decompress(module, scheme)["weight"]
        else:
            values[name] = MXFP4PackedCompressor.decompress(module, scheme)["weight"].float()
        assert values[name].isfinite().all()
    return values


def _make_extreme(rng: np.random.Generator, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """Random codes; scales of 2^-127, 2^127 and between, in one row and in rows of their own."""
    for name in [name for name in tensors if name.startswith(prefix)]:
        if name.endswith("weight_packed"):
            packed = rng.integers(0, 256, tensors[name].shape, dtype=np.uint8)
            packed[-1] &= 0xBB  # magnitudes up to 1.5: times 2^127 they are float32 numbers
            tensors[name] = torch.from_numpy(packed)
        elif name.endswith("weight_scale"):
            scale = rng.integers(0, 251, tensors[name].shape, dtype=np.uint8)
            scale[0], scale[1], scale[-1] = 0, 1, 254
            scale[-1, 0] = 0
            tensors[name] = torch.from_numpy(scale)
