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
"""FastDeploy's grouped GEMM, in the forms that its versions had."""

from __future__ import annotations

import math
from typing import Any

from paddle import Tensor

from w4afp8._checks import dtype_name
from w4afp8.fastdeploy.scales import plain_scales
from w4afp8.fastdeploy.weights import packed_operand
from w4afp8.incubate.nn.functional._projections import Projection
from w4afp8.layers.operands import contiguous
from w4afp8.quant.packing import packed_shape

_SETTINGS = ("token_padding_size", "max_tokens", "is_bfloat16")
_OPERANDS = ("input_row_sum", "weight_scale", "input_dequant_scale", "max_tokens_per_expert")


def w4afp8_gemm(
    input: Tensor,  # noqa: A002 (FastDeploy's name)
    weight: Tensor,
    tokens: Tensor,
    *arguments: Any,
    **named: Any,
) -> Tensor:
    """Multiplies the tokens of every expert by that expert's weights.

    ``w4afp8_gemm(input, weight, tokens, weight_scale, input_dequant_scale, token_padding_size,
    max_tokens, is_bfloat16)``, newer: ``max_tokens_per_expert`` after ``input_dequant_scale``.
    ``w4afp8_gemm(input, weight, tokens, input_row_sum, weight_scale, token_padding_size,
    max_tokens, is_bflot16)``, older.

    Where two operands have the shape of weight_scale (with padding, as many rows for an expert as
    outputs), int32 tokens and ``is_bflot16`` by name tell the older order, as newer FastDeploy has
    neither; else it is taken for the newest: an older call with int64 tokens must name them.

    Args:
        input: Float8_e4m3fn ``[all_tokens, in]`` or ``[experts, token_padding_size, in]``.
        weight: From `w4afp8_gemm_weight_convert`, uint8 or int8.
        tokens: int64 or int32. Without padding prefix sums, ``[experts]`` or, with a leading 0,
            ``[experts + 1]``; with padding the counts ``[experts]``.
        *arguments: The rest, in one of the orders above.
        **named: The rest by name. weight_scale: float32 ``[experts, out]`` or ``[experts, out /
            128, in / 128, 128]``, 512 times the multiplier, permuted. input_dequant_scale: None, or
            float32 ``[1]`` or one per row. input_row_sum: float32 per row, FastDeploy's correction
            for codes of ``value + 7``; not read, as the packed bytes hold the values themselves.
            token_padding_size: rows of each expert, or 0. max_tokens: tokens that an expert
            probably has, on average if they differ; a hint. max_tokens_per_expert: not read.
            is_bfloat16 (or is_bflot16): whether the output is bfloat16, else float16.

    Returns:
        Bfloat16 or float16, the shape of input with out last. Rows without a token are not written.

    Raises:
        ValueError: An argument is missing, or of another type or shape.

    Examples:
        >>> import paddle
        >>> from w4afp8.fastdeploy import w4afp8_gemm, w4afp8_gemm_weight_convert
        >>> weight = w4afp8_gemm_weight_convert(paddle.zeros([2, 64, 128], dtype="uint8"))
        >>> x = paddle.ones([3, 128]).astype("float8_e4m3fn")
        >>> tokens = paddle.to_tensor([1, 3], dtype="int64")
        >>> w4afp8_gemm(x, weight, tokens, paddle.ones([2, 64]), None, 0, 2, True).shape
        paddle.Size([3, 64])
    """
    given = _by_name(input, weight, tokens, arguments, named)
    multiply = stored_projection("weight", weight, given["weight_scale"], input.shape[-1])
    return multiply(
        input,
        tokens,
        row_scale(given.get("input_dequant_scale"), input),
        out_dtype="bfloat16" if given["is_bfloat16"] else "float16",
        token_padding=given["token_padding_size"],
        max_tokens=given["max_tokens"] if given["max_tokens"] > 0 else -1,
    )


def stored_projection(
    name: str,
    weight: Tensor,
    scale: Tensor,
    in_features: int,
    *,
    bias: Tensor | None = None,
    factor: float = 1.0,
) -> Projection:
    """A converted weight and its scales, times a factor, as the operands of this package's GEMM."""
    plain = plain_scales(f"{name}_scale", scale, in_features, factor=factor)
    return Projection(
        packed_operand(name, weight, plain.out_features, in_features),
        plain.weight_scale,
        plain.group_scale,
        bias,
        group_size=plain.group_size,
    )


def row_scale(scale: Tensor | None, x: Tensor) -> Tensor | None:
    """Scales of rows in the shape that `w4afp8.ops.group_gemm` asks for."""
    if scale is None:
        return None
    return contiguous(scale.reshape([1] if scale.size == 1 else x.shape[:-1]))


def _by_name(
    x: Tensor, weight: Tensor, tokens: Tensor, arguments: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, Any]:
    """The arguments after `tokens` by name, whichever form they are in."""
    given = dict(named)
    is_older = "is_bflot16" in given or dtype_name(tokens.dtype) == "int32"
    if "is_bflot16" in given:
        given["is_bfloat16"] = given.pop("is_bflot16")
    kinds = [isinstance(value, int) for value in arguments]
    count = kinds.index(True) if True in kinds else len(arguments)
    has_row_sum = _begins_with_row_sum(x, weight, arguments[:count], is_older=is_older)
    operands = _OPERANDS if has_row_sum else _OPERANDS[1:]
    given.update(zip(operands, arguments[:count], strict=False))
    given.update(zip(_SETTINGS, arguments[count:], strict=False))
    unknown = given.keys() - {*_OPERANDS, *_SETTINGS}
    missing = {"weight_scale", *_SETTINGS} - given.keys()
    surplus = count > len(operands) or len(arguments) - count > len(_SETTINGS)
    if unknown or missing or surplus:
        raise ValueError(
            f"arguments: expected {', '.join(('weight_scale', *_SETTINGS))}, got "
            f"{len(arguments)} after tokens and the names {sorted(named)}"
        )
    return given


def _begins_with_row_sum(
    x: Tensor, weight: Tensor, operands: tuple[Any, ...], *, is_older: bool
) -> bool:
    """Whether the first operand is input_row_sum: only the weight's scales have its shape.

    With padding, sums or scales of rows have it too where there are as many rows for an expert as
    outputs. Then a third operand of floats, which max_tokens_per_expert is not, tells the older
    order, or `is_older`: what only FastDeploy's older operators took.
    """
    fits = [_may_be_scale(weight, x.shape[-1], operand) for operand in operands[:2]]
    if fits != [True, True]:
        return fits == [False, True]
    of_rows = [operand.size == math.prod(x.shape[:-1]) for operand in operands[:2]]
    if of_rows == [True, True]:
        third = operands[2] if len(operands) > 2 else None
        return is_older or (isinstance(third, Tensor) and third.is_floating_point())
    if of_rows == [False, False]:
        raise ValueError(
            "weight_scale: expected one operand of its shape, got two of "
            f"{list(operands[0].shape)}; name them"
        )
    return of_rows[0]


def _may_be_scale(weight: Tensor, in_features: int, operand: Any) -> bool:
    shape = list(operand.shape) if isinstance(operand, Tensor) else []
    if len(shape) == 4:
        return True
    if len(shape) != 2 or shape[1] == 0:
        return False
    return shape[0] * math.prod(packed_shape(shape[1], in_features)) == weight.size
