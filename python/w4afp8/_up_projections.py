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
"""The operators of multi-head latent attention; users find them in `w4afp8.ops`."""

from __future__ import annotations

import paddle
from paddle import Tensor

from w4afp8._checks import check_tensor, dtype_name
from w4afp8._routes import call
from w4afp8._tracing import run_as_written


@run_as_written
def mla_k_up(
    q_nope: Tensor,
    w_k: Tensor,
    w_k_scale: Tensor,
    q_scale: Tensor | None = None,
    out_dtype: str | paddle.dtype | None = None,
) -> Tensor:
    """Multiplies the queries of each head by W_K: ``q_nope [tokens, nope] @ W_K [nope, lora]``.

    Then attention scores are products with the latent cache itself (DeepSeek-V2, section 2.1:
    W_UK is absorbed into W_UQ). The weights are the checkpoint's, exactly; sums are float32.

    For float16 a weight counts as zero where its scale is more than 2^36 below the largest one of
    its 32 outputs: so far below float16's own grid that it changes no bit of usual sums. With FP8
    queries weights are exact within 14 binades of that scale, and smaller ones are rounded to a
    unit of 2^-15 times it.

    Args:
        q_nope: Bfloat16 or float16 ``[tokens, heads, nope]``; nope is 64, 128 or 192, on the CPU
            any multiple of 64 up to 1024. May be a view, ``q[:, :, :nope]`` of the projected query,
            whose last dimension is contiguous; on a GPU its other strides are multiples of 8
            elements. Or float8_e4m3fn beside a q_scale; then strides are multiples of 16.
        w_k: Packed codes (`w4afp8.quant.split_kv_b_proj`), uint8 ``[heads, lora, nope / 2]``; lora
            is a multiple of 64.
        w_k_scale: Packed scales, uint8 ``[heads, lora / 32, nope]``.
        q_scale: Float32 ``[tokens, heads]``, that FP8 queries are multiplied by
            (`quant_per_token_and_head`); None otherwise.
        out_dtype: ``"bfloat16"`` or ``"float16"``. None: q_nope's dtype, or bfloat16 if that is
            FP8.

    Returns:
        ``[tokens, heads, lora]`` of out_dtype.

    Raises:
        ValueError: An argument is wrong, or the GPU is not of the Hopper generation.

    Examples:
        >>> import paddle
        >>> from w4afp8.quant import split_kv_b_proj
        >>> up = split_kv_b_proj(paddle.randn([4 * 192, 256]), None, heads=4, nope=128, v=64)
        >>> q = paddle.randn([3, 4, 192]).astype("bfloat16")  # 128 features, then 64 rotary ones
        >>> mla_k_up(q[:, :, :128], up.w_k, up.w_k_scale).shape
        paddle.Size([3, 4, 256])
    """
    return call("mla_k_up", q_nope, w_k, w_k_scale, q_scale, _type_name(out_dtype))


@run_as_written
def mla_v_up(
    x: Tensor,
    w_v: Tensor,
    w_v_scale: Tensor,
    x_scale: Tensor | None = None,
    out_dtype: str | paddle.dtype | None = None,
) -> Tensor:
    """Multiplies what each head attended to by W_V: ``x [tokens, lora] @ W_V [lora, v]``.

    Weights count as in `mla_k_up`, relative to the largest scale of their output.

    Args:
        x: Bfloat16 or float16 ``[tokens, heads, lora]``, attention over the latent cache; lora is
            256, 512 or 768, on the CPU any multiple of 64 up to 1024. May be a view, as in
            `mla_k_up`. Or float8_e4m3fn beside an x_scale.
        w_v: Packed codes (`w4afp8.quant.split_kv_b_proj`), uint8 ``[heads, v, lora / 2]``, v a
            multiple of 64.
        w_v_scale: Packed scales, uint8 ``[heads, v, lora / 32]``.
        x_scale: Float32 ``[tokens, heads]``, that FP8 activations are multiplied by; else None.
        out_dtype: ``"bfloat16"`` or ``"float16"``. None: x's dtype, or bfloat16 if that is FP8.

    Returns:
        ``[tokens, heads, v]`` of out_dtype.

    Raises:
        ValueError: An argument is wrong, or the GPU is not of the Hopper generation.

    Examples:
        >>> import paddle
        >>> from w4afp8.quant import split_kv_b_proj
        >>> up = split_kv_b_proj(paddle.randn([4 * 192, 256]), None, heads=4, nope=128, v=64)
        >>> x = paddle.randn([3, 4, 256]).astype("bfloat16")
        >>> mla_v_up(x, up.w_v, up.w_v_scale).shape
        paddle.Size([3, 4, 64])
    """
    return call("mla_v_up", x, w_v, w_v_scale, x_scale, _type_name(out_dtype))


@run_as_written
def quant_per_token_and_head(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises the features of each token and head to FP8: ``scale = absmax / 448``.

    For `mla_k_up` and `mla_v_up`, where attention does not give FP8 itself.

    Args:
        x: Bfloat16, float16 or float32 ``[tokens, heads, features]``; copied if not contiguous.

    Returns:
        Float8_e4m3fn ``[tokens, heads, features]`` and its scale, float32 ``[tokens, heads]``.

    Raises:
        ValueError: ``x`` is wrong.

    Examples:
        >>> import paddle
        >>> values, scale = quant_per_token_and_head(paddle.rand([4, 2, 64]))
        >>> values.shape, scale.shape
        (paddle.Size([4, 2, 64]), paddle.Size([4, 2]))
    """
    check_tensor("x", x)
    if x.ndim != 3:
        raise ValueError(f"x: expected [tokens, heads, features], got {list(x.shape)}")
    return call("quant_per_token", x.contiguous() if paddle.in_dynamic_mode() else x)


def _type_name(out_dtype: str | paddle.dtype | None) -> str:
    """As the operators take it; "" for None."""
    if out_dtype is None or isinstance(out_dtype, str):
        return out_dtype or ""
    return dtype_name(out_dtype)
