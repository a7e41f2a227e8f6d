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
"""The sentence encoder of all-MiniLM-L6-v2 (BERT, six layers) in Paddle, in float32.

Every feed-forward block is a layer of its own, so that another may stand in for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of all-MiniLM-L6-v2 (its config.json)."""

    layers: int = 6
    hidden: int = 384
    heads: int = 12
    intermediate: int = 1536
    eps: float = 1e-12


@dataclass(frozen=True)
class DenseFeedForward:
    """Weights of one feed-forward block, float32.

    up is ``[intermediate, hidden]``, down ``[hidden, intermediate]``; both have a bias.
    """

    up: np.ndarray
    up_bias: np.ndarray
    down: np.ndarray
    down_bias: np.ndarray

    @property
    def num_weights(self) -> int:
        """Number of matrix elements; the biases are not counted."""
        return int(self.up.size + self.down.size)


def feed_forward_of(weights: Weights, layer: int) -> DenseFeedForward:
    """Takes the feed-forward block of one encoder layer from the checkpoint."""
    prefix = f"encoder.layer.{layer}."
    return DenseFeedForward(
        up=weights[prefix + "intermediate.dense.weight"].astype(np.float32),
        up_bias=weights[prefix + "intermediate.dense.bias"].astype(np.float32),
        down=weights[prefix + "output.dense.weight"].astype(np.float32),
        down_bias=weights[prefix + "output.dense.bias"].astype(np.float32),
    )


def _linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    """A Paddle Linear (weight ``[in, out]``) from a checkpoint's weight ``[out, in]``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.set_value(np.ascontiguousarray(weight.T, dtype=np.float32))
    layer.bias.set_value(bias.astype(np.float32))
    return layer


def _layer_norm(weights: Weights, name: str, eps: float) -> nn.LayerNorm:
    layer = nn.LayerNorm(weights[name + ".weight"].shape[0], epsilon=eps)
    layer.weight.set_value(weights[name + ".weight"].astype(np.float32))
    layer.bias.set_value(weights[name + ".bias"].astype(np.float32))
    return layer


class DenseBlock(nn.Layer):
    """The float feed-forward block: up projection, exact GELU, down projection."""

    def __init__(self, block: DenseFeedForward) -> None:
        super().__init__()
        self.up = _linear(block.up, block.up_bias)
        self.down = _linear(block.down, block.down_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)))


class EncoderLayer(nn.Layer):
    """Attention, then feed-forward; each is added to its input and normalised after."""

    def __init__(
        self, weights: Weights, index: int, config: EncoderConfig, feed_forward: nn.Layer
    ) -> None:
        super().__init__()
        prefix = f"encoder.layer.{index}."

        def linear(name: str) -> nn.Linear:
            return _linear(weights[prefix + name + ".weight"], weights[prefix + name + ".bias"])

        self.heads = config.heads
        self.query = linear("attention.self.query")
        self.key = linear("attention.self.key")
        self.value = linear("attention.self.value")
        self.project = linear("attention.output.dense")
        self.attention_norm = _layer_norm(
            weights, prefix + "attention.output.LayerNorm", config.eps
        )
        self.feed_forward = feed_forward
        self.output_norm = _layer_norm(weights, prefix + "output.LayerNorm", config.eps)

    def forward(self, x: Tensor, mask_bias: Tensor) -> Tensor:
        x = self.attention_norm(x + self._attend(x, mask_bias))
        return self.output_norm(x + self.feed_forward(x))

    def _attend(self, x: Tensor, mask_bias: Tensor) -> Tensor:
        sentences, tokens, hidden = x.shape
        head_dim = hidden // self.heads

        def split(y: Tensor) -> Tensor:
            return y.reshape([sentences, tokens, self.heads, head_dim]).transpose([0, 2, 1, 3])

        scores = paddle.matmul(split(self.query(x)), split(self.key(x)), transpose_y=True)
        probabilities = functional.softmax(scores / head_dim**0.5 + mask_bias, axis=-1)
        mixed = paddle.matmul(probabilities, split(self.value(x)))
        return self.project(mixed.transpose([0, 2, 1, 3]).reshape([sentences, tokens, hidden]))


class SentenceEncoder(nn.Layer):
    """Token ids to sentence embeddings of unit length.

    Args:
        weights: the checkpoint's arrays by name.
        feed_forwards: the layers that stand for the feed-forward blocks, first to last; None: the
            float blocks themselves.
        config: sizes.
    """

    def __init__(
        self,
        weights: Weights,
        feed_forwards: Sequence[nn.Layer] | None = None,
        *,
        config: EncoderConfig = EncoderConfig(),
    ) -> None:
        super().__init__()
        words = weights["embeddings.word_embeddings.weight"].astype(np.float32)
        self.words = paddle.to_tensor(words)
        # All tokens are of segment 0: its embedding is added to every position.
        self.positions = paddle.to_tensor(
            weights["embeddings.position_embeddings.weight"].astype(np.float32)
            + weights["embeddings.token_type_embeddings.weight"][0].astype(np.float32)
        )
        self.embedding_norm = _layer_norm(weights, "embeddings.LayerNorm", config.eps)
        self.layers = nn.LayerList(
            EncoderLayer(
                weights,
                i,
                config,
                DenseBlock(feed_forward_of(weights, i))
                if feed_forwards is None
                else feed_forwards[i],
            )
            for i in range(config.layers)
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embeds sentences.

        Args:
            ids: int64 ``[sentences, tokens]``.
            mask: int64 ``[sentences, tokens]``, 1 where a token is real.

        Returns:
            float32 ``[sentences, hidden]``, rows of unit length.
        """
        x = functional.embedding(ids, self.words) + self.positions[: ids.shape[1]]
        x = self.embedding_norm(x)
        keep = mask.astype("float32")
        mask_bias = ((1.0 - keep) * -1e9).unsqueeze([1, 2])
        for layer in self.layers:
            x = layer(x, mask_bias)
        keep = keep.unsqueeze(-1)
        return functional.normalize((x * keep).sum(axis=1) / keep.sum(axis=1), axis=-1)
