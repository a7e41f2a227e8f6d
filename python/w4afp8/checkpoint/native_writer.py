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
"""Writes the native format: the packed tensors of W4AFP8MoEFFN, one file a layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from w4afp8.checkpoint.model import Checkpoint, ExpertWeights, MoELayerInfo, RouterWeights
from w4afp8.checkpoint.native_layout import (
    PROJECTIONS,
    ROUTER_TENSORS,
    native_prefix,
    packed_tensors,
    projection_sizes,
)
from w4afp8.checkpoint.native_metadata import Source, native_metadata
from w4afp8.checkpoint.shard_writer import SafetensorsWriter, TensorSpec
from w4afp8.checkpoint.writers import Shard, model_config
from w4afp8.layers.format_record import format_record
from w4afp8.quant import PackedWeight, QuantizedWeight, pack

_UNKNOWN_SHA256 = "0" * 64  # as long as the hash that replaces it


class NativeWriter:
    """One file a layer; the memory of one expert is enough."""

    def shards(self, checkpoint: Checkpoint) -> list[Shard]:
        return [Shard(layer, range(layer.experts)) for layer in checkpoint.layers]

    def write(
        self, path: Path, checkpoint: Checkpoint, shard: Shard, advance: Callable[[], None]
    ) -> float:
        layer, digest, error = shard.layer, hashlib.sha256(), 0.0
        first, router = checkpoint.read_expert(layer, 0), checkpoint.read_router(layer)
        fixed = dict(_fixed_tensors(layer, router))
        specs = _expert_specs(layer, first) | {
            name: TensorSpec("I32" if array.dtype == np.int32 else "F32", array.shape)
            for name, array in fixed.items()
        }
        source = Source(checkpoint.format, checkpoint.path.resolve().name, _UNKNOWN_SHA256)
        with SafetensorsWriter(path, specs, native_metadata(layer, source, router)) as file:
            for name, array in fixed.items():
                file.write(name, array)
            for expert in shard.experts:
                weights = first if expert == 0 else checkpoint.read_expert(layer, expert)
                for name, row in _expert_rows(layer, weights):
                    file.write_row(name, expert, row)
                update_digest(digest, weights)
                error = max(error, weights.error)
                checkpoint.release()
                advance()
            source = Source(source.format, source.name, digest.hexdigest())
            file.replace_metadata(native_metadata(layer, source, router))
        return error

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return model_config(checkpoint)


def update_digest(digest: Any, weights: ExpertWeights) -> None:
    """Adds one expert, in checkpoint order, to the hash of a layer's source.

    The hash is of the numbers, so that it is the same for every format that holds them: of each
    projection codes, scales, bias and input scale, each as little-endian bytes where there is one.

    Args:
        digest: a hash of `hashlib`.
        weights: the expert.
    """
    for _, weight, bias, input_scale in _projections(weights):
        arrays: list[Any] = [weight.codes, weight.scale]
        arrays += [] if bias is None else [bias]
        arrays += [] if input_scale is None else [np.float32(input_scale)]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())


def _projections(
    weights: ExpertWeights,
) -> Iterator[tuple[str, QuantizedWeight, NDArray[np.float32] | None, float | None]]:
    up_gate, down = PROJECTIONS
    yield up_gate, weights.up_gate, weights.up_gate_bias, weights.up_gate_input_scale
    yield down, weights.down, weights.down_bias, weights.down_input_scale


def _expert_specs(layer: MoELayerInfo, first: ExpertWeights) -> dict[str, TensorSpec]:
    """The tensors that have a row for each expert; the first expert tells which there are."""
    specs = {}
    for projection, _, bias, input_scale in _projections(first):
        prefix = native_prefix(layer, projection)
        for name, spec in packed_tensors(layer, projection).items():
            specs[prefix + name] = spec
        if bias is not None:
            specs[prefix + "bias"] = TensorSpec("F32", (layer.experts, len(bias)))
        if input_scale is not None:
            specs[prefix + "input_scale"] = TensorSpec("F32", (layer.experts,))
    if not layer.exact:
        specs[f"{layer.prefix}.error"] = TensorSpec("F32", (layer.experts,))
    return specs


def _expert_rows(layer: MoELayerInfo, weights: ExpertWeights) -> Iterator[tuple[str, NDArray[Any]]]:
    """One expert's rows of those tensors."""
    for projection, weight, bias, input_scale in _projections(weights):
        prefix = native_prefix(layer, projection)
        packed = pack(weight, place=paddle.CPUPlace())
        for name, tensor in _packed_operands(packed):
            yield prefix + name, tensor.numpy()[0]  # numpy shows bfloat16 as its bits
        if bias is not None:
            yield prefix + "bias", bias
        if input_scale is not None:
            yield prefix + "input_scale", np.array(input_scale, dtype=np.float32)
    if not layer.exact:
        yield f"{layer.prefix}.error", np.array(weights.error, dtype=np.float32)


def _packed_operands(packed: PackedWeight) -> Iterator[tuple[str, paddle.Tensor]]:
    yield "weight", packed.weight
    yield "weight_scale", packed.weight_scale
    if packed.group_scale is not None:
        yield "group_scale", packed.group_scale


def _fixed_tensors(
    layer: MoELayerInfo, router: RouterWeights | None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Tensors of the layer, not of its experts: the router, and what packed bytes do not tell."""
    for projection in PROJECTIONS:
        sizes = (layer.experts, *projection_sizes(layer, projection))
        record = format_record(layer.weight_format, layer.group_size, *sizes)
        yield native_prefix(layer, projection) + "format", np.array(record, dtype=np.int32)
    for name in ROUTER_TENSORS if router is not None else ():
        values = getattr(router, name)
        if values is not None:
            yield native_prefix(layer, "router") + name, values
