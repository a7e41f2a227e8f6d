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
"""The parameters that the quantisation method gives FastDeploy's layer, and what they hold."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import Tensor, nn

from w4afp8.fastdeploy.scales import GROUP_SIZE
from w4afp8.fastdeploy.weights import packed_operand
from w4afp8.incubate.nn.functional._projections import Projection
from w4afp8.layers.operands import contiguous, on_place_of

WEIGHTS = ("up_gate_proj_weight", "down_proj_weight")
SCALES = ("up_gate_proj_weight_scale", "down_proj_weight_scale")
IN_SCALES = ("up_gate_proj_in_scale", "down_proj_in_scale")

_STATIC_RANGE = 448.0  # what the largest activation becomes
_LARGEST_CODE = 7.0  # a checkpoint's scale is the largest magnitude of the weights
_KNOWN = "_w4afp8_projections"  # a layer's, beside its parameters


def projections(layer: nn.Layer) -> tuple[Projection, Projection]:
    """The layer's parameters as the grouped GEMM takes them, without a copy.

    Views are made once, and again where a parameter has other memory; that of a known one is
    not given back before, so that no other parameter can have its address.
    """
    weights = [getattr(layer, name) for name in WEIGHTS]
    scales = [getattr(layer, name) for name in SCALES]
    addresses = [tensor.data_ptr() for tensor in weights + scales]
    known: tuple[list[int], tuple[Projection, Projection]] | None = layer.__dict__.get(_KNOWN)
    if known is not None and known[0] == addresses:
        return known[1]
    features = [inside for _, inside in sizes(layer)]
    parts = zip(WEIGHTS, weights, scales, features, strict=True)
    up_gate, down = (_projection(*part) for part in parts)
    views = [up_gate.weight, down.weight, _scale_of(up_gate), _scale_of(down)]
    # Else a view is a copy here, which would not see a change.
    if [view.data_ptr() for view in views] == addresses:
        layer.__dict__[_KNOWN] = addresses, (up_gate, down)
    return up_gate, down


def _projection(name: str, weight: Tensor, scale: Tensor, features: int) -> Projection:
    """A parameter and its scales ``[experts, groups, out]`` as the grouped GEMM takes them."""
    experts, groups, out = scale.shape
    packed = packed_operand(name, weight, out, features)
    if groups == 1:
        with paddle.no_grad():
            return Projection(packed, scale.reshape([experts, out]))
    ones = on_place_of(scale, paddle.ones([experts, out], dtype="float32"))
    return Projection(packed, ones, scale, None, "int4", features // groups)


def _scale_of(projection: Projection) -> Tensor:
    """What is a view of the parameter."""
    groups = projection.group_scale
    return projection.weight_scale if groups is None else groups


def sizes(layer: nn.Layer) -> list[tuple[int, int]]:
    """out_features and in_features of both projections."""
    hidden, intermediate = layer.hidden_size, layer.moe_intermediate_size
    return [(2 * intermediate, hidden), (hidden, intermediate)]


def add_parameter(
    layer: nn.Layer, name: str, shape: list[int], dtype: str, place: Any = None
) -> None:
    """Zeros, on Paddle's current device where no place is given."""
    zeros = nn.initializer.Constant(0)
    parameter = layer.create_parameter(
        shape=shape, dtype=dtype, default_initializer=zeros, device=place
    )
    parameter.stop_gradient = True
    setattr(layer, name, parameter)


def popped(layer: nn.Layer, state: dict[str, Tensor], name: str, ids: list[int]) -> list[Tensor]:
    """The tensors of each expert that fill the parameter `name`."""
    template = layer.weight_key_map[name.replace("_proj_", "_proj_expert_") + "_key"]
    return [state.pop(template.format(expert)) for expert in ids]


def multiplier(largest: Tensor, in_scale: Tensor | None, in_features: int) -> Tensor:
    """What multiplies a code, of a checkpoint's scales, ``[experts, groups, out]``.

    Static: the activations' unit is folded in.
    """
    if largest.ndim == 2:
        largest = largest.unsqueeze(1)
    elif in_scale is None:
        largest = largest.transpose([0, 2, 1])  # [experts, out, groups]
    groups = largest.shape[1]
    if groups > 1 and in_features % (GROUP_SIZE * groups):
        raise ValueError(
            f"weight_scale: expected groups of 128 * n of {in_features} in_features, got {groups}"
        )
    if in_scale is None:
        return contiguous(largest / _LARGEST_CODE)
    return contiguous(largest / (_STATIC_RANGE * _LARGEST_CODE) / in_scale.reshape([-1, 1, 1]))
