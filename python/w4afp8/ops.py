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
"""The operators, on CPU tensors and on tensors of a Hopper GPU.

Words: ``tokens`` rows of activations, ``experts`` weight matrices ``[out_features, in_features]``.
Which rows belong to which expert is read where the counts live, without a copy to the host:

* ``token_padding == 0``: activations ``[num_tokens, ...]`` sorted by expert, ``tokens`` prefix
  sums, int32 or int64, ``[experts + 1]`` with a leading 0 or ``[experts]`` without.
* ``token_padding == P``: activations ``[experts, P, ...]``, ``tokens`` the counts ``[experts]``.
  Rows that hold no token are never written.

Every wrong argument raises a ValueError with its name, what was expected and what came.
"""

from __future__ import annotations

from typing import Literal

import paddle
from paddle import Tensor

from w4afp8._moe_ops import activation_quant, moe_combine, moe_dispatch, moe_route
from w4afp8._routes import call, force_route
from w4afp8._tracing import run_as_written
from w4afp8._up_projections import mla_k_up, mla_v_up, quant_per_token_and_head

__all__ = [
    "activation_quant",
    "force_route",
    "group_gemm",
    "mla_k_up",
    "mla_v_up",
    "moe_combine",
    "moe_dispatch",
    "moe_route",
    "pack_weight",
    "quant_per_token",
    "quant_per_token_and_head",
    "unpack_weight",
]

WeightFormat = Literal["int4", "mxfp4"]
Accumulation = Literal["default", "half", "float32"]
GatedActivation = Literal["none", "swiglu", "swiglu_oai"]

_HALF_NAMES = {paddle.bfloat16: "bfloat16", paddle.float16: "float16"}


@run_as_written
def group_gemm(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    tokens: Tensor,
    *,
    group_scale: Tensor | None = None,
    x_scale: Tensor | None = None,
    bias: Tensor | None = None,
    weight_format: WeightFormat = "int4",
    group_size: int = -1,
    token_padding: int = 0,
    max_tokens: int = -1,
    out_dtype: str | paddle.dtype = "bfloat16",
    accumulation: Accumulation = "default",
    activation: GatedActivation = "none",
) -> Tensor:
    """Multiplies the tokens of every expert by that expert's weights, in one launch.

    ``out[t, o] = x_scale[t] * weight_scale[e, o] * sum_i x[t, i] * code[e, o, i] *
    group_scale[e, o, i // group_size] + bias[e, o]``.

    With an activation, the first half of the outputs are gates, the second what they let through:
    both are rounded to ``out_dtype``, and so is what the activation makes of them in float32. The
    bits are those of ``activation_quant`` on outputs without it, before their quantisation:
    ``activation_quant(..., activation="none")`` completes it.

    A CUDA graph of it can be replayed with other counts, and beside other work; but two executable
    graphs made of one capture, which write the same output, must not run at the same time.

    Args:
        x: Activations, float8_e4m3fn ``[num_tokens, in_features]`` or
            ``[experts, token_padding, in_features]``; in_features is a multiple of 32.
        weight: Packed codes (``pack_weight``), uint8 ``[experts, padded_out, padded_in / 2]``.
        weight_scale: Float32 ``[experts, out_features]``, up to 1024 experts; out_features is a
            multiple of 8.
        tokens: Prefix sums or counts, see the module.
        group_scale: None with ``group_size=-1``; int4 groups: float32 or bfloat16
            ``[experts, in_features / group_size, out_features]``; mxfp4: uint8
            ``[experts, in_features / 128 rounded up, out_features, 4]``, value
            ``2 ** (byte - 254)``.
        x_scale: Float32 ``[1]``, or one per token: the shape of x without in_features.
        bias: ``[experts, out_features]`` of ``out_dtype``.
        weight_format: ``"int4"`` (two's complement) or ``"mxfp4"`` (E2M1).
        group_size: Weights along in_features that share a scale: -1 (none), 32, 64 or a multiple
            of 128; mxfp4: 32 or -1.
        token_padding: Rows of x for each expert, or 0.
        max_tokens: Tokens that one expert probably has, on average if they differ; -1 unknown. A
            hint for speed only.
        out_dtype: ``"bfloat16"`` or ``"float16"``.
        accumulation: What the GPU adds up sums of 128 products in (docs/numerics.md): ``"half"``
            precision, which is the fastest above 64 tokens an expert, ``"float32"``, the most
            precise, or ``"default"``: half for bfloat16; for float16 float32, and there int4 per
            channel sums up to 2816 products at a time, mxfp4 1664. On normal data all of these keep
            the error within twice the output's rounding; so many products of one sign drift by
            percents. int4's groups of 32 and 64, and the CPU, always have float32.
        activation: ``"none"``, or as ``activation_quant`` has them ``"swiglu"`` or
            ``"swiglu_oai"``; on a GPU out_features is then a multiple of 128.

    Returns:
        ``out_dtype``, the shape of x with out_features last; with an activation half as many.

    Raises:
        ValueError: An argument is wrong, or the GPU is not of the Hopper generation.

    Examples:
        >>> x, x_scale = quant_per_token(paddle.rand([6, 128]))
        >>> weight = pack_weight(paddle.zeros([2, 64, 64], dtype="uint8"))
        >>> tokens = paddle.to_tensor([0, 4, 6], dtype="int32")  # 4 tokens, then 2
        >>> group_gemm(x, weight, paddle.ones([2, 64]), tokens, x_scale=x_scale).shape
        paddle.Size([6, 64])
    """
    if out_dtype.__class__ is not str:
        out_dtype = _HALF_NAMES.get(out_dtype, str(out_dtype))
    return call(  # tuples that are unpacked here would take longer than all else
        "group_gemm",
        x,
        weight,
        weight_scale,
        tokens,
        group_scale,
        x_scale,
        bias,
        weight_format,
        group_size,
        token_padding,
        max_tokens,
        out_dtype,
        accumulation,
        activation,
    )


