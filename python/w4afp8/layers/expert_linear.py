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
"""One projection of all experts: packed 4-bit weights, scales and bias around the grouped GEMM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor

from w4afp8 import ops
from w4afp8._checks import check_multiple, check_range, check_tensor, dtype_name
from w4afp8.layers.checks import check_same
from w4afp8.layers.format_record import RecordedLayer, check_record, format_record
from w4afp8.layers.operands import Operands, alias, multiply
from w4afp8.quant import PackedWeight, ScaleDtype, WeightFormat
from w4afp8.quant.packing import k_blocks_of, packed_shape
from w4afp8.quant.weights import check_choice, check_group_size, check_type


class ExpertLinear(RecordedLayer):
    """Grouped linear layer over FP8 activations; its weights start as zeros.

    State (all buffers): ``weight`` uint8, ``weight_scale`` float32 ``[experts, out]``,
    ``group_scale`` where the format has groups, ``bias`` ``[experts, out]`` of the activations'
    type where there is one. docs/design.md, "Tensors of a quantised weight", gives their shapes.
    ``format`` int32 ``[6]`` says what the weights are: after weights of another format or size were
    loaded, also as a part of a model, the layer refuses to run.

    Args:
        in_features: a multiple of 32 and of the group size.
        out_features: a multiple of 8.
        num_experts: at least 1.
        weight_format: "int4" or "mxfp4".
        group_size: weights along in_features that share a scale; -1 one scale per output channel
            (int4) or the format's own 32 (mxfp4).
        scale_dtype: "float32" or "bfloat16", of int4 group scales.
        has_bias: whether each expert has a bias.
        dtype: "bfloat16" or "float16", of the output.
        accumulation: "default", "half" or "float32", see `w4afp8.ops.group_gemm`.

    Raises:
        ValueError: an argument is outside what the grouped GEMM can do.

    Examples:
        >>> import paddle
        >>> from w4afp8 import ops
        >>> from w4afp8.layers import ExpertLinear
        >>> from w4afp8.quant import pack, quantize
        >>> layer = ExpertLinear(64, 32, 2)
        >>> layer.set_weight(pack(quantize(paddle.randn([2, 32, 64]))))
        >>> x, scale = ops.quant_per_token(paddle.randn([5, 64]))
        >>> tokens = paddle.to_tensor([0, 3, 5], dtype="int32")  # 3 tokens, then 2
        >>> list(layer(x, tokens, scale).shape)
        [5, 32]
    """

    weight: Tensor
    weight_scale: Tensor
    group_scale: Tensor | None
    bias: Tensor | None
    format: Tensor

    _record_is_of = "weight"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_experts: int,
        *,
        weight_format: WeightFormat = "int4",
        group_size: int = -1,
        scale_dtype: ScaleDtype = "float32",
        has_bias: bool = False,
        dtype: Any = "bfloat16",
        accumulation: ops.Accumulation = "default",
    ) -> None:
        super().__init__(dtype=dtype)
        self.in_features = check_multiple("in_features", in_features, 32)
        self.out_features = check_multiple("out_features", out_features, 8)
        self.num_experts = check_range("num_experts", num_experts, 1, 1024)
        self.weight_format = weight_format
        self.group_size = check_group_size(weight_format, group_size, self.in_features)
        check_choice("scale_dtype", scale_dtype, ScaleDtype)
        check_choice("accumulation", accumulation, ops.Accumulation)
        self.accumulation = accumulation
        self._register_zeros(scale_dtype, has_bias)
        self.keep_record(
            format_record(
                *(weight_format, self.group_size),
                *(self.num_experts, self.out_features, self.in_features),
            )
        )

    def _register_zeros(self, scale_dtype: ScaleDtype, has_bias: bool) -> None:
        packed = packed_shape(self.out_features, self.in_features)
        per_channel = [self.num_experts, self.out_features]
        weight = paddle.zeros([self.num_experts, *packed], dtype="uint8")
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", paddle.zeros(per_channel, dtype="float32"))
        self.register_buffer("group_scale", self._zero_group_scale(scale_dtype))
        bias = paddle.zeros(per_channel, dtype=self.activation_dtype) if has_bias else None
        self.register_buffer("bias", bias)

    def _zero_group_scale(self, scale_dtype: ScaleDtype) -> Tensor | None:
        if self.weight_format == "mxfp4":
            shape = [self.num_experts, k_blocks_of(self.in_features), self.out_features, 4]
            return paddle.zeros(shape, dtype="uint8")
        if self.group_size == -1:
            return None
        groups = self.in_features // self.group_size
        return paddle.zeros([self.num_experts, groups, self.out_features], dtype=scale_dtype)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights and their scales, without the bias."""
        tensors = (self.weight, self.weight_scale, self.group_scale)
        return sum(int(t.size) * int(t.element_size()) for t in tensors if t is not None)

    @property
    def packed_weight(self) -> PackedWeight:
        """The weights and scales as `set_weight` takes them, sharing their memory."""
        return PackedWeight(
            self.weight,
            self.weight_scale,
            self.group_scale,
            self.weight_format,
            self.group_size,
            self.out_features,
            self.in_features,
        )

    @property
    def operands(self) -> Operands:
        """What `w4afp8.layers.experts.run_experts` wants to know of the projection."""
        tensors = (self.weight, self.weight_scale, self.group_scale, self.bias)
        return *tensors, self.weight_format, self.group_size, self.accumulation

    def set_weight(self, packed: PackedWeight, *, name: str = "weight") -> None:
        """Takes packed weights and their scales as they are, sharing their memory.

        Args:
            packed: weights of this layer's format and size.
            name: what to call them in an error.

        Raises:
            ValueError: they are of another format, size or type than the layer.
        """
        check_type(name, packed, PackedWeight)
        for field in ("weight_format", "group_size", "out_features", "in_features"):
            check_same(f"{name}.{field}", getattr(packed, field), getattr(self, field))
        for field in ("weight", "weight_scale", "group_scale"):
            got, own = _describe(getattr(packed, field)), _describe(getattr(self, field))
            check_same(f"{name}.{field}", got, own)
        self.weight, self.weight_scale = alias(packed.weight), alias(packed.weight_scale)
        self.group_scale = None if packed.group_scale is None else alias(packed.group_scale)

    def set_bias(self, bias: Tensor, *, name: str = "bias") -> None:
        """Takes a bias ``[experts, out]`` of any float type, cast to the activations'."""
        if self.bias is None:
            raise ValueError(f"{name}: expected None (the layer was made without one)")
        check_tensor(name, bias)
        check_same(f"{name}: shape", list(bias.shape), list(self.bias.shape))
        self.bias = alias(bias.astype(self.activation_dtype))

    def set_activation_dtype(self, dtype: str) -> None:
        super().set_activation_dtype(dtype)
        if self.bias is not None:
            self.bias = self.bias.astype(dtype)

    def compare_records(self, name: str, got: Sequence[int], expected: Sequence[int]) -> None:
        check_record(name, got, expected)

    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        x_scale: Tensor,
        *,
        token_padding: int = 0,
        max_tokens: int = -1,
        activation: ops.GatedActivation = "none",
    ) -> Tensor:
        """Multiplies each row with the weights of its expert.

        Args:
            x: float8_e4m3fn ``[rows, in_features]``, sorted by expert, or
                ``[experts, token_padding, in_features]``.
            tokens: int32 ``[experts + 1]``, prefix sums with a leading 0, or the counts
                ``[experts]`` where there is a token_padding.
            x_scale: float32 ``[rows]`` or ``[experts, token_padding]``.
            token_padding: rows of x for each expert; 0: sorted rows.
            max_tokens: that one expert probably has, -1 unknown; a hint for speed only.
            activation: applied to the outputs, see `w4afp8.ops.group_gemm`.

        Returns:
            The activations' type, the shape of x with out_features last; with an activation half as
            many.

        Raises:
            ValueError: a tensor does not fit, or weights of another format or size were loaded.
        """
        self.check_loaded()
        return multiply(
            *(self.operands, x, tokens, x_scale),
            token_padding=token_padding,
            max_tokens=max_tokens,
            out_dtype=self.activation_dtype,
            activation=activation,
        )


def _describe(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"
