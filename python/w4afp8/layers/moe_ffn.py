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

from typing import Any

from paddle import Tensor

from w4afp8 import ops
from w4afp8._checks import check_multiple, check_tensor
from w4afp8._tracing import run_as_written
from w4afp8.layers.checks import check_activations, check_hadamard, check_share
from w4afp8.layers.experts import (
    Activation,
    fill_projection,
    fill_router,
    make_projections,
)
from w4afp8.layers.moe_launches import run_layer
from w4afp8.layers.operands import (
    Array,
    as_packed,
    as_rows,
    contiguous,
    named_quantize,
    rows_like,
    scale_dtype_of,
    shape_of,
)
from w4afp8.layers.precision import QuantizedLayer
from w4afp8.layers.router import MoERouter
from w4afp8.quant import PackedWeight, QuantizedWeight, Rounding, ScaleDtype, WeightFormat
from w4afp8.quant.weights import check_choice


class W4AFP8MoEFFN(QuantizedLayer):
    """Routes tokens to experts, each ``down(activation(up_gate(x)))``, and adds up their outputs.

    For inference: no gradients. A new layer's weights are zeros; `from_float` and `from_quantized`
    make one with weights, and `set_state_dict` fills one made with the same arguments.

    Args:
        hidden_size: features of the input and output, a multiple of 32.
        intermediate_size: features between the projections, a multiple of 32.
        num_experts: whose weights the layer holds, 1 to 1024.
        topk: experts of each token, 1 to min(32, experts of the router).
        weight_format: "int4" or "mxfp4".
        group_size: weights along the input features that share a scale. For int4: -1 (one scale per
            output channel), 32, 64 or a multiple of 128, dividing both sizes. For mxfp4: 32 or -1.
        down_group_size: where it differs for the second projection (a shard cut inside a group).
        scale_dtype: "float32" or "bfloat16", of int4 group scales.
        activation: "swiglu" (``silu(gate) * up``, the gate first), "swiglu_oai" (gpt-oss's) or
            "gelu" (exact, without a gate).
        dtype: "bfloat16" or "float16", of the input, the output and the biases.
        router_experts: experts that the router chooses among, where they are more than the layer's:
            it is then one part of a layer spread over processes, whose outputs are to be added up.
            None: num_experts.
        first_expert: the router's number for the layer's first expert.
        hadamard_block_size: the second projection's inputs are rotated, in blocks of so many, by
            the orthonormal Walsh-Hadamard matrix before they are rounded to FP8; its weights must
            have been too. A power of two from 8 on that divides intermediate_size;
            -1: none.
        accumulation: what the projections add up in: "default", "half" or "float32", see
            `w4afp8.ops.group_gemm`. With float16 "half" is faster, and less precise, above 64
            tokens an expert.
        has_router: hold a router's weight, for `forward` without logits.
        has_correction_bias: hold a bias, added to the scores where the experts are chosen and not
            where they are weighed.
        has_up_gate_bias: hold a bias of the first projection.
        has_down_bias: hold a bias of the second projection.
        **routing: scoring, norm_topk_prob, routed_scaling_factor, n_group, topk_group, as
            `MoERouter` has them.

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
        router_experts: int | None = None,
        first_expert: int = 0,
        hadamard_block_size: int = -1,
        accumulation: ops.Accumulation = "default",
        has_router: bool = False,
        has_correction_bias: bool = False,
        has_up_gate_bias: bool = False,
        has_down_bias: bool = False,
        **routing: Any,
    ) -> None:
        super().__init__(dtype=dtype)
        hidden_size = check_multiple("hidden_size", hidden_size, 32)
        intermediate_size = check_multiple("intermediate_size", intermediate_size, 32)
        check_choice("activation", activation, Activation)
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_experts = num_experts
        self.activation = activation
        self.hadamard_block_size = check_hadamard(hadamard_block_size, intermediate_size)
        self.first_expert = first_expert
        self.router = MoERouter(
            hidden_size,
            check_share(num_experts, first_expert, router_experts),
            topk,
            has_weight=has_router,
            has_correction_bias=has_correction_bias,
            dtype=dtype,
            **routing,
        )
        self.up_gate_proj, self.down_proj = make_projections(
            *(hidden_size, intermediate_size, num_experts, activation),
            group_sizes=(group_size, group_size if down_group_size is None else down_group_size),
            has_biases=(has_up_gate_bias, has_down_bias),
            weight_format=weight_format,
            scale_dtype=scale_dtype,
            dtype=dtype,
            accumulation=accumulation,
        )

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
        rules: dict[str, Any] = {"weight_format": weight_format, "group_size": group_size}
        rules |= {"rounding": rounding, "scale_dtype": scale_dtype}
        return cls.from_quantized(
            named_quantize("up_gate", up_gate, **rules),
            named_quantize("down", down, **rules),
            **options,
        )

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
            gate_weight: the router's weight ``[hidden, router's experts]`` (as paddle.nn.Linear has
                it).
            correction_bias: ``[router's experts]``.
            up_gate_bias: ``[experts, 2 * intermediate]``, or ``[experts, intermediate]``.
            down_bias: ``[experts, hidden]``.
            **options: dtype, router_experts, first_expert, hadamard_block_size and the routing, as
                the class has them.

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
        fill_projection(layer.up_gate_proj, up_gate, up_gate_bias, name="up_gate")
        fill_projection(layer.down_proj, down, down_bias, name="down")
        fill_router(layer.router, gate_weight, correction_bias)
        layer.to(device=up_gate.weight.place)
        return layer

    @property
    def weight_bytes(self) -> int:
        """Bytes of the experts' packed weights and scales, without biases and router."""
        return self.up_gate_proj.weight_bytes + self.down_proj.weight_bytes

    def forward(
        self, x: Tensor, logits: Tensor | None = None, *, shared_output: Tensor | None = None
    ) -> Tensor:
        """Computes the block. No tokens (a dimension of 0) gives no tokens.

        With logits given it is six launches on a GPU. No number of tokens comes to the host, so a
        CUDA graph of it can be replayed with other routings; two executable graphs made of one
        capture must not run at the same time.

        Args:
            x: ``[..., hidden_size]`` of the layer's `activation_dtype`; others are refused, never
                cast silently.
            logits: float32, bfloat16 or float16 ``[tokens, experts of the router]`` with ``tokens``
                the product of x's leading dimensions. None: the layer's own router computes them in
                float32.
            shared_output: what shared experts made of x, of x's shape and type: it is added before
                the output is rounded. None: nothing.

        Returns:
            As x.

        Raises:
            ValueError: x, logits or shared_output does not fit the layer.
        """
        return self._compute(x, logits, shared_output)

    @run_as_written
    def _compute(self, x: Tensor, logits: Tensor | None, shared_output: Tensor | None) -> Tensor:
        # Refusals come first: of a trace that fails later Paddle keeps records of tensors, that
        # another program may trip over.
        check_activations("x", x, self.activation_dtype, self.hidden_size)
        for name, given in (("logits", logits), ("shared_output", shared_output)):
            if given is not None:
                check_tensor(name, given)
        shared_output = None if shared_output is None else rows_like(x, shared_output)
        self.up_gate_proj.check_loaded()
        self.down_proj.check_loaded()
        rows = as_rows(x)
        logits = self.router.logits_of(rows, None if logits is None else contiguous(logits))
        out = run_layer(self, rows, logits, shared_output)
        return out if x.ndim == 2 else out.reshape(shape_of(x))

    def extra_repr(self) -> str:
        return (
            f"hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}, "
            f"num_experts={self.num_experts}, topk={self.router.topk}, "
            f"weight_format={self.up_gate_proj.weight_format}, "
            f"group_size={self.up_gate_proj.group_size}, activation={self.activation}, "
            f"hadamard_block_size={self.hadamard_block_size}, "
            f"accumulation={self.up_gate_proj.accumulation}, dtype={self.activation_dtype}"
        )