def pack_weight(codes: Tensor, *, weight_format: WeightFormat = "int4") -> Tensor:
    """Brings 4-bit codes into the order that ``group_gemm`` reads. Loses nothing.

    Args:
        codes: Uint8 ``[experts, out_features, in_features / 2]``, the even element in the low
            nibble; int4 two's complement or E2M1 bits. in_features is a multiple of 32.
        weight_format: ``"int4"`` or ``"mxfp4"``.

    Returns:
        Uint8 ``[experts, padded_out, padded_in / 2]``, both padded to 64 with zero codes.

    Raises:
        ValueError: An argument is wrong.

    Examples:
        >>> pack_weight(paddle.zeros([8, 96, 96], dtype="uint8")).shape
        paddle.Size([8, 128, 96])
    """
    return call("pack_weight", codes, weight_format)


def unpack_weight(
    packed: Tensor, *, out_features: int, in_features: int, weight_format: WeightFormat = "int4"
) -> Tensor:
    """Undoes ``pack_weight``.

    Args:
        packed: Uint8 ``[experts, padded_out, padded_in / 2]``.
        out_features: Outputs without padding.
        in_features: Inputs without padding, a multiple of 32.
        weight_format: ``"int4"`` or ``"mxfp4"``, as it was packed.

    Returns:
        Uint8 ``[experts, out_features, in_features / 2]``.

    Raises:
        ValueError: An argument is wrong.

    Examples:
        >>> packed = pack_weight(paddle.zeros([8, 96, 96], dtype="uint8"))
        >>> unpack_weight(packed, out_features=96, in_features=192).shape
        paddle.Size([8, 96, 96])
    """
    return call("unpack_weight", packed, weight_format, out_features, in_features)


def quant_per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises each row to FP8: ``scale = absmax / 448``, rounded to nearest even.

    Args:
        x: Bfloat16, float16 or float32 ``[tokens, features]`` or ``[tokens, heads, features]``. NaN
            stays NaN, infinity becomes it.

    Returns:
        Float8_e4m3fn of the shape of x, and its scale, float32 of that shape without features.

    Raises:
        ValueError: ``x`` is wrong.

    Examples:
        >>> values, scale = quant_per_token(paddle.rand([4, 256]))
        >>> values.shape, scale.shape
        (paddle.Size([4, 256]), paddle.Size([4]))
    """
    return call("quant_per_token", x)
