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

from paddle import Tensor

from w4afp8._routes import call
from w4afp8._tracing import run_as_written


@run_as_written
def mla_k_up(q_nope: Tensor, w_k: Tensor, w_k_scale: Tensor) -> Tensor:
    """Multiplies the queries of each head by W_K: ``q_nope [tokens, nope] @ W_K [nope, lora]``.

    Then attention scores are products with the latent cache itself (DeepSeek-V2, section 2.1:
    W_UK is absorbed into W_UQ). The weights are the checkpoint's, exactly; sums are float32.

    For float16 a weight counts as zero where its scale is more than 2^36 below the largest one of
    its 32 outputs: so far below float16's own grid that it changes no bit of usual sums.

    Args:
        q_nope: Bfloat16 or float16 ``[tokens, heads, nope]``; nope is 64, 128 or 192, on the CPU
            any multiple of 64 up to 1024. May be a view, ``q[:, :, :nope]`` of the projected query,
            whose last dimension is contiguous; on a GPU its other strides are multiples of 8
            elements.
        w_k: Packed codes (`w4afp8.quant.split_kv_b_proj`), uint8 ``[heads, lora, nope / 2]``; lora
            is a multiple of 64.
        w_k_scale: Packed scales, uint8 ``[heads, lora / 32, nope]``.

    Returns:
        ``[tokens, heads, lora]`` of q_nope's dtype.

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
    return call("mla_k_up", q_nope, w_k, w_k_scale)


@run_as_written
def mla_v_up(x: Tensor, w_v: Tensor, w_v_scale: Tensor) -> Tensor:
    """Multiplies what each head attended to by W_V: ``x [tokens, lora] @ W_V [lora, v]``.

    Args:
        x: Bfloat16 or float16 ``[tokens, heads, lora]``, attention over the latent cache; lora is
            256, 512 or 768, on the CPU any multiple of 64 up to 1024. May be a view, as in
            `mla_k_up`.
        w_v: Packed codes (`w4afp8.quant.split_kv_b_proj`), uint8 ``[heads, v, lora / 2]``, v a
            multiple of 64.
        w_v_scale: Packed scales, uint8 ``[heads, v, lora / 32]``.

    Returns:
        ``[tokens, heads, v]`` of x's dtype.

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
    return call("mla_v_up", x, w_v, w_v_scale)
