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
"""fused_moe, moe_dispatch, moe_ffn and moe_reduce, as Paddle 3.x named them."""

from __future__ import annotations

import paddle
from paddle import Tensor

from w4afp8 import ops
from w4afp8._checks import dtype_name
from w4afp8._tracing import run_as_written
from w4afp8.incubate.nn.functional._projections import Scales, projection
from w4afp8.incubate.nn.functional._routing import (
    choose_experts,
    inclusive_sums,
    permute_rows,
    reduce_rows,
    transposed,
)
from w4afp8.layers.experts import run_experts
from w4afp8.layers.operands import contiguous, on_place_of, shape_of
from w4afp8.layers.precision import check_activation_dtype

QUANT_METHOD = "w4afp8"


@run_as_written
def fused_moe(
    x: Tensor,
    gate_weight: Tensor,
    ffn1_weight: Tensor,
    ffn2_weight: Tensor,
    ffn1_bias: Tensor | None = None,
    ffn1_scale: Scales = None,
    ffn2_bias: Tensor | None = None,
    ffn2_scale: Scales = None,
    quant_method: str = "None",
    moe_topk: int = 2,
    norm_topk_prob: bool = True,
    group_moe: bool = False,
) -> Tensor:
    """The whole block: router, experts and weighted sum, as `w4afp8.layers.W4AFP8MoEFFN`.

    Args:
        x: Bfloat16 or float16 ``[..., hidden]``.
        gate_weight: The router's weight, ``[hidden, experts]``; the logits are float32.
        ffn1_weight: Packed, uint8 ``[experts, padded 2 * intermediate, padded hidden / 2]``
            (``w4afp8.ops.pack_weight``), the gate's half first.
        ffn2_weight: Packed, uint8 ``[experts, padded hidden, padded intermediate / 2]``.
        ffn1_bias: ``[experts, 2 * intermediate]`` or ``[experts, 1, 2 * intermediate]``.
        ffn1_scale: Scales of ffn1_weight, see `moe_ffn`.
        ffn2_bias: ``[experts, hidden]`` or ``[experts, 1, hidden]``.
        ffn2_scale: Scales of ffn2_weight.
        quant_method: ``"w4afp8"``.
        moe_topk: Experts of each token.
        norm_topk_prob: Divide the chosen experts' probabilities by their sum.
        group_moe: False; True is refused.

    Returns:
        As x.

    Raises:
        ValueError: Another quant_method, or an argument that does not fit.

    Examples:
        >>> import paddle
        >>> from w4afp8.incubate.nn.functional import fused_moe
        >>> from w4afp8.quant import pack, quantize
        >>> ffn1, ffn2 = (pack(quantize(paddle.randn(s))) for s in ([4, 128, 64], [4, 64, 64]))
        >>> x, gate_weight = paddle.randn([2, 3, 64]).astype("bfloat16"), paddle.randn([64, 4])
        >>> scales = {"ffn1_scale": ffn1.weight_scale, "ffn2_scale": ffn2.weight_scale}
        >>> fused_moe(
        ...     x, gate_weight, ffn1.weight, ffn2.weight, quant_method="w4afp8", **scales
        ... ).shape
        paddle.Size([2, 3, 64])
    """
    check_quant_method(quant_method)
    check_activation_dtype(x.dtype, name="x: dtype")
    rows = contiguous(x if x.ndim == 2 else x.reshape([-1, x.shape[-1]]))
    # Automatic mixed precision would round the logits, and so change which experts are chosen.
    with paddle.amp.auto_cast(enable=False):
        logits = paddle.matmul(rows.astype("float32"), gate_weight.astype("float32"))
    topk_weights, topk_ids = choose_experts(
        on_place_of(rows, logits), topk=moe_topk, norm_topk_prob=norm_topk_prob, group_moe=group_moe
    )
    permuted, scale, tokens, row_index = ops.moe_dispatch(
        rows, topk_ids, experts=gate_weight.shape[1]
    )
    y = _experts(
        permuted,
        scale,
        tokens,
        (ffn1_weight, ffn1_scale, ffn1_bias),
        (ffn2_weight, ffn2_scale, ffn2_bias),
        dtype_name(x.dtype),
    )
    out = ops.moe_combine(y, topk_weights, row_index)
    return out if x.ndim == 2 else out.reshape(shape_of(x))


