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
"""The mixture-of-experts feed-forward block with 4-bit weights and FP8 activations."""

from __future__ import annotations

from typing import Any, Literal

from paddle import Tensor

from w4afp8 import ops
from w4afp8._tracing import run_as_written
from w4afp8.layers.checks import check_activations, check_multiple
from w4afp8.layers.expert_linear import ExpertLinear
from w4afp8.layers.operands import (
    Array,
    as_float32,
    as_packed,
    contiguous,
    named_quantize,
    scale_dtype_of,
    shape_of,
)
from w4afp8.layers.precision import QuantizedLayer
from w4afp8.layers.router import MoERouter, Scoring
from w4afp8.quant import PackedWeight, QuantizedWeight, Rounding, ScaleDtype, WeightFormat
from w4afp8.quant.weights import check_choice

Activation = Literal["swiglu", "swiglu_oai", "gelu"]


class W4AFP8MoEFFN(QuantizedLayer):
    """Routes tokens to experts, each ``down(activation(up_gate(x)))``, and adds up their outputs.

    For inference: no gradients. A new layer's weights are zeros; `from_float` and `from_quantized`
    make one with weights, and `set_state_dict` fills one made with the same arguments.

    Args:
        hidden_size: features of the input and output, a multiple of 32.
        intermediate_size: features between the projections, a multiple of 32.
        num_experts: 1 to 1024.
        topk: experts of each token, 1 to min(32, num_experts).
        weight_format: "int4" or "mxfp4".
        group_size: weights along the input features that share a scale. For int4: -1 (one scale per
            output channel), 32, 64 or a multiple of 128, dividing both sizes. For mxfp4: 32 or -1.
        down_group_size: where it differs for the second projection (a shard cut inside a group).
        scale_dtype: "float32" or "bfloat16", of int4 group scales.
        activation: "swiglu" (``silu(gate) * up``, the gate first), "swiglu_oai" (gpt-oss's) or
            "gelu" (exact, without a gate).
        dtype: "bfloat16" or "float16", of the input, the output and the biases.
        scoring: "softmax" or "sigmoid", from logits to the experts' scores.
        norm_topk_prob: divide the chosen experts' scores by their sum.
        routed_scaling_factor: multiplies the experts' weights after that.
        has_router: hold a router's weight, for `forward` without logits.
        has_correction_bias: hold a bias, added to the scores where the experts are chosen and not
            where they are weighed.
        has_up_gate_bias: hold a bias of the first projection.
        has_down_bias: hold a bias of the second projection.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import numpy as np, paddle
        >>> from w4afp8.layers import W4AFP8MoEFFN
        >>> up_gate = np.random.randn(8, 2 * 256, 128).astype("float32") * 0.05
        >>> down = np.random.randn(8, 128, 256).astype("float32") * 0.05
        >>> router = np.random.randn(128, 8).astype("float32") * 0.1
        >>> layer = W4AFP8MoEFFN.from_float(up_gate, down, topk=2, gate_weight=router)
        >>> list(layer(paddle.randn([5, 128]).astype("bfloat16")).shape)
        [5, 128]
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        topk: int,
        *,
        weight_format: WeightFormat = "int4",
        group_size: int = -1,
        down_group_size: int | None = None,
        scale_dtype: ScaleDtype = "float32",
        activation: Activation = "swiglu",
        dtype: Any = "bfloat16",
        scoring: Scoring = "softmax",
        norm_topk_prob: bool = True,
        routed_scaling_factor: float = 1.0,
        has_router: bool = False,
        has_correction_bias: bool = False,
        has_up_gate_bias: bool = False,
        has_down_bias: bool = False,
    ) -> None:
        super().__init__(dtype=dtype)
        check_multiple("hidden_size", hidden_size, 32)
        check_multiple("intermediate_size", intermediate_size, 32)
        check_choice("activation", activation, Activation)
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_experts = num_experts
        self.activation = activation
        self.router = MoERouter(
            hidden_size,
            num_experts,
            topk,
            scoring=scoring,
            norm_topk_prob=norm_topk_prob,
            routed_scaling_factor=routed_scaling_factor,
            has_weight=has_router,
            has_correction_bias=has_correction_bias,
            dtype=dtype,
        )

        def projection(inputs: int, outputs: int, group_size: int, has_bias: bool) -> ExpertLinear:
            return ExpertLinear(
                inputs,
                outputs,
                num_experts,
                weight_format=weight_format,
                group_size=group_size,
                scale_dtype=scale_dtype,
                has_bias=has_bias,
                dtype=dtype,
            )

        up_gate_size = intermediate_size * _projections_before(activation)
        self.up_gate_proj = projection(hidden_size, up_gate_size, group_size, has_up_gate_bias)
        down_group_size = group_size if down_group_size is None else down_group_size
        self.down_proj = projection(intermediate_size, hidden_size, down_group_size, has_down_bias)

    @classmethod
    def from_float(
        cls,
        up_gate: Array,
        down: Array,
        *,
        weight_format: WeightFormat = "int4",
        group_size: int = -1,
        rounding: Rounding = "absmax/7",
        scale_dtype: ScaleDtype = "float32",
        **options: Any,
    ) -> W4AFP8MoEFFN:
        """Quantises float weights, on the host; the layer is on Paddle's current device.

        Args:
            up_gate: ``[experts, 2 * intermediate, hidden]``, the gate's half first; with "gelu"
                ``[experts, intermediate, hidden]``. Any float type, numpy or Paddle.
            down: ``[experts, hidden, intermediate]``.
            weight_format: "int4" or "mxfp4".
            group_size: as in the class, for both projections.
            rounding: int4's rule for the scale, see `w4afp8.quant.quantize`.
            scale_dtype: "float32" or "bfloat16", of int4 group scales.
            **options: as in `from_quantized`.

        Raises:
            ValueError: an argument is out of range, or shapes do not fit each other.
        """
        quantized = (
            named_quantize(
                name,
                weight,
                weight_format=weight_format,
                group_size=group_size,
                rounding=rounding,
                scale_dtype=scale_dtype,
            )
            for name, weight in (("up_gate", up_gate), ("down", down))
        )
        return cls.from_quantized(*quantized, **options)

    @classmethod
    def from_quantized(
        cls,
        up_gate: QuantizedWeight | PackedWeight,
        down: QuantizedWeight | PackedWeight,
        *,
        topk: int,
        activation: Activation = "swiglu",
        gate_weight: Array | None = None,
        correction_bias: Array | None = None,
        up_gate_bias: Array | None = None,
        down_bias: Array | None = None,
        **options: Any,
    ) -> W4AFP8MoEFFN:
        """Takes weights that are quantised already, such as a checkpoint's, bit for bit.

        The whole layer is where a packed `up_gate` is, else on Paddle's current device.

        Args:
            up_gate: shapes as in `from_float`.
            down: of the same format.
            topk: experts of each token.
            activation: see the class.
            gate_weight: the router's weight ``[hidden, experts]`` (as paddle.nn.Linear has it).
            correction_bias: ``[experts]``.
            up_gate_bias: ``[experts, 2 * intermediate]``, or ``[experts, intermediate]``.
            down_bias: ``[experts, hidden]``.
            **options: dtype, scoring, norm_topk_prob, routed_scaling_factor, as the class has them.

        Raises:
            ValueError: shapes or formats do not fit each other.
        """
        up_gate, down = as_packed("up_gate", up_gate), as_packed("down", down)
        layer = cls(
            down.out_features,
            down.in_features,
            int(down.weight.shape[0]),
            topk,
            weight_format=down.weight_format,
            group_size=up_gate.group_size,
            down_group_size=down.group_size,
            scale_dtype=scale_dtype_of(down),
            activation=activation,
            has_router=gate_weight is not None,
            has_correction_bias=correction_bias is not None,
            has_up_gate_bias=up_gate_bias is not None,
            has_down_bias=down_bias is not None,
            **options,
        )
        layer.up_gate_proj.set_weight(up_gate, name="up_gate")
        layer.down_proj.set_weight(down, name="down")
        if up_gate_bias is not None:
            layer.up_gate_proj.set_bias(as_float32(up_gate_bias), name="up_gate_bias")
        if down_bias is not None:
            layer.down_proj.set_bias(as_float32(down_bias), name="down_bias")
        for name, called, value in (
            ("weight", "gate_weight", gate_weight),
            ("correction_bias", "correction_bias", correction_bias),
        ):
            if value is not None:
                layer.router.set_state(name, as_float32(value), called=called)
        layer.to(device=up_gate.weight.place)
        return layer

    @property
    def weight_bytes(self) -> int:
        """Bytes of the experts' packed weights and scales, without biases and router."""
        return self.up_gate_proj.weight_bytes + self.down_proj.weight_bytes

    def forward(self, x: Tensor, logits: Tensor | None = None) -> Tensor:
        """Computes the block. No tokens (a dimension of 0) gives no tokens.

        Args:
            x: ``[..., hidden_size]`` of the layer's `activation_dtype`; others are refused, never
                cast silently.
            logits: float32, bfloat16 or float16 ``[tokens, num_experts]`` with ``tokens`` the
                product of x's leading dimensions. None: the layer's own router computes them in
                float32.

        Returns:
            As x.

        Raises:
            ValueError: x or logits does not fit the layer.
        """
        return self._compute(x, logits)

    @run_as_written
    def _compute(self, x: Tensor, logits: Tensor | None) -> Tensor:
        # Refusals come first: where a trace fails later, Paddle keeps records of the tensors so far
        # that another program may trip over.
        check_activations("x", x, self.activation_dtype, self.hidden_size)
        self.up_gate_proj.check_loaded()
        self.down_proj.check_loaded()
        rows = contiguous(x if x.ndim == 2 else x.reshape([-1, self.hidden_size]))
        topk_weights, topk_ids = self.router(rows, None if logits is None else contiguous(logits))
        permuted, scale, tokens, row_index = ops.moe_dispatch(
            rows, topk_ids, experts=self.num_experts
        )
        hidden = self.up_gate_proj(permuted, tokens, scale)
        hidden, scale = ops.activation_quant(hidden, tokens, activation=self.activation)
        out = ops.moe_combine(self.down_proj(hidden, tokens, scale), topk_weights, row_index)
        return out if x.ndim == 2 else out.reshape(shape_of(x))

    def extra_repr(self) -> str:
        return (
            f"hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}, "
            f"num_experts={self.num_experts}, topk={self.router.topk}, "
            f"weight_format={self.up_gate_proj.weight_format}, "
            f"group_size={self.up_gate_proj.group_size}, activation={self.activation}, "
            f"dtype={self.activation_dtype}"
        )


def _projections_before(activation: Activation) -> int:
    """Features that the first projection makes for one that the activation gives."""
    return 1 if activation == "gelu" else 2
