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
"""The demonstration: its encoder, its arithmetic, its files and its table."""

from __future__ import annotations

import importlib.util
import os
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from demo_inputs import PAIR, load_pair

from w4afp8.demo import DemoOptions, model_files, run, run_demo
from w4afp8.demo.blocks import FORMATS, QuantizedBlock, cut_into_experts, quantize_block
from w4afp8.demo.encoder import DenseFeedForward, SentenceEncoder, feed_forward_of
from w4afp8.demo.inputs import DemoInputs, load_copy, load_inputs, save_copy
from w4afp8.demo.measure import Result, compare, embed, nearest_neighbours
from w4afp8.demo.report import format_table, write_plot
from w4afp8.demo.sentences import DEFAULT_SENTENCES

pytestmark = pytest.mark.cpu_only


def test_the_model_is_installed() -> None:
    """W4AFP8_NO_DEMO=1 says that it is not wanted; else nothing below may be skipped unnoticed."""
    if os.environ.get("W4AFP8_NO_DEMO") != "1":
        assert importlib.util.find_spec(model_files.PACKAGE), f"run: {model_files.INSTALL}"


@pytest.fixture
def pair() -> DemoInputs:
    return load_pair()


def encode_in_float64(weights: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """BERT with mean pooling over one sentence without padding, by its definition in numpy."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[name + ".weight"].astype(np.float64).T + weights[name + ".bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return unit * weights[name + ".weight"] + weights[name + ".bias"]

    x = weights["embeddings.word_embeddings.weight"][ids].astype(np.float64)
    x += weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for index in range(6):
        layer = f"encoder.layer.{index}."
        query, key, value = (
            linear(x, layer + "attention.self." + name).reshape(len(ids), 12, 32)
            for name in ("query", "key", "value")
        )
        scores = np.exp(np.einsum("qhd,khd->hqk", query, key) / np.sqrt(32))
        attended = np.einsum("hqk,khd->qhd", scores / scores.sum(axis=2, keepdims=True), value)
        projected = linear(attended.reshape(len(ids), 384), layer + "attention.output.dense")
        x = norm(x + projected, layer + "attention.output.LayerNorm")
        h = linear(x, layer + "intermediate.dense")
        h *= 0.5 * (1 + np.vectorize(erf)(h / np.sqrt(2)))
        x = norm(x + linear(h, layer + "output.dense"), layer + "output.LayerNorm")
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_float_encoder_matches_its_definition(pair: DemoInputs) -> None:
    embeddings, _ = embed(SentenceEncoder(pair.weights), pair, runs=1)
    for sentence, ids, mask in zip(embeddings, pair.ids, pair.mask, strict=True):
        expected = encode_in_float64(pair.weights, ids[mask == 1])
        # float32 throughout: elements below 1, some hundred roundings of 2^-24 deep.
        np.testing.assert_allclose(sentence, expected, atol=1e-5)


def test_tokens_are_berts(pair: DemoInputs) -> None:
    """[CLS] this is an example sentence [SEP], lower case, no padding to a fixed length."""
    np.testing.assert_array_equal(pair.ids[0], [101, 2023, 2003, 2019, 2742, 6251, 102])
    assert pair.ids.shape[1] == pair.mask.sum(axis=1).max()


def test_long_sentences_are_cut(pair: DemoInputs) -> None:
    """To what the model was trained on, [CLS] and [SEP] included; it has 512 positions."""
    inputs = load_inputs(("word " * 600, PAIR[0]))
    assert inputs.ids.shape == (2, 256)
    assert (inputs.ids[0, [0, -1]] == [101, 102]).all()
    assert np.isfinite(embed(SentenceEncoder(inputs.weights), inputs, runs=1)[0]).all()


def test_padding_changes_nothing(pair: DemoInputs) -> None:
    encoder = SentenceEncoder(pair.weights)
    together, _ = embed(encoder, pair, runs=1)
    padded = DemoInputs(
        pair.sentences,
        np.pad(pair.ids, ((0, 0), (0, 9))),
        np.pad(pair.mask, ((0, 0), (0, 9))),
        pair.weights,
    )
    # Masked scores are -1e9: their probabilities are 0 in float32. Only the order of sums differs.
    np.testing.assert_allclose(embed(encoder, padded, runs=1)[0], together, atol=1e-6)


def test_pairs_of_default_sentences_are_nearest_neighbours(pair: DemoInputs) -> None:
    assert len(DEFAULT_SENTENCES) >= 24
    inputs = load_inputs(DEFAULT_SENTENCES)
    embeddings, _ = embed(SentenceEncoder(inputs.weights), inputs, runs=1)
    expected = np.arange(len(DEFAULT_SENTENCES)) ^ 1
    np.testing.assert_array_equal(nearest_neighbours(embeddings), expected)


def random_block(hidden: int = 64, intermediate: int = 256) -> DenseFeedForward:
    rng = np.random.default_rng(0)
    shapes = ((intermediate, hidden), (intermediate,), (hidden, intermediate), (hidden,))
    return DenseFeedForward(*(rng.standard_normal(s).astype(np.float32) for s in shapes))


def test_experts_add_up_to_the_block() -> None:
    """With the identity for the activation, and in float64."""
    block = random_block()
    parts = cut_into_experts(block)
    x = np.random.default_rng(1).standard_normal((5, 64))
    whole = (x @ block.up.T + block.up_bias) @ block.down.T + block.down_bias
    each = [
        (x @ parts.up[e].T + parts.up_bias[e]) @ parts.down[e].T + parts.down_bias[e]
        for e in range(4)
    ]
    np.testing.assert_allclose(sum(each), whole, rtol=1e-9)
    with pytest.raises(ValueError, match="experts: expected a divisor of 256, got 3"):
        cut_into_experts(block, 3)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.title)
def test_quantized_block_is_near_its_dequantized_weights(form) -> None:
    """What differs is the rounding of activations: 2^-4 at most for FP8, twice, and bfloat16's.

    The relative error of a sum of many terms of random signs is below that of a term.
    """
    quantized = quantize_block(random_block(256, 512), form)
    x = paddle.randn([2, 8, 256])
    out = QuantizedBlock(quantized, dtype="bfloat16", place=paddle.CPUPlace())(x)
    assert out.dtype == paddle.float32
    dense = quantized.dequantized()
    hidden = paddle.nn.functional.gelu(x @ paddle.to_tensor(dense.up.T) + dense.up_bias)
    expected = hidden @ paddle.to_tensor(dense.down.T) + dense.down_bias
    error = float((out - expected).norm() / expected.norm())
    assert 0 < error < 2.0**-4


def test_dequantized_puts_the_block_together_again() -> None:
    block = random_block()
    form = FORMATS[-1]
    dense = quantize_block(block, form).dequantized()
    # E2M1: a step is at most a third of the value below 6 * 2^e, half the smallest step near zero.
    for name in ("up", "down"):
        got, given = getattr(dense, name), getattr(block, name)
        assert np.linalg.norm(got - given) < 0.25 * np.linalg.norm(given)
    np.testing.assert_array_equal(dense.up_bias, block.up_bias)
    np.testing.assert_array_equal(dense.down_bias, block.down_bias)


def test_compare_and_neighbours() -> None:
    truth = np.eye(3) + np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0.1, 0]])
    cosine, kept = compare(truth, truth * 2)
    np.testing.assert_allclose(cosine, 1)
    assert kept == 3
    np.testing.assert_array_equal(nearest_neighbours(truth), [1, 0, 1])
    cosine, kept = compare(truth, truth[[2, 1, 0]])
    assert cosine.min() < 0.5
    assert kept < 3


def test_runs_end_to_end_on_the_users_sentences(
    pair: DemoInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "mine.txt"
    text.write_text(
        "\n".join([*PAIR, "", "  A third one, about cooking pasta. "]), encoding="utf-8"
    )
    results = run_demo(DemoOptions(text=text, out=tmp_path / "out"))
    assert [r.title for r in results] == ["float32", "int4 per channel", "int4 group 128", "MXFP4"]
    # Six blocks of 2 * 384 * 1536 weights in float32; in 4 bits an eighth, and the scales.
    assert results[0].weight_bytes == 6 * 2 * 384 * 1536 * 4
    codes, channels = 6 * 384 * 1536, 6 * 4 * (384 + 384)
    assert results[1].weight_bytes == codes + channels * 4
    assert results[2].weight_bytes == codes + channels * (4 + 4 * 3)
    assert results[3].weight_bytes == codes + channels * (4 + 12)
    for result in results[1:]:
        assert result.num_sentences == 3
        # No derived bound: 0.9 tells a working block from a broken one, which gives about 0.
        assert 0.9 < result.cosine.min() <= result.cosine.mean() < 1
        assert result.cosine.mean() <= result.weights_only_cosine.mean() + 0.01
        assert result.seconds > 0
    printed = capsys.readouterr().out
    assert format_table(results) in printed
    assert (tmp_path / "out" / "demo.md").read_text() == format_table(results) + "\n"
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_options_reach_the_measurement(
    pair: DemoInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    same = Result("float32", np.ones(2), np.ones(2), 2, 1, 1.0)
    monkeypatch.setattr(run, "measure", lambda _, **options: given.update(options) or [same] * 2)
    save_copy(pair, tmp_path / "copy.npz")
    options = {"dtype": "float16", "rounding": "mse"}
    run_demo(DemoOptions(copy=tmp_path / "copy.npz", out=tmp_path, **options))
    assert {name: given[name] for name in options} == options
    assert given["place"].is_cpu_place()


def test_copy_has_what_the_sentences_need(pair: DemoInputs, tmp_path: Path) -> None:
    save_copy(pair, tmp_path / "copy.npz")
    copy = load_copy(tmp_path / "copy.npz")
    assert copy.sentences == PAIR
    assert len(copy.weights["embeddings.word_embeddings.weight"]) == len(np.unique(pair.ids))
    truth, _ = embed(SentenceEncoder(pair.weights), pair, runs=1)
    cosine, kept = compare(truth, embed(SentenceEncoder(copy.weights), copy, runs=1)[0])
    # FP16 weights: relative 2^-11 each, hundreds of times smaller than any 4-bit step.
    assert cosine.min() > 0.9999
    assert kept == 2
    block = feed_forward_of(copy.weights, 5)
    np.testing.assert_allclose(
        block.up, feed_forward_of(pair.weights, 5).up, rtol=2.0**-10, atol=1e-7
    )


def test_table_and_plot(tmp_path: Path) -> None:
    same, worse = np.ones(4), np.array([0.9, 1.0, 0.8, 0.9])
    results = [
        Result("float32", same, same, 4, 8_000_000, 0.5),
        Result("MXFP4", worse, same, 3, 1_000_000, 0.0214),
    ]
    header, rule, first, second = format_table(results).splitlines()
    assert len({len(header), len(rule), len(first), len(second)}) == 1
    cells = [cell.strip() for cell in second.strip("|").split("|")]
    assert cells == [
        "MXFP4",
        "0.9000",
        "0.8000",
        "1.0000",
        "3/4",
        "1.00",
        "12.5%",
        "25.0%",
        "21 ms",
    ]
    write_plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
