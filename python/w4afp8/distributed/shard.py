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
"""A rank's part of the experts."""

from __future__ import annotations

import dataclasses

from paddle import Tensor

from w4afp8.layers.expert_linear import ExpertLinear
from w4afp8.layers.operands import scale_dtype_of
from w4afp8.layers.router import MoERouter


def shard_of(linear: ExpertLinear, experts: range) -> ExpertLinear | None:
    """A layer with some of the experts of another; None for none.

    The weights are copied: as a view, the shard would keep the memory of all experts.
    """
    if not experts:
        return None

    def part(tensor: Tensor) -> Tensor:
        return tensor[experts.start : experts.stop].clone()

    whole = linear.packed_weight
    packed = dataclasses.replace(
        whole,
        weight=part(whole.weight),
        weight_scale=part(whole.weight_scale),
        group_scale=None if whole.group_scale is None else part(whole.group_scale),
    )
    shard = ExpertLinear(
        linear.in_features,
        linear.out_features,
        len(experts),
        weight_format=linear.weight_format,
        group_size=linear.group_size,
        scale_dtype=scale_dtype_of(packed),
        has_bias=linear.bias is not None,
        dtype=linear.activation_dtype,
        accumulation=linear.accumulation,
    )
    shard.set_weight(packed)
    if linear.bias is not None:
        shard.set_bias(part(linear.bias))
    return shard


def copy_of(router: MoERouter, hidden_size: int) -> MoERouter:
    """A router of its own with the same options and state: every rank routes its own tokens."""
    copy = MoERouter(
        hidden_size,
        router.num_experts,
        router.topk,
        scoring=router.scoring,
        norm_topk_prob=router.norm_topk_prob,
        routed_scaling_factor=router.routed_scaling_factor,
        n_group=router.n_group,
        topk_group=router.topk_group,
        has_weight=router.weight is not None,
        has_correction_bias=router.correction_bias is not None,
        dtype=router.activation_dtype,
    )
    for name in ("weight", "correction_bias"):
        value = getattr(router, name)
        if value is not None:
            copy.set_state(name, value.clone(), called=name)
    return copy
