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
"""A checkpoint's layer as W4AFP8MoEFFN, expert by expert."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from w4afp8.checkpoint.detect import open_checkpoint
from w4afp8.checkpoint.model import Checkpoint, MoELayerInfo, RouterWeights
from w4afp8.checkpoint.native import NativeCheckpoint
from w4afp8.checkpoint.progress import show_progress
from w4afp8.checkpoint.rounding import log_rounding
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.layers.expert_linear import ExpertLinear
from w4afp8.quant import QuantizedWeight, pack


@dataclass(frozen=True)
class LoadReport:
    """What was lost on the way into a layer.

    Attributes:
        layer: the layer as the checkpoint has it.
        errors: of each expert, ``|rounded - original| / |original|``; 0 where nothing was rounded.
    """

    layer: MoELayerInfo
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """Root mean square of the experts' errors."""
        return math.sqrt(math.fsum(e * e for e in self.errors) / len(self.errors))


def load_moe_ffn(
    source: str | Path | Checkpoint,
    *,
    layer: int | str,
    topk: int,
    dtype: str = "bfloat16",
    place: Any = None,
    progress: bool = True,
    report: Callable[[LoadReport], None] | None = None,
    **layer_options: Any,
) -> W4AFP8MoEFFN:
    """Loads one mixture-of-experts layer of a checkpoint.

    Experts are read, packed and copied into the layer one at a time: beyond the packed layer it
    takes the memory of one expert. The native format is mapped and not copied at all (on the CPU).
    The router is loaded where the checkpoint has one that the layer computes: a bias of the logits
    (gpt-oss), or groups of experts that are chosen in another way than DeepSeek-V3's, are left to
    the caller, who then gives the logits.

    Where weights were rounded (`MoELayerInfo.exact` is False), the largest error of an expert is
    logged as a warning of the logger "w4afp8.checkpoint", which Python prints on standard error.

    Args:
        source: a checkpoint, or the path of one.
        layer: index of the layer, or its prefix ("model.layers.3.mlp").
        topk: experts of each token.
        dtype: "bfloat16" or "float16", of the layer's input and output.
        place: where the layer shall be; None for Paddle's current device.
        progress: show a bar on standard error.
        report: called once with the error of each expert.
        **layer_options: accumulation, as `W4AFP8MoEFFN` has it; scoring, norm_topk_prob,
            routed_scaling_factor, n_group, topk_group, as `MoERouter` has them, by default as the
            config says.

    Returns:
        W4AFP8MoEFFN: with the checkpoint's own codes and scales, bit for bit, unless the layer's
        `MoELayerInfo.exact` is False.

    Raises:
        CheckpointError: see `open_checkpoint` and `Checkpoint.read_expert`; no layer is made.
        ValueError: the layer cannot have such a size, topk or option.

    Examples:
        >>> import numpy as np, tempfile
        >>> from safetensors.numpy import save_file
        >>> from w4afp8.checkpoint import load_moe_ffn
        >>> shapes = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
        >>> weights = {
        ...     f"model.layers.0.mlp.experts.{expert}.{name}.weight": np.ones(shape, np.float32)
        ...     for name, shape in shapes.items()
        ...     for expert in range(4)
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(weights, f"{folder}/model.safetensors")
        ...     load_moe_ffn(folder, layer=0, topk=2, progress=False).num_experts
        4
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    info = checkpoint.layer(layer)
    router = checkpoint.read_router(info)
    router = router if router is not None and router.fits_layer else None
    made = _make_layer(info, router, topk=topk, dtype=dtype, **layer_options)
    if place is not None:
        made.to(device=place)
    home = made.up_gate_proj.weight.place
    if isinstance(checkpoint, NativeCheckpoint):
        errors = _map_experts(made, checkpoint, info)
    else:
        errors = _stream_experts(made, checkpoint, info, progress)
    if router is not None:
        _set_router(made, router)
    made.to(device=home)
    log_rounding(checkpoint.path, info.index, max(errors))
    if report is not None:
        report(LoadReport(info, errors))
    return made


def _make_layer(info: MoELayerInfo, router: RouterWeights | None, **options: Any) -> W4AFP8MoEFFN:
    """The layer, its weights still zeros."""
    return W4AFP8MoEFFN(
        info.hidden_size,
        info.intermediate_size,
        info.experts,
        weight_format=info.weight_format,
        group_size=info.group_size,
        scale_dtype=info.scale_dtype,
        activation=info.activation,
        has_router=router is not None,
        has_correction_bias=router is not None and router.correction_bias is not None,
        hadamard_block_size=info.hadamard_block_size,
        has_up_gate_bias=info.has_bias,
        has_down_bias=info.has_bias,
        **{**({} if router is None else router.options), **options},
    )


def _stream_experts(
    made: W4AFP8MoEFFN, checkpoint: Checkpoint, info: MoELayerInfo, progress: bool
) -> tuple[float, ...]:
    """Fills the layer; returns the experts' quantisation errors."""
    errors, up_gate_biases, down_biases = [], [], []
    with show_progress(f"layer {info.index}", info.experts, shown=progress) as advance:
        for number in range(info.experts):
            expert = checkpoint.read_expert(info, number)
            _copy_weight(made.up_gate_proj, number, expert.up_gate)
            _copy_weight(made.down_proj, number, expert.down)
            up_gate_biases.append(expert.up_gate_bias)
            down_biases.append(expert.down_bias)
            errors.append(expert.error)
            del expert  # it may hold views of the file, whose pages are given back here
            checkpoint.release()
            advance()
    if info.has_bias:
        _set_biases(made, up_gate_biases, down_biases)
    return tuple(errors)


def _copy_weight(projection: ExpertLinear, expert: int, weight: QuantizedWeight) -> None:
    """Packs one expert where the layer is, into the layer's own memory."""
    packed = pack(weight, place=projection.weight.place)
    for name in ("weight", "weight_scale", "group_scale"):
        target = getattr(projection, name)
        if target is not None:
            target[expert].copy_(getattr(packed, name)[0], True)


def _map_experts(
    made: W4AFP8MoEFFN, checkpoint: NativeCheckpoint, info: MoELayerInfo
) -> tuple[float, ...]:
    """Lets the layer use the file's pages; returns the experts' quantisation errors."""
    packed = checkpoint.packed_layer(info)
    made.up_gate_proj.set_weight(packed.up_gate, name="up_gate")
    made.down_proj.set_weight(packed.down, name="down")
    if info.has_bias:
        _set_biases(made, packed.up_gate_bias, packed.down_bias)
    return checkpoint.read_errors(info)


def _set_biases(made: W4AFP8MoEFFN, up_gate: Any, down: Any) -> None:
    """Takes float32 biases, an array or one row an expert."""
    made.up_gate_proj.set_bias(paddle.to_tensor(np.stack(up_gate)), name="up_gate_bias")
    made.down_proj.set_bias(paddle.to_tensor(np.stack(down)), name="down_bias")


def _set_router(made: W4AFP8MoEFFN, router: RouterWeights) -> None:
    made.router.set_state("weight", paddle.to_tensor(router.weight), called="router weight")
    if router.correction_bias is not None:
        bias = paddle.to_tensor(router.correction_bias)
        made.router.set_state("correction_bias", bias, called="correction bias")
