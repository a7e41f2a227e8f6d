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
"""Runs the encoders and compares their embeddings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from w4afp8.demo.blocks import FORMATS, QuantizedBlock, QuantizedFeedForward, quantize_block
from w4afp8.demo.encoder import (
    DenseBlock,
    EncoderConfig,
    SentenceEncoder,
    feed_forward_of,
)
from w4afp8.demo.inputs import DemoInputs
from w4afp8.quant import Rounding

# Steps that `measure` reports: the float encoder, then each format.
NUM_STEPS = 1 + len(FORMATS)
_TIMED_RUNS = 3


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        title: the format.
        cosine: float64 ``[sentences]``, similarity of each embedding to the float model's.
        weights_only_cosine: the same for float32 activations and the dequantised weights: what the
            weights alone cost.
        neighbours_kept: sentences whose nearest neighbour is the float model's.
        weight_bytes: bytes of all feed-forward weights and their scales, without biases.
        seconds: median time to embed all sentences.
    """

    title: str
    cosine: np.ndarray
    weights_only_cosine: np.ndarray
    neighbours_kept: int
    weight_bytes: int
    seconds: float

    @property
    def num_sentences(self) -> int:
        return int(self.cosine.size)


def nearest_neighbours(embeddings: np.ndarray) -> np.ndarray:
    """Index of the other row that is most similar, for each row of unit length."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(axis=1)


def compare(truth: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, int]:
    """Cosine similarity row by row, and how many nearest neighbours agree."""
    truth, other = truth.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(truth, axis=1) * np.linalg.norm(other, axis=1)
    kept = int((nearest_neighbours(truth) == nearest_neighbours(other)).sum())
    return (truth * other).sum(axis=1) / norms, kept


def embed(
    encoder: SentenceEncoder, inputs: DemoInputs, *, runs: int = _TIMED_RUNS
) -> tuple[np.ndarray, float]:
    """Embeds all sentences, `runs` times after one warm-up.

    Returns:
        float32 ``[sentences, hidden]`` and the median time in seconds.
    """
    encoder.eval()
    ids, mask = paddle.to_tensor(inputs.ids), paddle.to_tensor(inputs.mask)
    seconds = []
    with paddle.no_grad():
        embeddings = encoder(ids, mask).numpy()
        for _ in range(runs):
            start = time.perf_counter()
            embeddings = encoder(ids, mask).numpy()
            seconds.append(time.perf_counter() - start)
    return embeddings, float(np.median(seconds))


def measure(
    inputs: DemoInputs,
    *,
    place: paddle.base.core.Place,
    dtype: str = "bfloat16",
    rounding: Rounding = "absmax/7",
    on_step: Callable[[str], None] = lambda title: None,
) -> list[Result]:
    """Embeds the sentences with the float encoder and with every format.

    Args:
        inputs: model and sentences.
        place: where the quantised blocks run; the rest of the encoder runs on Paddle's device.
        dtype: type of the quantised blocks' inputs and outputs, "bfloat16" or "float16".
        rounding: int4's rule for the scale (`w4afp8.quant.quantize`).
        on_step: called with the title of each step as it starts.

    Returns:
        The float encoder's result, then one for each of `FORMATS`.
    """
    on_step("float32")
    truth, seconds = embed(SentenceEncoder(inputs.weights), inputs)
    count = len(inputs.sentences)
    same = np.ones(count)
    size = float_bytes(inputs, bytes_per_weight=4)
    results = [Result("float32", same, same, count, size, seconds)]
    for form in FORMATS:
        on_step(form.title)
        blocks = [
            quantize_block(feed_forward_of(inputs.weights, i), form, rounding=rounding)
            for i in range(EncoderConfig().layers)
        ]
        results.append(_measure_format(inputs, form.title, blocks, truth, place=place, dtype=dtype))
    return results


def _measure_format(
    inputs: DemoInputs,
    title: str,
    blocks: Sequence[QuantizedFeedForward],
    truth: np.ndarray,
    *,
    place: paddle.base.core.Place,
    dtype: str,
) -> Result:
    layers = [QuantizedBlock(block, dtype=dtype, place=place) for block in blocks]
    embeddings, seconds = embed(SentenceEncoder(inputs.weights, layers), inputs)
    dequantized = [DenseBlock(block.dequantized()) for block in blocks]
    weights_only, _ = embed(SentenceEncoder(inputs.weights, dequantized), inputs, runs=1)
    cosine, kept = compare(truth, embeddings)
    return Result(
        title=title,
        cosine=cosine,
        weights_only_cosine=compare(truth, weights_only)[0],
        neighbours_kept=kept,
        weight_bytes=sum(layer.moe.weight_bytes for layer in layers),
        seconds=seconds,
    )


def float_bytes(inputs: DemoInputs, *, bytes_per_weight: int) -> int:
    """Bytes of the feed-forward matrices of all layers at a given width."""
    layers = range(EncoderConfig().layers)
    return sum(feed_forward_of(inputs.weights, i).num_weights for i in layers) * bytes_per_weight
