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
"""The layer's random weights, tokens and routing, made on the GPU, and the float64 reference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import torch

from w4afp8.bench.moe_cases import (
    POPULARITY_EXPONENT,
    MoECase,
    MoEModel,
    gemm_case,
    popularity_ranks,
)
from w4afp8.bench.on_gpu import gemm_data
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.quant import PackedWeight
from w4afp8.quant.weights import WeightFormat
from w4afp8.testing.gpu import as_torch

# Root mean square of a random code times its group's scale, by format (the scale spreads over
# 2^0..2^-6), and of what gemm_data scales channels by.
_CODE_SIZE = {"int4": math.sqrt(21.5), "mxfp4": math.sqrt(8.5625 * (1 - 4.0**-7) / (7 * 0.75))}
_SCALE_SIZE = math.sqrt(13 / 12) * 1e-3
# Puts most sigmoid scores where float32 tells them apart: the best logits are about 4 below.
_SHIFT = {"softmax": 0.0, "sigmoid": -6.0}
# Deviation of biases: small beside that of the products, 1, so that the error bound stays right.
_BIAS_SIZE = 0.1
_DRAWN_TOKENS = 16_384  # of all draws together, of which the most typical is taken


@dataclasses.dataclass(frozen=True)
class LayerWeights:
    """Both projections' weights, and how the layer takes them."""

    up_gate: gemm_data.WeightSet
    down: gemm_data.WeightSet
    packed: tuple[PackedWeight, PackedWeight]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Tokens and their routing.

    Of PyTorch: ``x`` bfloat16 ``[tokens, hidden]``, ``logits`` float32 ``[tokens, experts of the
    router]``, the correction ``bias``, and of each token the weights, float64, and experts.
    ``counts``: copies of tokens for each of the rank's experts.
    """

    x: Any
    logits: Any
    bias: Any
    topk_weights: Any
    topk_ids: Any
    counts: tuple[int, ...]


def make_layer_weights(
    model: MoEModel, weight_format: WeightFormat, *, keep_codes: bool
) -> LayerWeights:
    """Random codes; scales with which normal tokens give outputs of deviation 1."""
    sets, packed = [], []
    for out, inside in ((2 * model.intermediate, model.hidden), (model.hidden, model.intermediate)):
        case = gemm_case(model, weight_format, (1,) * model.experts, out, inside)
        weights = gemm_data.make_weights(case, keep_codes=keep_codes)
        size = _CODE_SIZE[weight_format] * _SCALE_SIZE * math.sqrt(inside)
        as_torch(weights.weight_scale).div_(size)
        operands = (weights.packed, weights.weight_scale, weights.group_scale)
        sets.append(weights)
        packed.append(PackedWeight(*operands, weight_format, case.group_size, out, inside))
    return LayerWeights(sets[0], sets[1], (packed[0], packed[1]))


def make_layer(model: MoEModel, weights: LayerWeights, bias: Any) -> W4AFP8MoEFFN:
    """The rank's layer, on the GPU.

    Args:
        model: what it is a part of.
        weights: the first that it has.
        bias: torch float32 ``[experts of the router]``.
    """
    up_gate_bias, down_bias = (b.float().cpu().numpy() for b in make_biases(model))
    before = paddle.device.get_device()
    paddle.device.set_device("cpu")  # its zeros, which are replaced at once, cost less there
    try:
        return W4AFP8MoEFFN.from_quantized(
            *weights.packed,
            topk=model.topk,
            activation=model.activation,
            correction_bias=bias.cpu().numpy() if model.has_correction_bias else None,
            up_gate_bias=up_gate_bias if model.has_biases else None,
            down_bias=down_bias if model.has_biases else None,
            scoring=model.scoring,
            n_group=model.n_group,
            topk_group=model.topk_group,
            router_experts=model.router_experts,
        )
    finally:
        paddle.device.set_device(before)


def take_weights(layer: W4AFP8MoEFFN, weights: LayerWeights) -> None:
    """The layer's next launches read these. No operator runs: it may be captured."""
    for projection, packed in zip(
        (layer.up_gate_proj, layer.down_proj), weights.packed, strict=True
    ):
        projection.weight = packed.weight
        projection.weight_scale = packed.weight_scale
        if packed.group_scale is not None:
            projection.group_scale = packed.group_scale


def make_bias(model: MoEModel) -> Any:
    """Float32 ``[experts of the router]``: small beside the scores; zeros where there is none."""
    if not model.has_correction_bias:
        return torch.zeros(model.router_experts, device="cuda")
    generator = torch.Generator(device="cuda").manual_seed(0)
    return 1e-3 * torch.randn(model.router_experts, device="cuda", generator=generator)


def make_biases(model: MoEModel) -> tuple[Any, Any]:
    """Both projections', bfloat16 ``[experts, outputs]``; zeros where there are none."""
    size = _BIAS_SIZE if model.has_biases else 0.0
    generator = torch.Generator(device="cuda").manual_seed(1)
    first, second = (
        size * torch.randn(model.experts, outputs, device="cuda", generator=generator)
        for outputs in (2 * model.intermediate, model.hidden)
    )
    return first.to(torch.bfloat16), second.to(torch.bfloat16)


