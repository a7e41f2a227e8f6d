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
"""The native format: which tensors a layer has, of which types and shapes.

They are the state of W4AFP8MoEFFN (docs/design.md, "Tensors of a quantised weight"), and what its
state does not hold: static input scales, the quantisation error (docs/checkpoints.md).
"""

from __future__ import annotations

from w4afp8.checkpoint.model import MoELayerInfo
from w4afp8.checkpoint.shard_writer import TensorSpec
from w4afp8.quant.packing import k_blocks_of, packed_shape

NATIVE_FORMAT = "w4afp8"
NATIVE_VERSION = "2"
PROJECTIONS = ("up_gate_proj", "down_proj")
ROUTER_TENSORS = ("weight", "bias", "correction_bias")

_STORED_NAMES = {"float32": "F32", "bfloat16": "BF16"}


def native_prefix(layer: MoELayerInfo, part: str) -> str:
    """What the names of the tensors of a projection or the router begin with."""
    return f"{layer.prefix}.{part}."


def projection_sizes(layer: MoELayerInfo, projection: str) -> tuple[int, int]:
    """out_features and in_features of one of `PROJECTIONS`."""
    if projection == "down_proj":
        return layer.hidden_size, layer.intermediate_size
    gates = 1 if layer.activation == "gelu" else 2
    return gates * layer.intermediate_size, layer.hidden_size


def packed_tensors(layer: MoELayerInfo, projection: str) -> dict[str, TensorSpec]:
    """The packed weight and its scales, by their names in a layer's state."""
    out, features = projection_sizes(layer, projection)
    experts = layer.experts
    tensors = {
        "weight": TensorSpec("U8", (experts, *packed_shape(out, features))),
        "weight_scale": TensorSpec("F32", (experts, out)),
    }
    if layer.weight_format == "mxfp4":
        tensors["group_scale"] = TensorSpec("U8", (experts, k_blocks_of(features), out, 4))
    elif layer.group_size != -1:
        shape = (experts, features // layer.group_size, out)
        tensors["group_scale"] = TensorSpec(_STORED_NAMES[layer.scale_dtype], shape)
    return tensors


def packed_bytes(layer: MoELayerInfo) -> int:
    """Bytes of a layer's packed weights and scales, in a file as in memory."""
    return sum(
        spec.nbytes
        for projection in PROJECTIONS
        for spec in packed_tensors(layer, projection).values()
    )
