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
"""Which experts each token goes to, and with what weight."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import paddle
from paddle import Tensor

from w4afp8 import ops
from w4afp8._checks import check_range
from w4afp8.layers.checks import MAX_EXPERTS, check_same
from w4afp8.layers.operands import alias, on_place_of
from w4afp8.layers.precision import QuantizedLayer
from w4afp8.quant.weights import check_choice

Scoring = Literal["softmax", "sigmoid"]
MAX_TOPK = 32


class Routing(NamedTuple):
    """How tokens choose experts: `w4afp8.ops.moe_route`'s arguments, as `_ops.moe_ffn` has them."""

    correction_bias: Tensor | None
    topk: int
    score: Scoring = "softmax"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights float32 and experts int32, both ``[tokens, topk]``."""
        return ops.moe_route(logits, **self._asdict())


def check_groups(num_experts: int, topk: int, n_group: int, topk_group: int) -> None:
    """Raises ValueError unless tokens can choose `topk` experts within `topk_group` groups."""
    check_range("n_group", n_group, 1, num_experts)
    if num_experts % n_group:
        raise ValueError(f"n_group: expected a divisor of {num_experts} experts, got {n_group}")
    check_range("topk_group", topk_group, 1, n_group)
    experts = topk_group * (num_experts // n_group)
    if topk > experts:
        raise ValueError(
            f"topk_group: expected groups of at least {topk} experts together (topk), got "
            f"{topk_group} groups of {num_experts // n_group}"
        )


class MoERouter(QuantizedLayer):
    """Chooses the experts of each token from logits, its own or the caller's.

    State (buffers, always float32): ``weight`` ``[hidden, experts]`` and ``correction_bias``
    ``[experts]``, where there are such.

    Args:
        hidden_size: features of a token.
        num_experts: 1 to 1024.
        topk: experts of each token, 1 to min(32, num_experts).
        scoring: "softmax" or "sigmoid", from logits to scores.
        norm_topk_prob: divide the chosen experts' scores by their sum.
        routed_scaling_factor: multiplies the weights at last.
        n_group: groups of equally many experts, in their order; 1 to num_experts.
        topk_group: groups that a token chooses within: those whose two best experts have the
            largest sum of scores, with the correction bias (DeepSeek-V3). 1 to n_group, with at
            least topk experts together.
        has_weight: hold a weight, so that logits need not be given.
        has_correction_bias: hold a bias of the scores for the choice only.
        dtype: of the activations; changes nothing here.

    Raises:
        ValueError: an argument is out of range.
    """

    weight: Tensor | None
    correction_bias: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        topk: int,
        *,
        scoring: Scoring = "softmax",
        norm_topk_prob: bool = True,
        routed_scaling_factor: float = 1.0,
        n_group: int = 1,
        topk_group: int = 1,
        has_weight: bool = False,
        has_correction_bias: bool = False,
        dtype: Any = "bfloat16",
    ) -> None:
        super().__init__(dtype=dtype)
        check_range("num_experts", num_experts, 1, MAX_EXPERTS)
        check_range("topk", topk, 1, min(MAX_TOPK, num_experts))
        check_choice("scoring", scoring, Scoring)
        check_groups(num_experts, topk, n_group, topk_group)
        self.num_experts = num_experts
        self.topk = topk
        self.scoring = scoring
        self.norm_topk_prob = bool(norm_topk_prob)
        self.routed_scaling_factor = float(routed_scaling_factor)
        self.n_group = n_group
        self.topk_group = topk_group
        weight = paddle.zeros([hidden_size, num_experts], "float32") if has_weight else None
        bias = paddle.zeros([num_experts], "float32") if has_correction_bias else None
        self.register_buffer("weight", weight)
        self.register_buffer("correction_bias", bias)

    def set_state(self, name: str, value: Tensor, *, called: str) -> None:
        """Takes a float tensor for "weight" or "correction_bias", in float32.

        Raises:
            ValueError: it has another shape; `called` names it in the error.
        """
        check_same(f"{called}: shape", list(value.shape), list(getattr(self, name).shape))
        setattr(self, name, alias(value.astype("float32")))

    def forward(self, x: Tensor, logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Routes tokens.

        Args:
            x: ``[tokens, hidden]``; read only where logits are None.
            logits: float ``[tokens, experts]``. None: x times the weight, in float32.

        Returns:
            Weights float32 and experts int32, both ``[tokens, topk]``.

        Raises:
            ValueError: the logits do not fit, or are missing where the router has no weight.
        """
        return self.routing.choose(self.logits_of(x, logits))

    def logits_of(self, x: Tensor, logits: Tensor | None) -> Tensor:
        """The given logits, checked, or the router's own; as `forward` takes them."""
        return self._logits(x) if logits is None else self._checked(logits, x)

    @property
    def routing(self) -> Routing:
        """How tokens choose."""
        return Routing(
            *(self.correction_bias, self.topk, self.scoring, self.norm_topk_prob),
            *(self.routed_scaling_factor, self.n_group, self.topk_group),
        )

    def _logits(self, x: Tensor) -> Tensor:
        if self.weight is None:
            raise ValueError("logits: expected a tensor (the layer has no router), got None")
        # Automatic mixed precision would round the logits, and so change which experts are chosen.
        with paddle.amp.auto_cast(enable=False):
            return on_place_of(x, paddle.matmul(x.astype("float32"), self.weight))

    def _checked(self, logits: Tensor, x: Tensor) -> Tensor:
        tokens = x.shape[0]
        fits = logits.ndim == 2 and logits.shape[1] == self.num_experts
        # While a program is traced, a number of tokens may be unknown (-1).
        if not fits or (min(tokens, logits.shape[0]) >= 0 and tokens != logits.shape[0]):
            raise ValueError(
                f"logits: expected shape [{tokens}, {self.num_experts}], got {list(logits.shape)}"
            )
        return logits
