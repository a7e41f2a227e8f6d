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
"""FastDeploy's steps before and after the experts."""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor

from w4afp8 import ops
from w4afp8.fastdeploy.activations import dequant_scale, to_fp8
from w4afp8.incubate.nn.functional._routing import (
    choose_experts,
    inclusive_sums,
    permute_rows,
    reduce_rows,
    transposed,
)
from w4afp8.incubate.nn.functional.moe import check_quant_method
from w4afp8.layers.operands import contiguous, on_place_of


class Dispatched(NamedTuple):
    """What `moe_expert_dispatch` gives, in FastDeploy's order."""

    permute_input: Tensor
    tokens_expert_prefix_sum: Tensor
    permute_indices_per_token: Tensor
    topk_weight: Tensor
    topk_idx: Tensor
    expert_idx_per_token: Tensor
    dequant_scale: Tensor
    max_tokens_per_expert: Tensor


def moe_expert_dispatch(
    input: Tensor,  # noqa: A002 (FastDeploy's name)
    gating_output: Tensor,
    gating_correction_bias: Tensor | None = None,
    w4a8_in_scale: Tensor | None = None,
    moe_topk: int = 2,
    group_moe: bool = False,
    moe_quant_type: str = "w4afp8",
    topk_only_mode: bool = False,
) -> Dispatched:
    """Chooses experts, copies each token for every expert it goes to, and quantises to FP8.

    Args:
        input: Bfloat16 or float16 ``[tokens, hidden]``.
        gating_output: Float32 ``[tokens, experts]``: logits, or with `topk_only_mode` scores.
        gating_correction_bias: Float32 ``[experts]``, added to the scores for the choice only.
        w4a8_in_scale: Static quantisation: float32 ``[experts]``, 1 over the largest magnitude.
            None: dynamic, each token by its own.
        moe_topk: Experts of each token.
        group_moe: False; True is refused.
        moe_quant_type: ``"w4afp8"``.
        topk_only_mode: Take the best scores, without a softmax.

    Returns:
        Eight tensors (FastDeploy's older form: the first seven). permute_input, float8_e4m3fn
        ``[tokens * topk, hidden]``; inclusive prefix sums, int64 ``[experts]``; the row of each
        copy, int32 ``[topk, tokens]``; scores, float32 ``[tokens, topk]``, not normalised; experts,
        int32 ``[tokens, topk]``; the expert of each row, int32 ``[tokens * topk]``; dequant_scale,
        float32 ``[tokens * topk]``, 440 times what multiplies an FP8 value (static: ``[1]``, a 1
        that means nothing); the largest number of tokens of an expert, int64 ``[1]``.

    Raises:
        ValueError: An argument is wrong.
    """
    check_quant_method(moe_quant_type)
    experts = gating_output.shape[-1]
    weights, ids = choose_experts(
        gating_output,
        topk=moe_topk,
        correction_bias=gating_correction_bias,
        group_moe=group_moe,
        topk_only_mode=topk_only_mode,
    )
    row_experts = on_place_of(ids, paddle.sort(ids.reshape([-1])))
    if w4a8_in_scale is None:
        permuted, scale, prefix_sums, row_index = ops.moe_dispatch(
            contiguous(input), ids, experts=experts
        )
        scale = dequant_scale(scale)
    else:
        rows, prefix_sums, row_index = permute_rows(input, ids, experts)
        permuted = to_fp8(rows, paddle.gather(w4a8_in_scale, row_experts).unsqueeze(-1))
        scale = on_place_of(input, paddle.ones([1], dtype="float32"))
    counts = (prefix_sums[1:] - prefix_sums[:-1]).astype("int64")
    return Dispatched(
        permuted,
        inclusive_sums(prefix_sums),
        transposed(row_index),
        weights,
        ids,
        row_experts,
        scale,
        counts.max().reshape([1]),
    )


def moe_expert_reduce(
    ffn_out: Tensor,
    top_k_weight: Tensor,
    permute_indices_per_token: Tensor,
    top_k_indices: Tensor,
    down_proj_bias: Tensor | None = None,
    norm_topk_prob: bool = False,
    routed_scaling_factor: float = 1.0,
) -> Tensor:
    """Adds up what the experts made of each token, weighted, in float32.

    Args:
        ffn_out: Bfloat16 or float16 ``[tokens * topk, hidden]``.
        top_k_weight: Float32 ``[tokens, topk]``.
        permute_indices_per_token: Int32 ``[topk, tokens]``, rows of ffn_out.
        top_k_indices: Int32 ``[tokens, topk]``.
        down_proj_bias: ``[experts, hidden]``; for up to 16 experts of a token.
        norm_topk_prob: Divide each token's weights by their sum.
        routed_scaling_factor: Multiplies the weights at last.

    Returns:
        ``[tokens, hidden]`` of ffn_out's type.

    Raises:
        ValueError: An argument does not fit.
    """
    return reduce_rows(
        ffn_out,
        top_k_weight,
        permute_indices_per_token,
        top_k_indices,
        down_proj_bias,
        norm_topk_prob=norm_topk_prob,
        routed_scaling_factor=routed_scaling_factor,
    )
