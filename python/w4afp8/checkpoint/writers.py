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
"""Writers: which files a target format has, and what goes into each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.config import CONFIG_NAME
from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.files import read_json_object
from w4afp8.checkpoint.model import Checkpoint, ExpertWeights, MoELayerInfo
from w4afp8.checkpoint.shard_writer import SafetensorsWriter, TensorSpec
from w4afp8.quant import QuantizedWeight
from w4afp8.quant.bfloat16 import bfloat16_bits, bfloat16_values

Stored = tuple[str, NDArray[Any]]  # safetensors type, and an array that holds its bits
Target = Literal["native", "compressed-tensors"]

_TO_OFFSET_BINARY = np.uint8(0x88)  # value + 8 in both nibbles: the sign bits flipped
_QUANTIZATION = "quantization_config"
_ROUTER_KEYS = {
    "scoring": "scoring_func",
    "norm_topk_prob": "norm_topk_prob",
    "routed_scaling_factor": "routed_scaling_factor",
    "n_group": "n_group",
    "topk_group": "topk_group",
}
_COMPRESSED_FORMAT = {"int4": "pack-quantized", "mxfp4": "mxfp4-pack-quantized"}


@dataclass(frozen=True)
class Shard:
    """One file of the target: some experts of one layer."""

    layer: MoELayerInfo
    experts: range


class Writer(Protocol):
    """Plans and writes the files of one format."""

    def shards(self, checkpoint: Checkpoint) -> list[Shard]:
        """The files to write, in order."""
        ...

    def write(
        self, path: Path, checkpoint: Checkpoint, shard: Shard, advance: Callable[[], None]
    ) -> float:
        """Writes one file, calls `advance` after each expert; returns the largest error."""
        ...

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What goes into config.json."""
        ...


