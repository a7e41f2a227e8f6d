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
"""FastDeploy's quantisation method of an MoE layer, for W4AFP8 checkpoints, over our operators.

The layer is FastDeploy's own FusedMoE, or anything with the attributes that are read here. Left to
FastDeploy: unquantised checkpoints (which it rotates itself) and biases.
"""

from __future__ import annotations

from typing import Any

import paddle
from paddle import Tensor, nn

from w4afp8 import ops
from w4afp8._routes import is_eager
from w4afp8.fastdeploy.activations import DYNAMIC_RANGE, times, to_fp8
from w4afp8.fastdeploy.experts import Between, run_projections
from w4afp8.fastdeploy.ffn import block_size_of
from w4afp8.fastdeploy.parameters import (
    IN_SCALES,
    SCALES,
    WEIGHTS,
    add_parameter,
    multiplier,
    popped,
    projections,
    sizes,
)
from w4afp8.fastdeploy.weights import w4afp8_gemm_weight_convert
from w4afp8.incubate.nn.functional._routing import gather_rows
from w4afp8.layers.checks import check_same
from w4afp8.layers.experts import tokens_hint
from w4afp8.layers.moe_launches import call_layer
from w4afp8.layers.operands import contiguous, on_place_of
from w4afp8.layers.router import Routing
from w4afp8.quant.packing import packed_shape

_DEFAULT_ROTATION = 128  # FastDeploy's, where a config names none


