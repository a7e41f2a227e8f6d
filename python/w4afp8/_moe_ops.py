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
"""The operators around the matrix products of a mixture-of-experts layer, for ``w4afp8.ops``."""

from __future__ import annotations

from typing import Literal

from paddle import Tensor

from w4afp8._routes import call

Activation = Literal["none", "swiglu", "swiglu_oai", "gelu"]
RouteScore = Literal["softmax", "sigmoid"]


def activation_quant(
    h: Tensor,
    tokens: Tensor,
    *,
    activation: Activation = "swiglu",
    token_padding: int = 0,
    hadamard_block_size: int = -1,
) -> tuple[Tensor, Tensor]:
    """Applies an activation, then quantises each row that holds a token to FP8.

    What the activation gives, computed in float32, is rounded to the type of h first: so it is the
    same whether this operator applies it or a grouped GEMM has (``ops.group_gemm``'s
    ``activation``) and this one is given ``"none"``.

    Args:
        h: Bfloat16 or float16 ``[num_tokens, features]`` or ``[experts, token_padding, features]``.
        tokens: Prefix sums or counts, see the module.
        activation: ``"swiglu"``: silu(gate) * up, with gate the first half of the features;
            ``"swiglu_oai"``: clamped at 7, gate * sigmoid(1.702 * gate) * (up + 1);
            ``"gelu"``: by erf, without a gate; ``"none"``: h is quantised as it is.
        token_padding: Rows of h for each expert, or 0.
        hadamard_block_size: -1, or a power of two from 8 to 16384 dividing the output features:
            each block of so many is transformed in between by the Walsh-Hadamard matrix in natural
            order over its root (``scipy.linalg.hadamard(n) / sqrt(n)``). On a GPU they are at most
            16384 output features, and h is aligned to 16 bytes.

    Returns:
        Float8_e4m3fn of the shape of h with half the features (gelu and none: all), and its scale,
        float32 of that shape without features. Rows that hold no token are not written.

    Raises:
        ValueError: An argument is wrong.

    Examples:
        >>> import paddle
        >>> h = paddle.rand([6, 256]).astype("bfloat16")
        >>> values, scale = activation_quant(h, paddle.to_tensor([4, 6], dtype="int32"))
        >>> values.shape, scale.shape
        (paddle.Size([6, 128]), paddle.Size([6]))
    """
    return call("activation_quant", h, tokens, activation, token_padding, hadamard_block_size)


def moe_route(
    logits: Tensor,
    *,
    topk: int,
    correction_bias: Tensor | None = None,
    score: RouteScore = "softmax",
    norm_topk_prob: bool = True,
    routed_scaling_factor: float = 1.0,
    n_group: int = 1,
    topk_group: int = 1,
) -> tuple[Tensor, Tensor]:
    """Chooses the experts of each token.

    Args:
        logits: Float32, bfloat16 or float16 ``[tokens, experts]``, up to 1024 experts.
        topk: Experts per token, up to 32 and ``topk_group * experts / n_group``.
        correction_bias: Float32 ``[experts]``, added to the scores for the choice only.
        score: ``"softmax"`` or ``"sigmoid"`` of the logits.
        norm_topk_prob: Whether the chosen scores are divided by their sum.
        routed_scaling_factor: Multiplies the weights at last.
        n_group: Groups of neighbouring experts, up to 32; divides the experts.
        topk_group: Groups that a token may choose from: those with the largest sums of their two
            largest biased scores (ties: the lower group), as DeepSeek-V3 has it.

    Returns:
        Weights, float32 ``[tokens, topk]``, and experts, int32 ``[tokens, topk]``, the best first
        (ties: the lower expert).

    Raises:
        ValueError: An argument is wrong.

    Examples:
        >>> import paddle
        >>> topk_weights, topk_ids = moe_route(paddle.rand([6, 8]), topk=2)
        >>> topk_ids.shape
        paddle.Size([6, 2])
    """
    return call(
        "moe_route",
        *(logits, correction_bias, topk, score, norm_topk_prob, routed_scaling_factor),
        *(n_group, topk_group),
    )


def moe_dispatch(
    x: Tensor, topk_ids: Tensor, *, experts: int, token_padding: int = 0, first_expert: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Copies each token once for every expert it goes to, sorted by expert, quantised to FP8.

    Args:
        x: Bfloat16 or float16 ``[tokens, hidden]``.
        topk_ids: Int32 ``[tokens, topk]``; an id outside
            ``[first_expert, first_expert + experts)`` drops the copy.
        experts: Number of experts, up to 1024.
        token_padding: Rows for each expert, or 0 for copies one after the other. An expert that is
            full drops the copies of later tokens.
        first_expert: Number of the first expert in ``topk_ids``: the rank's of expert parallelism.

    Returns:
        Copies, float8_e4m3fn ``[tokens * topk, hidden]``; their scales, float32
        ``[tokens * topk]``; prefix sums, int32 ``[experts + 1]``; the row that each copy went to,
        int32 ``[tokens, topk]``, -1 where it was dropped. With a padding P: copies
        ``[experts, P, hidden]``, scales ``[experts, P]``, counts ``[experts]`` and rows
        ``expert * P + place``. Tokens of an expert are in order; rows without one are not written.

    Raises:
        ValueError: An argument is wrong.

    Examples:
        >>> import paddle
        >>> ids = paddle.to_tensor([[1, 0], [1, 2]], dtype="int32")
        >>> _, _, sums, _ = moe_dispatch(paddle.rand([2, 64]).astype("bfloat16"), ids, experts=3)
        >>> sums.tolist()
        [0, 1, 3, 4]
    """
    return call("moe_dispatch", x, topk_ids, experts, token_padding, first_expert)


def moe_combine(
    y: Tensor, topk_weights: Tensor, row_index: Tensor, *, shared_output: Tensor | None = None
) -> Tensor:
    """Adds up what the experts made of each token, in float32, slots in order.

    Args:
        y: Bfloat16 or float16 ``[rows, hidden]``, or ``[experts, token_padding, hidden]``.
        topk_weights: Float32 ``[tokens, topk]``.
        row_index: Int32 ``[tokens, topk]`` (``moe_dispatch``); an index outside ``[0, rows)`` adds
            nothing.
        shared_output: ``[tokens, hidden]`` of y's dtype, added last: the shared experts' output.

    Returns:
        ``[tokens, hidden]`` of y's dtype.

    Raises:
        ValueError: An argument is wrong.

    Examples:
        >>> import paddle
        >>> y = paddle.ones([4, 64], dtype="bfloat16")
        >>> rows = paddle.to_tensor([[1, 0], [2, 3]], dtype="int32")
        >>> moe_combine(y, paddle.full([2, 2], 0.5), rows).shape
        paddle.Size([2, 64])
    """
    return call("moe_combine", y, topk_weights, row_index, shared_output)