@run_as_written
def moe_dispatch(
    x: Tensor,
    gating_output: Tensor,
    moe_topk: int,
    group_moe: bool = False,
    topk_only_mode: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Chooses experts, and copies each token once for every expert it goes to, sorted by expert.

    Args:
        x: Bfloat16 or float16 ``[tokens, hidden]``.
        gating_output: Float32 ``[tokens, experts]``: logits, or with `topk_only_mode` scores.
        moe_topk: Experts of each token.
        group_moe: False; True is refused.
        topk_only_mode: Take the best scores, without a softmax.

    Returns:
        permute_input of x's type ``[tokens * topk, hidden]``; token_nums_per_expert, int64
        ``[experts]``: inclusive prefix sums, as Paddle's kernel gives them; the row of each copy,
        int32 ``[topk, tokens]``; expert_scales_float ``[tokens, topk]``, which are not normalised;
        top_k_indices, int32 ``[tokens, topk]``.

    Raises:
        ValueError: An argument is wrong.

    Examples:
        >>> import paddle
        >>> from w4afp8.incubate.nn.functional import moe_dispatch
        >>> x = paddle.randn([3, 64]).astype("bfloat16")
        >>> permuted, sums, rows, weights, ids = moe_dispatch(x, paddle.eye(3, 4), 2)
        >>> permuted.shape, sums.tolist()
        (paddle.Size([6, 64]), [3, 5, 6, 6])
    """
    weights, ids = choose_experts(
        gating_output, topk=moe_topk, group_moe=group_moe, topk_only_mode=topk_only_mode
    )
    permuted, prefix_sums, row_index = permute_rows(x, ids, gating_output.shape[-1])
    return permuted, inclusive_sums(prefix_sums), transposed(row_index), weights, ids


@run_as_written
def moe_ffn(
    permute_input: Tensor,
    token_nums_per_expert: Tensor,
    ffn1_weight: Tensor,
    ffn2_weight: Tensor,
    ffn1_bias: Tensor | None = None,
    ffn1_scale: Scales = None,
    ffn2_scale: Scales = None,
    quant_method: str = "None",
) -> Tensor:
    """Runs every expert on its rows: quantise, ffn1, SwiGLU, quantise, ffn2.

    Args:
        permute_input: Bfloat16 or float16 ``[rows, hidden]``, sorted by expert.
        token_nums_per_expert: Prefix sums, int64 or int32 ``[experts]``, as `moe_dispatch` gives
            them.
        ffn1_weight: Packed, uint8 ``[experts, padded 2 * intermediate, padded hidden / 2]``
            (``w4afp8.ops.pack_weight``), the gate's half first.
        ffn2_weight: Packed, uint8 ``[experts, padded hidden, padded intermediate / 2]``.
        ffn1_bias: ``[experts, 2 * intermediate]`` or ``[experts, 1, 2 * intermediate]``.
        ffn1_scale: What multiplies a code of ffn1_weight. Float32 ``[experts, 2 * intermediate]``:
            int4 with one scale per channel. Float32 or bfloat16 ``[experts, hidden / group_size,
            2 * intermediate]``: int4 groups. ``(weight_scale, group_scale)`` of a
            ``w4afp8.quant.PackedWeight``: any format; mxfp4 needs both.
        ffn2_scale: The same of ffn2_weight.
        quant_method: ``"w4afp8"``.

    Returns:
        ``[rows, hidden]`` of permute_input's type, without ffn2's bias (`moe_reduce` adds it).

    Raises:
        ValueError: Another quant_method, or an argument that does not fit.

    Examples:
        >>> import paddle
        >>> from w4afp8.incubate.nn.functional import moe_ffn
        >>> from w4afp8.quant import pack, quantize
        >>> ffn1 = pack(quantize(paddle.randn([2, 128, 64]), weight_format="mxfp4"))
        >>> ffn2 = pack(quantize(paddle.randn([2, 64, 64]), weight_format="mxfp4"))
        >>> x, sums = paddle.randn([5, 64]).astype("bfloat16"), paddle.to_tensor([3, 5])
        >>> moe_ffn(
        ...     *(x, sums, ffn1.weight, ffn2.weight),
        ...     ffn1_scale=(ffn1.weight_scale, ffn1.group_scale),
        ...     ffn2_scale=(ffn2.weight_scale, ffn2.group_scale),
        ...     quant_method="w4afp8",
        ... ).shape
        paddle.Size([5, 64])
    """
    check_quant_method(quant_method)
    dtype = check_activation_dtype(permute_input.dtype, name="permute_input: dtype")
    x, x_scale = ops.quant_per_token(permute_input)
    return _experts(
        x,
        x_scale,
        token_nums_per_expert,
        (ffn1_weight, ffn1_scale, ffn1_bias),
        (ffn2_weight, ffn2_scale, None),
        dtype,
    )


@run_as_written
def moe_reduce(
    ffn_out: Tensor,
    expert_scales_float: Tensor,
    permute_indices_per_token: Tensor,
    top_k_indices: Tensor,
    ffn2_bias: Tensor | None = None,
    norm_topk_prob: bool = False,
    routed_scaling_factor: float = 1.0,
) -> Tensor:
    """Adds up what the experts made of each token, weighted, in float32.

    Args:
        ffn_out: Bfloat16 or float16 ``[tokens * topk, hidden]``.
        expert_scales_float: Float32 ``[tokens, topk]``.
        permute_indices_per_token: Int32 ``[topk, tokens]``, rows of ffn_out.
        top_k_indices: Int32 ``[tokens, topk]``; read only where there is a bias.
        ffn2_bias: ``[experts, hidden]`` or ``[experts, 1, hidden]``; for up to 16 experts of a
            token.
        norm_topk_prob: Divide each token's weights by their sum.
        routed_scaling_factor: Multiplies the weights at last.

    Returns:
        ``[tokens, hidden]`` of ffn_out's type.

    Raises:
        ValueError: An argument does not fit.

    Examples:
        >>> import paddle
        >>> from w4afp8.incubate.nn.functional import moe_reduce
        >>> y, weights = paddle.ones([4, 8], dtype="bfloat16"), paddle.full([2, 2], 0.25)
        >>> rows = paddle.to_tensor([[0, 1], [2, 3]], dtype="int32")
        >>> float(moe_reduce(y, weights, rows, rows, norm_topk_prob=True)[0, 0])
        1.0
    """
    return reduce_rows(
        ffn_out,
        expert_scales_float,
        permute_indices_per_token,
        top_k_indices,
        ffn2_bias,
        norm_topk_prob=norm_topk_prob,
        routed_scaling_factor=routed_scaling_factor,
    )


def check_quant_method(quant_method: str) -> None:
    """Raises ValueError unless it is this package's."""
    if quant_method != QUANT_METHOD:
        raise ValueError(
            f"quant_method: expected {QUANT_METHOD!r} (4-bit weights, FP8 activations), got "
            f"{quant_method!r}"
        )


def _experts(
    x: Tensor,
    x_scale: Tensor,
    tokens: Tensor,
    ffn1: tuple[Tensor, Scales, Tensor | None],
    ffn2: tuple[Tensor, Scales, Tensor | None],
    dtype: str,
) -> Tensor:
    """Rows in FP8 to ``[rows, hidden]`` of `dtype`. ffn1, ffn2: weight, scale and bias."""
    up_gate = projection("ffn1", *ffn1[:2], x.shape[-1], bias=ffn1[2], dtype=dtype)
    intermediate = up_gate.weight_scale.shape[-1] // 2
    down = projection("ffn2", *ffn2[:2], intermediate, bias=ffn2[2], dtype=dtype)
    return run_experts(up_gate, down, x, tokens, x_scale, activation="swiglu", out_dtype=dtype)
