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
"""FastDeploy's weight scales: 512 times the multiplier, in the order of its kernel's registers."""

from __future__ import annotations

from dataclasses import dataclass

import paddle
from paddle import Tensor

from w4afp8._checks import dtype_name

# FastDeploy's kernel reads a code v as the E4M3 number v * 2^-9, so its scales hold 512 more.
CODE_UNIT = 512.0
GROUP_SIZE = 128  # of the only groups that it knows
_BLOCK = 16  # outputs whose scales are reordered among themselves


@dataclass(frozen=True, eq=False)
class PlainScales:
    """What multiplies a code, as `w4afp8.ops.group_gemm` takes it.

    Attributes:
        weight_scale: float32 ``[experts, out]``.
        group_scale: None, or float32 ``[experts, in / 128, out]``.
    """

    weight_scale: Tensor
    group_scale: Tensor | None = None

    @property
    def group_size(self) -> int:
        return -1 if self.group_scale is None else GROUP_SIZE

    @property
    def out_features(self) -> int:
        return int(self.weight_scale.shape[1])


def w4afp8_gemm_scale_permute(weight_scale: Tensor) -> Tensor:
    """Reorders scales in place: of 16 outputs 0, 8, 1, 9, ..., 7, 15.

    Args:
        weight_scale: floats ``[..., out]``, out a multiple of 8. Where it is no multiple of 16
            (FastDeploy refuses that), the last 8 keep their places.

    Returns:
        The same tensor.

    Raises:
        ValueError: the shape is another.

    Examples:
        >>> import paddle
        >>> from w4afp8.fastdeploy import w4afp8_gemm_scale_permute
        >>> w4afp8_gemm_scale_permute(paddle.arange(16, dtype="float32")).tolist()[:6]
        [0.0, 8.0, 1.0, 9.0, 2.0, 10.0]
    """
    out = weight_scale.shape[-1] if weight_scale.ndim else 0
    if out % 8 or out == 0:
        raise ValueError(
            f"weight_scale: expected [..., 8 * n] scales, got shape {list(weight_scale.shape)}"
        )
    with paddle.no_grad():
        paddle.assign(_regroup(weight_scale, [2, 8]), output=weight_scale)
    return weight_scale


def plain_scales(
    name: str, weight_scale: Tensor, in_features: int, *, factor: float = 1.0
) -> PlainScales:
    """Undoes `w4afp8_gemm_scale_permute` and the factor 512 (which is exact).

    Args:
        name: of the argument, for errors.
        weight_scale: float32 ``[experts, out]`` or ``[experts, out / 128, in / 128, 128]``.
        in_features: of the weight.
        factor: of the scales besides.

    Raises:
        ValueError: type or shape is another.
    """
    shape = list(weight_scale.shape)
    is_grouped = len(shape) == 4
    fits = len(shape) == 2 or (is_grouped and shape[2:] == [in_features // GROUP_SIZE, GROUP_SIZE])
    if not fits or dtype_name(weight_scale.dtype) != "float32":
        raise ValueError(
            f"{name}: expected float32 [experts, out] or [experts, out / 128, "
            f"{in_features} / 128, 128], got {dtype_name(weight_scale.dtype)} {shape}"
        )
    with paddle.no_grad():
        ordered = _regroup(weight_scale, [8, 2])
        if not is_grouped:
            return PlainScales(ordered * (factor / CODE_UNIT))
        plain = ordered / CODE_UNIT
        experts, blocks, groups, block = shape
        plain = plain.transpose([0, 2, 1, 3]).reshape([experts, groups, blocks * block])
        return PlainScales(paddle.full_like(plain[:, 0], factor), plain)


def _regroup(scale: Tensor, within: list[int]) -> Tensor:
    """Transposes every 16 of the last axis, seen as a matrix `within`; the rest stays."""
    shape = list(scale.shape)
    whole = shape[-1] // _BLOCK * _BLOCK
    if whole == 0:
        return scale.clone()
    blocks = scale[..., :whole].reshape([*shape[:-1], whole // _BLOCK, *within])
    last = blocks.ndim - 1
    turned = blocks.transpose([*range(last - 1), last, last - 1]).reshape([*shape[:-1], whole])
    return turned if whole == shape[-1] else paddle.concat([turned, scale[..., whole:]], axis=-1)
