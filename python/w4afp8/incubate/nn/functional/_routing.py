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
"""From the router's output to rows sorted by expert, and back."""

from __future__ import annotations

import paddle
from paddle import Tensor

from w4afp8 import ops
from w4afp8._checks import dtype_name
from w4afp8.layers.operands import contiguous, on_place_of


def choose_experts(
    gating_output: Tensor,
    *,
    topk: int,
    correction_bias: Tensor | None = None,
    norm_topk_prob: bool = False,
    group_moe: bool = False,
    topk_only_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Chooses the experts of each token.

    Args:
        gating_output: float32, bfloat16 or float16 ``[tokens, experts]``: logits, or with
            `topk_only_mode` the scores themselves.
        topk: experts of each token.
        correction_bias: float32 ``[experts]``, added to the scores for the choice only.
        norm_topk_prob: divide the chosen scores by their sum.
        group_moe: refused where True.
        topk_only_mode: take no softmax.

    Returns:
        Scores float32 and experts int32, both ``[tokens, topk]``, the best first.

    Raises:
        ValueError: an argument is wrong.
    """
    if group_moe:
        raise ValueError("group_moe: expected False (one softmax over all experts), got True")
    if not topk_only_mode:
        return ops.moe_route(
            contiguous(gating_output),
            topk=topk,
            correction_bias=correction_bias,
            norm_topk_prob=norm_topk_prob,
        )
    experts = gating_output.shape[-1]
    if not 1 <= topk <= experts:
        raise ValueError(f"moe_topk: expected 1 to {experts}, the experts, got {topk}")
    scores = gating_output.astype("float32")
    choice = scores if correction_bias is None else scores + correction_bias
    ids = paddle.argsort(choice, axis=-1, descending=True, stable=True)[:, :topk]
    weights = paddle.take_along_axis(scores, ids, axis=-1)
    if norm_topk_prob:
        weights = normalised(weights)
    ids = contiguous(ids.astype("int32"))
    return on_place_of(gating_output, contiguous(weights)), on_place_of(gating_output, ids)


def normalised(weights: Tensor) -> Tensor:
    """Weights ``[tokens, topk]`` divided by each token's sum."""
    return weights / weights.sum(axis=-1, keepdim=True)


def inclusive_sums(prefix_sums: Tensor) -> Tensor:
    """int32 ``[experts + 1]`` with a leading 0 to int64 ``[experts]`` without."""
    return contiguous(prefix_sums[1:].astype("int64"))


def permute_rows(x: Tensor, topk_ids: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Copies each token once for every expert it goes to, sorted by expert, unquantised.

    Args:
        x: bfloat16 or float16 ``[tokens, hidden]``.
        topk_ids: int32 ``[tokens, topk]``, all of them experts.
        experts: number of experts.

    Returns:
        Copies ``[tokens * topk, hidden]`` of x's type; prefix sums int32 ``[experts + 1]``; the row
        of each copy, int32 ``[tokens, topk]``.
    """
    # The operator sorts and quantises; of one feature the latter costs nothing.
    one_feature = contiguous(x[:, :1])
    _, _, prefix_sums, row_index = ops.moe_dispatch(one_feature, topk_ids, experts=experts)
    slot = paddle.argsort(row_index.reshape([-1]))
    return gather_rows(x, slot // topk_ids.shape[1]), prefix_sums, row_index


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x by number. Paddle's gather has no float16 on the CPU; float32 holds all of it."""
    if dtype_name(x.dtype) == "float16":
        return on_place_of(x, paddle.gather(x.astype("float32"), index).astype("float16"))
    return on_place_of(x, paddle.gather(x, index))


def transposed(index: Tensor) -> Tensor:
    """``[a, b]`` to ``[b, a]``: Paddle's indices have slots first, ours tokens."""
    return contiguous(index.transpose([1, 0]))


def reduce_rows(
    ffn_out: Tensor,
    weights: Tensor,
    permute_indices_per_token: Tensor,
    topk_ids: Tensor,
    bias: Tensor | None,
    *,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> Tensor:
    """Adds up what the experts made of each token, in float32, with one rounding at last.

    Args:
        ffn_out: bfloat16 or float16 ``[tokens * topk, hidden]``.
        weights: float32 ``[tokens, topk]``.
        permute_indices_per_token: int32 ``[topk, tokens]``, rows of `ffn_out`.
        topk_ids: int32 ``[tokens, topk]``, experts; read only where there is a bias.
        bias: ``[experts, hidden]`` or ``[experts, 1, hidden]``, added to each expert's output.
        norm_topk_prob: divide each token's weights by their sum.
        routed_scaling_factor: multiplies the weights at last.

    Returns:
        ``[tokens, hidden]`` of `ffn_out`'s type.

    Raises:
        ValueError: an argument does not fit; with a bias, more than 16 experts of a token.
    """
    weights = weights.reshape([-1, topk_ids.shape[1]])
    if norm_topk_prob:
        weights = normalised(weights)
    if routed_scaling_factor != 1:
        weights = weights * routed_scaling_factor
    rows = transposed(permute_indices_per_token)
    if bias is None:
        return _combine(ffn_out, weights, rows)
    # The bias as further rows, one for each expert: it is weighted and added in float32 too.
    experts = bias.shape[0]
    bias_rows = bias.reshape([experts, -1]).astype(ffn_out.dtype)
    return _combine(
        paddle.concat([bias_rows, ffn_out]),
        paddle.concat([weights, weights], axis=1),
        paddle.concat([rows + experts, topk_ids], axis=1),
    )


def _combine(y: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    return ops.moe_combine(contiguous(y), *(on_place_of(y, contiguous(t)) for t in (weights, rows)))
