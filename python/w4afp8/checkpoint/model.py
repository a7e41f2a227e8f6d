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
"""What a checkpoint holds of mixture-of-experts layers, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.layers.experts import Activation
from w4afp8.quant import QuantizedWeight, ScaleDtype, WeightFormat


@dataclass(frozen=True)
class MoELayerInfo:
    """One mixture-of-experts layer, as the headers and the config tell it.

    Attributes:
        index: of the layer in the model.
        prefix: what the names of its tensors begin with, "model.layers.3.mlp".
        experts: their number.
        hidden_size: features of its input and output.
        intermediate_size: features between the projections.
        weight_format: "int4" or "mxfp4".
        group_size: weights along the input features that share a scale; -1 one per output channel.
        scale_dtype: type of int4 group scales: "bfloat16" where the checkpoint has them so.
        activation: between the projections.
        has_bias: whether the projections have biases.
        hadamard_block_size: of the blocks that the second projection's input is to be rotated in,
            as its weights are; -1 for none.
        exact: whether the codes and scales are the checkpoint's own; else they were rounded here,
            and `ExpertWeights.error` says how far.
    """

    index: int
    prefix: str
    experts: int
    hidden_size: int
    intermediate_size: int
    weight_format: WeightFormat
    group_size: int
    scale_dtype: ScaleDtype = "float32"
    activation: Activation = "swiglu"
    has_bias: bool = False
    hadamard_block_size: int = -1
    exact: bool = True


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """One expert.

    Attributes:
        up_gate: ``[1, 2 * intermediate, hidden]``, the gate's rows first.
        down: ``[1, hidden, intermediate]``.
        up_gate_bias: float32 ``[2 * intermediate]``, the gate's part first.
        down_bias: float32 ``[hidden]``.
        up_gate_input_scale: multiplier of the first projection's FP8 activations, where the
            checkpoint holds a static one. The layer scales each token by itself and needs none.
        down_input_scale: the same of the second projection.
        error: ``|rounded - original| / |original|`` over both projections, in the Euclidean norm;
            0 where nothing was rounded.
    """

    up_gate: QuantizedWeight
    down: QuantizedWeight
    up_gate_bias: NDArray[np.float32] | None = None
    down_bias: NDArray[np.float32] | None = None
    up_gate_input_scale: float | None = None
    down_input_scale: float | None = None
    error: float = 0.0


@dataclass(frozen=True, eq=False)
class RouterWeights:
    """What chooses the experts of a layer.

    Attributes:
        weight: float32 ``[hidden, experts]``.
        bias: float32 ``[experts]``, added to the logits (gpt-oss).
        correction_bias: float32 ``[experts]``, added to the scores for the choice only.
        options: of `W4AFP8MoEFFN` that the config asks for: scoring, norm_topk_prob,
            routed_scaling_factor, n_group, topk_group.
        limits_groups: experts are chosen within the best groups of experts only.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None
    correction_bias: NDArray[np.float32] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    limits_groups: bool = False

    @property
    def fits_layer(self) -> bool:
        """Whether `W4AFP8MoEFFN` computes this router: no bias of logits, no other groups."""
        knows_groups = not self.limits_groups or "n_group" in self.options
        return knows_groups and (self.bias is None or not self.bias.any())


class Checkpoint(ABC):
    """Mixture-of-experts layers in files, read expert by expert.

    Attributes:
        path: file or folder.
        format: name of the format, "compressed-tensors" for example.
        layers: all mixture-of-experts layers, in the order of their indices.
    """

    path: Path
    format: str
    layers: tuple[MoELayerInfo, ...]

    @abstractmethod
    def read_expert(self, layer: MoELayerInfo, expert: int) -> ExpertWeights:
        """Reads one expert.

        Args:
            layer: one of `layers`.
            expert: 0 to layer.experts - 1.

        Raises:
            CheckpointError: a tensor holds what it must not; the message names file and tensor.
        """

    def read_router(self, layer: MoELayerInfo) -> RouterWeights | None:
        """The router of a layer; None where the checkpoint has none, or none known here.

        Raises:
            CheckpointError: a tensor of it has another shape or type than the layer asks for.
        """
        return None

    def release(self) -> None:
        """Gives back memory that reading needed: called after each expert."""
        return

    def layer(self, layer: int | str) -> MoELayerInfo:
        """A layer by its index, or by its prefix.

        Raises:
            CheckpointError: there is none, or the index means two.
        """
        key = "prefix" if isinstance(layer, str) else "index"
        found = [info for info in self.layers if getattr(info, key) == layer]
        if len(found) != 1:
            names = ", ".join(f"{info.index} ({info.prefix})" for info in self.layers[:8])
            more = ", ..." if len(self.layers) > 8 else ""
            raise CheckpointError(self.path, f"layer: expected one of {names}{more}, got {layer!r}")
        return found[0]
