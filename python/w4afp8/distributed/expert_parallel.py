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
"""The mixture-of-experts feed-forward block with its experts spread over processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from paddle import Tensor

from w4afp8._checks import check_range
from w4afp8.distributed.decode import decode
from w4afp8.distributed.exchange import RowExchange, exchange_of
from w4afp8.distributed.partition import ExpertPartition
from w4afp8.distributed.prefill import prefill
from w4afp8.distributed.shard import copy_of, shard_of
from w4afp8.layers.checks import check_activations, check_same
from w4afp8.layers.expert_linear import ExpertLinear
from w4afp8.layers.experts import Activation, run_experts, tokens_hint
from w4afp8.layers.moe_ffn import W4AFP8MoEFFN
from w4afp8.layers.operands import contiguous
from w4afp8.layers.precision import QuantizedLayer
from w4afp8.layers.router import MoERouter
from w4afp8.quant.weights import check_choice

Phase = Literal["prefill", "decode"]


class W4AFP8ExpertParallelMoEFFN(QuantizedLayer):
    """`w4afp8.layers.W4AFP8MoEFFN` over the processes of a group, each with some of the experts.

    For inference. Each rank calls it with its own tokens, as many as it has, and gets their
    outputs: the same as of one process with all experts. All ranks of the group must call it, as
    often and with the same phase: a rank that does not makes the others raise ExchangeError.

    Args:
        router: of all experts, the same on every rank.
        up_gate_proj: first projection of this rank's experts; None for a rank without experts.
        down_proj: second projection of this rank's experts; None for a rank without experts.
        hidden_size: features of a token.
        activation: "swiglu", "swiglu_oai" or "gelu".
        hadamard_block_size: as `W4AFP8MoEFFN` has it.
        partition: which rank holds which experts.
        exchange: sends rows between the ranks, see `exchange_of`.
        max_decode_tokens: largest number of tokens of one rank in the phase "decode", the same on
            every rank; 1 to 1024.

    Raises:
        ValueError: the parts do not fit each other.

    Examples:
        >>> import numpy as np, paddle
        >>> from w4afp8.distributed import W4AFP8ExpertParallelMoEFFN
        >>> from w4afp8.layers import W4AFP8MoEFFN
        >>> up_gate = np.random.randn(8, 2 * 256, 128).astype("float32") * 0.05
        >>> down = np.random.randn(8, 128, 256).astype("float32") * 0.05
        >>> whole = W4AFP8MoEFFN.from_float(up_gate, down, topk=2)
        >>> layer = W4AFP8ExpertParallelMoEFFN.from_layer(whole)  # after init_parallel_env()
        >>> x, logits = paddle.randn([5, 128]).astype("bfloat16"), paddle.randn([5, 8])
        >>> list(layer(x, logits, phase="decode").shape)
        [5, 128]
    """

    def __init__(
        self,
        router: MoERouter,
        up_gate_proj: ExpertLinear | None,
        down_proj: ExpertLinear | None,
        *,
        hidden_size: int,
        activation: Activation,
        partition: ExpertPartition,
        exchange: RowExchange,
        hadamard_block_size: int = -1,
        max_decode_tokens: int = 128,
    ) -> None:
        super().__init__(dtype=router.activation_dtype)
        check_choice("activation", activation, Activation)
        check_range("max_decode_tokens", max_decode_tokens, 1, 1024)
        check_same("partition: ranks", partition.world_size, exchange.world_size)
        check_same("partition: experts", partition.num_experts, router.num_experts)
        own = partition.experts_per_rank[exchange.rank]
        for name, linear in (("up_gate_proj", up_gate_proj), ("down_proj", down_proj)):
            experts = 0 if linear is None else linear.num_experts
            check_same(f"{name}: experts of rank {exchange.rank}", experts, own)
        self.hidden_size = hidden_size
        self.activation = activation
        self.hadamard_block_size = hadamard_block_size
        self.partition = partition
        self.exchange = exchange
        self.max_decode_tokens = max_decode_tokens
        self.router = router
        self.up_gate_proj = up_gate_proj
        self.down_proj = down_proj

    @classmethod
    def from_layer(
        cls,
        layer: W4AFP8MoEFFN,
        *,
        group: Any = None,
        experts_per_rank: Sequence[int] | None = None,
        max_decode_tokens: int = 128,
    ) -> W4AFP8ExpertParallelMoEFFN:
        """Takes this rank's experts out of a layer with all of them; the result is where that is.

        Args:
            layer: the same on every rank. Where the experts of all ranks do not fit on a GPU, load
                it on the CPU and move the result.
            group: of `paddle.distributed.new_group`; None for all processes.
            experts_per_rank: how many of the experts each rank takes, in order; None: evenly, the
                first ranks one more.
            max_decode_tokens: as in the class.

        Raises:
            ValueError: an argument is out of range, or does not fit the layer or the group.
        """
        exchange = exchange_of(group)
        if experts_per_rank is None:
            partition = ExpertPartition.even(layer.num_experts, exchange.world_size)
        else:
            partition = ExpertPartition.of(experts_per_rank)
        check_same("experts_per_rank: ranks", partition.world_size, exchange.world_size)
        check_same("experts_per_rank: their sum", partition.num_experts, layer.num_experts)
        experts = partition.experts_of(exchange.rank)
        part = cls(
            copy_of(layer.router, layer.hidden_size),
            shard_of(layer.up_gate_proj, experts),
            shard_of(layer.down_proj, experts),
            hidden_size=layer.hidden_size,
            activation=layer.activation,
            hadamard_block_size=layer.hadamard_block_size,
            partition=partition,
            exchange=exchange,
            max_decode_tokens=max_decode_tokens,
        )
        part.to(device=layer.up_gate_proj.weight.place)
        return part

    def forward(
        self, x: Tensor, logits: Tensor | None = None, *, phase: Phase = "prefill"
    ) -> Tensor:
        """Computes the block for this rank's tokens, of which there may be none.

        Args:
            x: ``[..., hidden_size]`` of the layer's `activation_dtype`.
            logits: float32, bfloat16 or float16 ``[tokens, experts of all ranks]``. None: the
                router computes them.
            phase: "prefill" sends just the rows there are, and reads their numbers on the host;
                "decode" sends buffers of a fixed size, for up to `max_decode_tokens` tokens.

        Returns:
            As x.

        Raises:
            ValueError: an argument does not fit. Nothing was sent: the other ranks will raise
                ExchangeError unless this one calls the layer again.
            ExchangeError: a rank did not take part.
        """
        check_choice("phase", phase, Phase)
        check_activations("x", x, self.activation_dtype, self.hidden_size)
        for linear in (self.up_gate_proj, self.down_proj):
            if linear is not None:
                linear.check_loaded()
        rows = contiguous(x if x.ndim == 2 else x.reshape([-1, self.hidden_size]))
        routed = self.router(rows, None if logits is None else contiguous(logits))
        out = self._prefill(rows, *routed) if phase == "prefill" else self._decode(rows, *routed)
        return out if x.ndim == 2 else out.reshape(x.shape)

    def _prefill(self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        return prefill(
            x,
            topk_weights,
            topk_ids,
            experts=self._experts,
            partition=self.partition,
            exchange=self.exchange,
        )

    def _decode(self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        ranks = self.exchange.world_size
        # As many as this rank has: buffers that are nearly empty tell nothing.
        copies = ranks * x.shape[0] * self.router.topk
        shape = {
            "token_padding": ranks * self.max_decode_tokens,
            "max_tokens": tokens_hint(copies, self.partition.num_experts),
        }
        return decode(
            x,
            topk_weights,
            topk_ids,
            experts=lambda *rows: self._experts(*rows, **shape),
            partition=self.partition,
            exchange=self.exchange,
            max_tokens=self.max_decode_tokens,
        )

    def _experts(
        self,
        x: Tensor,
        x_scale: Tensor,
        tokens: Tensor,
        *,
        token_padding: int = 0,
        max_tokens: int = -1,
    ) -> Tensor:
        # Without experts there are no rows, and this is not called.
        assert self.up_gate_proj is not None
        assert self.down_proj is not None
        return run_experts(
            *(self.up_gate_proj, self.down_proj, x, tokens, x_scale),
            activation=self.activation,
            out_dtype=self.activation_dtype,
            hadamard_block_size=self.hadamard_block_size,
            token_padding=token_padding,
            max_tokens=max_tokens,
        )

    def extra_repr(self) -> str:
        return (
            f"hidden_size={self.hidden_size}, experts_per_rank={self.partition.experts_per_rank}, "
            f"rank={self.exchange.rank}, topk={self.router.topk}, activation={self.activation}, "
            f"dtype={self.activation_dtype}"
        )