class W4AFP8MoEMethod:
    """Creates, loads and applies the weights of an MoE layer, as FastDeploy's cutlass method.

    Args:
        quant_config: of FastDeploy; read: `hadamard_block_size`, FastDeploy's default of 128 where
            it is missing. Above 0 the checkpoint's down_proj is rotated in such blocks, and its
            input is here.
    """

    added_weight_attrs = WEIGHTS
    added_scale_attrs = SCALES
    added_in_scale_attrs = IN_SCALES
    moe_quant_type = "w4afp8"
    ep_prefill_runner: Any = None
    ep_decoder_runner: Any = None

    def __init__(self, quant_config: Any) -> None:
        self.quant_config = quant_config
        self.hadamard_block_size = getattr(quant_config, "hadamard_block_size", _DEFAULT_ROTATION)

    def create_weights(self, layer: nn.Layer, **extra_weight_attrs: Any) -> None:
        """Adds parameters of zeros to the layer.

        int8 ``[local experts, in / 2, out]`` (packed, out and in padded to 64); the scales of
        weights float32 ``[local experts, groups, out]``, 1 group until loading finds more: what
        multiplies a code, where FastDeploy's own method has an order and factors of its kernel's;
        for static quantisation the scales of inputs float32 ``[local experts]``.

        Args:
            layer: read: num_local_experts, hidden_size, moe_intermediate_size, with_bias,
                is_quantized, moe_quant_config.moe_dynamic_quant.
            **extra_weight_attrs: become attributes of the weights.

        Raises:
            ValueError: the layer has biases, its checkpoint is not quantised, or the rotation's
                blocks do not divide its intermediate features.
        """
        self._block_size(layer)  # refuses
        check_same("layer.with_bias", bool(layer.with_bias), False)
        check_same("layer.is_quantized", bool(layer.is_quantized), True)
        experts = layer.num_local_experts
        for (out, features), weight, scale, in_scale in zip(
            sizes(layer),
            WEIGHTS,
            SCALES,
            IN_SCALES,
            strict=True,
        ):
            padded_out, half_in = packed_shape(out, features)
            add_parameter(layer, weight, [experts, half_in, padded_out], "int8")
            add_parameter(layer, scale, [experts, 1, out], "float32")
            if not layer.moe_quant_config.moe_dynamic_quant:
                add_parameter(layer, in_scale, [experts], "float32")
            for name, value in extra_weight_attrs.items():
                setattr(getattr(layer, weight), name, value)

    def process_loaded_weights(self, layer: nn.Layer, state_dict: dict[str, Tensor]) -> None:
        """Fills the parameters from a checkpoint's tensors, and takes those out of the dict.

        Args:
            layer: read: `extract_moe_ffn_weights` (lists of int8 ``[in / 2, out]`` of the local
                experts, and their numbers), `weight_key_map`.
            state_dict: scales of each expert, float32: largest magnitudes of the weights ``[out]``,
                or ``[out, groups]`` (static: ``[groups, out]``), and static of the inputs ``[1]``.

        Raises:
            KeyError: a tensor is missing.
            ValueError: a tensor has another type or shape.
        """
        *weights, expert_ids, _ = layer.extract_moe_ffn_weights(state_dict)
        for (_, features), experts, name, scale_name, in_name in zip(
            sizes(layer),
            weights,
            WEIGHTS,
            SCALES,
            IN_SCALES,
            strict=True,
        ):
            packed = [w4afp8_gemm_weight_convert(expert) for expert in experts]
            getattr(layer, name).set_value(paddle.stack(packed))
            largest = paddle.stack(popped(layer, state_dict, scale_name, expert_ids))
            in_scale = None
            if hasattr(layer, in_name):
                in_scale = 1 / paddle.concat(
                    [t.reshape([1]) for t in popped(layer, state_dict, in_name, expert_ids)]
                )
                getattr(layer, in_name).set_value(in_scale)
            scale = multiplier(largest, in_scale, features)
            place = getattr(layer, name).place
            add_parameter(layer, scale_name, scale.shape, "float32", place)
            getattr(layer, scale_name).set_value(scale)

    def process_weights_after_loading(self, layer: nn.Layer) -> None:
        """Quantised checkpoints need nothing more: `process_loaded_weights` packed them."""

    def apply_tp(self, layer: nn.Layer, x: Tensor, gate: nn.Layer, **_: Any) -> Tensor:
        """The block on one device, or on a shard of the intermediate features.

        Args:
            layer: read beside its parameters: top_k, topk_method, gate_correction_bias, activation;
                with the topk_method "noaux_tc" (DeepSeek-V3) n_group, topk_group, renormalize and
                routed_scaling_factor.
            x: bfloat16 or float16 ``[tokens, hidden]``.
            gate: gives logits ``[tokens, experts]``.

        Returns:
            bfloat16 ``[tokens, hidden]``: softmax weights of the chosen, divided by their sum; with
            "noaux_tc" sigmoids of the chosen within the best groups.
        """
        logits, routing = _logits(gate, x), _routing(layer)
        if is_eager() and x.dtype == paddle.bfloat16 and self._is_a_layer(layer):
            return self._in_one_call(layer, x, logits, routing)
        weights, ids = routing.choose(logits)
        return self._local_experts(layer, x, ids, weights)

    def apply_ep_prefill(self, layer: nn.Layer, x: Tensor, gate: nn.Layer, **_: Any) -> Tensor:
        """The block with experts on several devices, for many tokens.

        `ep_prefill_runner` moves tokens: its moe_select, dispatch and combine are FastDeploy's. The
        tokens that dispatch lists for each local expert tell the GEMM how many to expect.

        Returns:
            bfloat16 ``[tokens, hidden]``, as `combine` gives it.
        """
        runner = self.ep_prefill_runner
        topk_idx, topk_weights = runner.moe_select(layer, _logits(gate, x))
        received, ids, weights, counts, handle, event = runner.dispatch(x, topk_idx, topk_weights)
        if runner.ep_engine.async_finish:
            event.current_stream_wait()
        # Most copies of received tokens are for others' experts, so the rows would tell of more.
        hint = tokens_hint(sum(counts), layer.num_local_experts) if isinstance(counts, list) else -1
        out = self._local_experts(layer, received, ids, weights, max_tokens=hint)
        out, event = runner.combine(out, handle, weights)
        if runner.ep_engine.async_finish:
            event.current_stream_wait()
        return out

    def apply_ep_decode(self, layer: nn.Layer, x: Tensor, gate: nn.Layer, **_: Any) -> Tensor:
        """The block with experts on several devices, for few tokens: rows padded for each expert.

        `ep_decoder_runner` moves and quantises tokens, as FastDeploy's: float8_e4m3fn
        ``[local experts, P, hidden]`` and, where it quantises dynamically, their dequant_scale.

        Returns:
            bfloat16 ``[tokens, hidden]``, as `combine` gives it.
        """
        runner = self.ep_decoder_runner
        topk_idx, topk_weights = runner.moe_select(layer, _logits(gate, x))
        static = getattr(layer, "up_gate_proj_in_scale_all_experts", None)
        options = {"use_fp8": True, "quant_group_size": -1}
        rows, counts, handle = runner.dispatch(
            x, topk_idx, topk_weights, expertwise_scale=static, **options
        )
        rows, scale = (rows, None) if static is not None else rows
        scale = None if scale is None else times(scale, 1 / DYNAMIC_RANGE)
        # Every rank sends about as many copies of tokens as it gets.
        hint = _tokens_hint(layer, x)
        y = self._experts(layer, rows, counts.cast("int64"), scale, max_tokens=hint)
        return runner.combine(y, topk_idx, topk_weights, handle, quant_group_size=-1)

    def _is_a_layer(self, layer: nn.Layer) -> bool:
        """Whether the block is what `w4afp8.layers.W4AFP8MoEFFN` computes."""
        return _in_scale(layer) is None and layer.activation == "swiglu"

    def _in_one_call(self, layer: nn.Layer, x: Tensor, logits: Tensor, routing: Routing) -> Tensor:
        """The bits of the operators one behind the other, in six launches that overlap."""
        return call_layer(
            *(contiguous(x), logits, None, routing, *projections(layer), "swiglu"),
            hadamard_block_size=self._block_size(layer),
            max_tokens=_tokens_hint(layer, x),
        )

    def _block_size(self, layer: nn.Layer) -> int:
        return block_size_of(self.hadamard_block_size, layer.moe_intermediate_size)

    def _local_experts(
        self, layer: nn.Layer, x: Tensor, ids: Tensor, weights: Tensor, *, max_tokens: int = -1
    ) -> Tensor:
        """Received tokens through those of their experts that are here; others' ids are -1."""
        experts, in_scale = layer.num_local_experts, _in_scale(layer)
        ids = on_place_of(x, ids.astype("int32"))
        weights = on_place_of(x, weights.astype("float32"))
        rows, scale, prefix_sums, row_index = ops.moe_dispatch(x, ids, experts=experts)
        if in_scale is not None:
            slots = ids.reshape([-1])
            order = paddle.argsort(paddle.where(slots < 0, slots + 2 * experts, slots), stable=True)
            row_scale = paddle.gather(in_scale, paddle.gather(slots, order).clip(0, experts - 1))
            rows = to_fp8(gather_rows(x, order // ids.shape[1]), row_scale.unsqueeze(-1))
            scale = None
        y = self._experts(layer, rows, prefix_sums, scale, max_tokens=max_tokens)
        return ops.moe_combine(y, weights, row_index)

    def _experts(
        self,
        layer: nn.Layer,
        x: Tensor,
        tokens: Tensor,
        scale: Tensor | None,
        *,
        max_tokens: int = -1,
    ) -> Tensor:
        """FP8 rows through the experts; `scale`: what multiplies each, static none."""
        between = Between(
            layer.activation,
            self._block_size(layer),
            x.shape[1] if x.ndim == 3 else 0,
            getattr(layer, "down_proj_in_scale", None),
        )
        rows = x, tokens, scale
        return run_projections(*projections(layer), *rows, between, max_tokens=max_tokens)


def _logits(gate: nn.Layer, x: Tensor) -> Tensor:
    logits = gate(x)
    if logits.dtype != paddle.float32:
        logits = logits.cast("float32")
    return contiguous(on_place_of(x, logits))


def _routing(layer: nn.Layer) -> Routing:
    """How the layer's tokens choose."""
    bias = layer.gate_correction_bias
    bias = None if bias is None else bias.reshape([-1])
    if getattr(layer, "topk_method", None) != "noaux_tc":
        return Routing(bias, layer.top_k)
    return Routing(
        bias,
        layer.top_k,
        score="sigmoid",
        norm_topk_prob=bool(getattr(layer, "renormalize", True)),
        routed_scaling_factor=float(layer.routed_scaling_factor),
        n_group=max(1, layer.n_group),
        topk_group=max(1, layer.topk_group),
    )


def _tokens_hint(layer: nn.Layer, x: Tensor) -> int:
    return tokens_hint(x.shape[0] * layer.top_k, layer.num_local_experts)


def _in_scale(layer: nn.Layer) -> Tensor | None:
    return getattr(layer, "up_gate_proj_in_scale", None)