@dataclass(frozen=True)
class CompressedTensorsWriter:
    """int4 as "pack-quantized", mxfp4 as "mxfp4-pack-quantized".

    A scale tensor is bfloat16 where all its values are bfloat16 numbers, else float32: nothing is
    ever rounded. So is a bias.

    Args:
        shard_bytes: where experts are cut into files; at least one expert goes into each.
    """

    shard_bytes: int = 1 << 30

    def shards(self, checkpoint: Checkpoint) -> list[Shard]:
        _check_one_format(checkpoint)
        return [
            Shard(layer, range(start, min(start + step, layer.experts)))
            for layer in checkpoint.layers
            for step in [self._experts_of_a_shard(layer)]
            for start in range(0, layer.experts, step)
        ]

    def _experts_of_a_shard(self, layer: MoELayerInfo) -> int:
        weights = 3 * layer.hidden_size * layer.intermediate_size
        return max(1, self.shard_bytes // (weights // 2))

    def write(
        self, path: Path, checkpoint: Checkpoint, shard: Shard, advance: Callable[[], None]
    ) -> float:
        tensors = dict(_router(checkpoint, shard.layer)) if 0 in shard.experts else {}
        error = 0.0
        for expert in shard.experts:
            weights = checkpoint.read_expert(shard.layer, expert)
            tensors |= compressed_expert(f"{shard.layer.prefix}.experts.{expert}", weights)
            error = max(error, weights.error)
            checkpoint.release()
            advance()
        specs = {name: TensorSpec(dtype, array.shape) for name, (dtype, array) in tensors.items()}
        with SafetensorsWriter(path, specs, {"format": "pt"}) as file:
            for name, (_, array) in tensors.items():
                file.write(name, array)
        return error

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        quantization = compressed_quantization(checkpoint.layers[0])
        return {**model_config(checkpoint), "quantization_config": quantization}


def _check_one_format(checkpoint: Checkpoint) -> None:
    kinds = {(layer.weight_format, layer.group_size) for layer in checkpoint.layers}
    if len(kinds) != 1:
        raise CheckpointError(
            checkpoint.path, f"expected layers of one format for compressed-tensors, got {kinds}"
        )
    for layer in checkpoint.layers:
        if layer.activation == "gelu":
            raise CheckpointError(
                checkpoint.path,
                f"layer {layer.index}: expected a gate for compressed-tensors, got activation gelu",
            )
        if layer.hadamard_block_size != -1:
            raise CheckpointError(
                checkpoint.path,
                f"layer {layer.index}: expected weights for activations that are not rotated for "
                f"compressed-tensors, got hadamard_block_size {layer.hadamard_block_size}",
            )


def model_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config.json beside the source without its quantisation, or what the layers tell of it."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if (folder / CONFIG_NAME).is_file():
        found = read_json_object(folder / CONFIG_NAME)
        return {name: value for name, value in found.items() if name != _QUANTIZATION}
    layer = checkpoint.layers[0]
    router = checkpoint.read_router(layer)
    options = {} if router is None else dict(router.options)
    config = {_ROUTER_KEYS[name]: value for name, value in options.items()}
    if layer.activation == "swiglu_oai":
        config |= {"model_type": "gpt_oss", "swiglu_limit": 7.0}
    return config


def _router(checkpoint: Checkpoint, layer: MoELayerInfo) -> Iterator[tuple[str, Stored]]:
    router = checkpoint.read_router(layer)
    if router is None:
        return
    yield f"{layer.prefix}.gate.weight", _as_stored(np.ascontiguousarray(router.weight.T))
    if router.bias is not None:
        yield f"{layer.prefix}.gate.bias", _as_stored(router.bias)
    if router.correction_bias is not None:
        # Other programs hold it in float32 too: rounding it changes which experts are chosen.
        name = f"{layer.prefix}.gate.e_score_correction_bias"
        yield name, ("F32", router.correction_bias)


def compressed_expert(prefix: str, weights: ExpertWeights) -> dict[str, Stored]:
    """Name to safetensors type and array of one expert's tensors.

    Args:
        prefix: of the expert, without a dot at its end.
        weights: the expert.
    """
    half = weights.up_gate.out_features // 2
    gate_bias = up_bias = None
    if weights.up_gate_bias is not None:
        gate_bias, up_bias = weights.up_gate_bias[:half], weights.up_gate_bias[half:]
    projections = (
        ("gate_proj", weights.up_gate, slice(half), gate_bias, weights.up_gate_input_scale),
        ("up_proj", weights.up_gate, slice(half, None), up_bias, weights.up_gate_input_scale),
        ("down_proj", weights.down, slice(None), weights.down_bias, weights.down_input_scale),
    )
    tensors = {}
    for name, weight, rows, bias, input_scale in projections:
        for suffix, tensor in _projection(weight, rows, bias, input_scale):
            tensors[f"{prefix}.{name}.{suffix}"] = tensor
    return tensors


def _projection(
    weight: QuantizedWeight,
    rows: slice,
    bias: NDArray[np.float32] | None,
    input_scale: float | None,
) -> Iterator[tuple[str, Stored]]:
    codes, scale = weight.codes[0, rows], weight.scale[0, rows]
    if weight.weight_format == "mxfp4":
        yield "weight_packed", ("U8", codes)
        yield "weight_scale", ("U8", scale)
    else:
        words = np.ascontiguousarray(codes ^ _TO_OFFSET_BINARY).view("<i4")
        yield "weight_packed", ("I32", words)
        yield "weight_scale", _as_stored(scale.reshape(len(codes), -1))
        shape = np.array([len(codes), weight.in_features], dtype=np.int64)
        yield "weight_shape", ("I64", shape)
    if bias is not None:
        yield "bias", _as_stored(bias)
    if input_scale is not None:
        yield "input_scale", ("F32", np.array([input_scale], dtype=np.float32))


def _as_stored(values: NDArray[np.float32]) -> Stored:
    """bfloat16 where that holds the values exactly, else float32."""
    bits = bfloat16_bits(values)
    exact = (
        bfloat16_values(bits).view(np.uint32) == np.ascontiguousarray(values).view(np.uint32)
    ).all()
    return ("BF16", bits) if exact else ("F32", values)


def compressed_quantization(layer: MoELayerInfo) -> dict[str, Any]:
    """The "quantization_config" that compressed-tensors' readers look for in config.json."""
    mxfp4 = layer.weight_format == "mxfp4"
    per_channel = layer.group_size == -1
    weights = {
        "num_bits": 4,
        "type": "float" if mxfp4 else "int",
        "symmetric": True,
        "strategy": "channel" if per_channel else "group",
        "group_size": None if per_channel else layer.group_size,
        "dynamic": False,
        **({"scale_dtype": "torch.uint8"} if mxfp4 else {}),
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    name = _COMPRESSED_FORMAT[layer.weight_format]
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "format": name}},
        "ignore": ["lm_head"],
    }