def make_batch(model: MoEModel, tokens: int, bias: Any) -> Batch:
    """Random tokens; the routing is the same in every run, to be the same for all that is timed.

    Tokens scatter: of several draws that one is taken which gives the rank its share of copies.
    """
    generator = torch.Generator(device="cuda").manual_seed(tokens)
    draws = max(1, _DRAWN_TOKENS // tokens)
    logits = draw_logits(model, draws * tokens, generator)
    weights, ids = route(model, logits.double(), bias.double())
    held = (ids < model.experts).view(draws, -1).sum(1)
    best = int((held - model.expected_slots(tokens)).abs().argmin().item())
    part = slice(best * tokens, (best + 1) * tokens)
    counts = torch.bincount(ids[part].flatten(), minlength=model.router_experts)
    x = torch.randn(tokens, model.hidden, device="cuda").to(torch.bfloat16)
    return Batch(
        x,
        logits[part].contiguous(),
        bias,
        weights[part],
        ids[part],
        tuple(counts[: model.experts].tolist()),
    )


def draw_logits(model: MoEModel, tokens: int, generator: Any) -> Any:
    """Float32 logits whose best are a draw of experts in proportion to their popularity.

    The largest k of log(p) plus Gumbel noise are a draw of k without replacement. An expert's
    popularity p falls with the power ``POPULARITY_EXPONENT`` of its place.
    """
    places = torch.tensor(popularity_ranks(model), device="cuda") + 1
    shape = (tokens, model.router_experts)
    noise = torch.rand(shape, device="cuda", generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(noise.clamp(1e-12, 1 - 1e-12)))
    logits = gumbel - POPULARITY_EXPONENT * places.double().log() + _SHIFT[model.scoring]
    return logits.float()


def route(model: MoEModel, logits: Any, bias: Any) -> tuple[Any, Any]:
    """Weights and experts of each token ``[tokens, topk]``, in the type of the logits."""
    scores = logits.softmax(1) if model.scoring == "softmax" else logits.sigmoid()
    choice = scores + bias
    if model.n_group > 1:
        groups = choice.view(len(choice), model.n_group, -1)
        best = groups.topk(2, dim=2).values.sum(2).topk(model.topk_group, dim=1).indices
        kept = torch.zeros_like(groups[:, :, :1]).scatter_(1, best[:, :, None], 1.0)
        choice = torch.where(kept > 0, groups, -torch.inf).view(choice.shape)
    ids = choice.topk(model.topk, dim=1).indices
    weights = scores.gather(1, ids)
    return weights / weights.sum(1, keepdim=True), ids


def activate(model: MoEModel, hidden: Any) -> Any:
    """SwiGLU, or gpt-oss's, of ``[rows, 2 * intermediate]``, in its own type."""
    gate, up = hidden.chunk(2, dim=1)
    if model.activation == "swiglu":
        return torch.nn.functional.silu(gate) * up
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


Matrices = Callable[[int], tuple[Any, Any]]


def dequantised(case: MoECase, weights: LayerWeights) -> Matrices:
    """An expert's two matrices in float64, from the checkpoint's codes."""
    first, second = case.gemms()

    def matrices(expert: int) -> tuple[Any, Any]:
        return (
            gemm_data.dequantised(first, weights.up_gate, expert),
            gemm_data.dequantised(second, weights.down, expert),
        )

    return matrices


def reference(case: MoECase, matrices: Matrices, batch: Batch) -> Any:
    """The layer in float64, of exact weights and unrounded activations: ``[tokens, hidden]``."""
    model = case.model
    x, biases = batch.x, make_biases(model)
    out = torch.zeros(x.shape, dtype=torch.float64, device="cuda")
    order = torch.argsort(batch.topk_ids.flatten(), stable=True)
    begins = np.concatenate([[0], np.cumsum(batch.counts)])
    for expert, count in enumerate(batch.counts):
        if count == 0:
            continue
        slots = order[begins[expert] : begins[expert] + count]
        token = slots // model.topk
        up_gate, down = matrices(expert)
        inner = activate(model, x[token].double() @ up_gate.t() + biases[0][expert].double())
        y = inner @ down.t() + biases[1][expert].double()
        out.index_add_(0, token, y * batch.topk_weights.flatten()[slots][:, None])
    return out


def relative_error(actual: Any, expected: Any) -> float:
    """||actual - expected|| / ||expected||; NaN where ``actual`` holds one."""
    difference = actual.double() - expected
    return float((difference.norm() / expected.norm()).item())


def checked_output(run: Callable[[], Any]) -> Any:
    """The output of a call into memory that was filled with NaN before."""
    poisoned = run()
    as_torch(poisoned).fill_(float("nan"))
    del poisoned  # the block is free now, and the next output of its size gets it
    return run()
