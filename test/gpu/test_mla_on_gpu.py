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
"""test/unit/test_mla_up.py with tensors on the GPU; streams, CUDA graphs and repeatability."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
import test_mla_up
from test_mla_up import *  # noqa: F403
from test_mla_up import DTYPES, OPS, check_within, packed, run
from test_streams_and_graphs import captured

from w4afp8 import ops
from w4afp8._routes import force_route
from w4afp8.layers import MLAUpProjections
from w4afp8.testing.compare import Accumulator, assert_bits_equal
from w4afp8.testing.gpu import as_torch, device_name, paddle_stream, torch_on_paddle_stream
from w4afp8.testing.mla import MLAProblem, Op, random_activations, random_kv_b_proj
from w4afp8.testing.tensors import float_tensor, tensor_bits

pytestmark = test_mla_up.pytestmark


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("tokens", "heads"), [(512, 128), (4097, 16)])
def test_large(place: Any, accumulator: Accumulator, tokens: int, heads: int, op: Op) -> None:
    check_within(place, MLAProblem(tokens, heads), op, "bfloat16", accumulator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_in_twenty_runs(place: Any, op: Op, dtype: str) -> None:
    p = MLAProblem(300, 16)
    up = packed(place, p, random_kv_b_proj(p))
    x = float_tensor(random_activations(p, op, dtype), dtype, place)
    first = tensor_bits(run(op, x, up))
    for i in range(20):
        assert_bits_equal(tensor_bits(run(op, x, up)), first, f"run {i}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [5, 32])
def test_a_token_does_not_depend_on_its_batch(place: Any, dtype: str, heads: int) -> None:
    """Whatever tile the batch chooses. Not so of v_up, which splits the long sums of few tokens."""
    op: Op = "k_up"
    p = MLAProblem(600, heads)
    up = packed(place, p, random_kv_b_proj(p))
    x = random_activations(p, op, dtype)
    whole = tensor_bits(run(op, float_tensor(x, dtype, place), up))
    for tokens in (1, 5, 16, 17, 64, 65, 128, 200, 256, 513):
        part = slice(37, 37 + tokens)
        bits = tensor_bits(run(op, float_tensor(x[part], dtype, place), up))
        assert_bits_equal(bits, whole[part], f"{tokens} tokens")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_graph_replays_with_other_activations(place: Any, op: Op, dtype: str) -> None:
    p = MLAProblem(70, 16)
    up = packed(place, p, random_kv_b_proj(p))
    x = float_tensor(random_activations(p, op, dtype), dtype, place)
    graph, out = captured(place, lambda: run(op, x, up))
    for seed in range(3):
        other = float_tensor(random_activations(p, op, dtype, seed), dtype, place)
        expected = tensor_bits(run(op, other, up))
        with torch_on_paddle_stream(place) as stream:
            as_torch(x).copy_(as_torch(other))
            as_torch(out).fill_(7.0)
            graph.replay()
            stream.synchronize()
        assert_bits_equal(tensor_bits(out), expected, f"seed {seed}")


@pytest.mark.parametrize("op", OPS)
def test_runs_on_the_current_stream(place: Any, op: Op) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    p = MLAProblem(40, 8)
    up = packed(place, p, random_kv_b_proj(p))
    x = float_tensor(random_activations(p, op, "bfloat16"), "bfloat16", place)
    expected = tensor_bits(run(op, x, up))
    default = paddle_stream(place)
    other = paddle.device.Stream(device=device_name(place))
    with paddle.device.stream_guard(other):
        current = paddle_stream(place)
        assert current != default
        out = run(op, x, up)  # takes memory of this stream before the other one is busy
        other.synchronize()
        busy = torch.cuda.Event()
        with torch.cuda.stream(torch.cuda.ExternalStream(default)):
            torch.cuda._sleep(2_000_000_000)  # cycles: about a second
            busy.record()
        del out
        out = run(op, x, up)
        torch.cuda.ExternalStream(current).synchronize()
        assert not busy.query(), "the operator waited for a stream that is not the current one"
    busy.synchronize()
    assert_bits_equal(tensor_bits(out), expected)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tokens", [1, 63, 129])
def test_every_output_is_written(place: Any, op: Op, tokens: int) -> None:
    """The block that the output gets was full of NaN before."""
    p = MLAProblem(tokens, 5)
    up = packed(place, p, random_kv_b_proj(p))
    x = float_tensor(random_activations(p, op, "bfloat16"), "bfloat16", place)
    expected = tensor_bits(run(op, x, up))
    with torch_on_paddle_stream(place):
        poisoned = run(op, x, up)
        as_torch(poisoned).fill_(float("nan"))
        del poisoned
        again = run(op, x, up)
    assert_bits_equal(tensor_bits(again), expected)
    assert not np.isnan(test_mla_up.values_of(expected, "bfloat16")).any()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("stride", "offset", "message"),
    [
        (268, 0, "expected strides in multiples of 8, got strides"),
        (272, 4, "expected data aligned to 16 bytes, got an address 8 bytes past"),
    ],
)
def test_views_that_cannot_be_read_by_16_bytes(
    place: Any, op: Op, stride: int, offset: int, message: str
) -> None:
    p = MLAProblem(3, 4, 128, 256, 64)
    wide = float_tensor(np.zeros(4 * 4 * 272), "bfloat16", place)
    shape = [p.tokens, p.heads, p.in_features(op)]
    view = paddle.as_strided(wide, shape, [p.heads * stride, stride, 1], 2 * offset)
    name = "q_nope" if op == "k_up" else "x"
    up = packed(place, p, random_kv_b_proj(p))
    # The other route gets a copy, which is contiguous.
    with force_route("pybind"), pytest.raises(ValueError, match=f"{name}: {message}"):
        run(op, view, up)


@pytest.mark.parametrize(
    ("op", "sizes", "message"),
    [
        ("k_up", (256, 256, 64), "nope of q_nope: expected 64, 128 or 192 on a GPU, got 256"),
        ("v_up", (64, 128, 64), "lora of x: expected 256, 512 or 768 on a GPU, got 128"),
    ],
)
def test_sizes_that_only_the_cpu_does(
    place: Any, op: Op, sizes: tuple[int, ...], message: str
) -> None:
    p = MLAProblem(3, 2, *sizes)
    x = float_tensor(np.zeros((3, 2, p.in_features(op))), "bfloat16", place)
    with pytest.raises(ValueError, match=message):
        run(op, x, packed(place, p, random_kv_b_proj(p)))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("tokens", "heads"), [(1, 16), (1, 128), (100, 128)])
def test_weights_that_the_kernel_before_has_written(
    place: Any, op: Op, tokens: int, heads: int
) -> None:
    """Blocks start, and fetch weights, before the kernels before have ended: also our own ones."""
    p = MLAProblem(tokens, heads)
    first, second = (packed(place, p, random_kv_b_proj(p, seed)) for seed in (0, 1))
    x = float_tensor(random_activations(p, op, "bfloat16"), "bfloat16", place)
    small = float_tensor(np.ones((1, 64)), "bfloat16", place)
    expected = [tensor_bits(run(op, x, up)) for up in (first, second)]
    name = "w_k" if op == "k_up" else "w_v"
    with torch_on_paddle_stream(place):
        codes, scale = (as_torch(getattr(first, name + end)) for end in ("", "_scale"))
        flips = [
            mine ^ as_torch(getattr(second, name + end))
            for mine, end in ((codes, ""), (scale, "_scale"))
        ]
        found = []
        for i in range(20):
            codes.bitwise_xor_(flips[0])
            scale.bitwise_xor_(flips[1])
            for _ in range(i % 3):  # kernels that let the next one start
                ops.quant_per_token(small)
            found.append(run(op, x, first))
    for i, out in enumerate(found):
        assert_bits_equal(tensor_bits(out), expected[(i + 1) % 2], f"run {i}")


def test_long_products_in_a_chain(place: Any) -> None:
    """The second's blocks start while the first writes its last tiles, and wait for all of them."""
    p = MLAProblem(700, 128, 64, 768, 64)
    up = packed(place, p, random_kv_b_proj(p))
    q = random_activations(p, "k_up", "bfloat16")
    parts = [q[begin : begin + 200] for begin in range(0, p.tokens, 200)]
    short = [tensor_bits(run("k_up", float_tensor(part, "bfloat16", place), up)) for part in parts]
    whole = float_tensor(q, "bfloat16", place)
    latent = run("k_up", whole, up)
    assert_bits_equal(tensor_bits(latent), np.concatenate(short), "k_up")
    expected = tensor_bits(run("v_up", latent, up))
    found = []
    with torch_on_paddle_stream(place):
        for _ in range(4):
            as_torch(latent).fill_(float("nan"))
            del latent  # the block is free now, and the next output of its size gets it
            latent = run("k_up", whole, up)
            found.append(run("v_up", latent, up))
    for i, out in enumerate(found):
        assert_bits_equal(tensor_bits(out), expected, f"run {i}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_moves_to_the_gpu(place: Any, dtype: str) -> None:
    p = MLAProblem(9, 8)
    q = random_kv_b_proj(p)
    sizes = {"heads": p.heads, "nope": p.nope, "v": p.v, "dtype": dtype}
    layer = MLAUpProjections.from_kv_b_proj(q.codes[0], q.scale[0], **sizes)
    assert layer.w_k.place.is_cpu_place()
    layer.to(device=place)
    direct = MLAUpProjections.from_kv_b_proj(q.codes[0], q.scale[0], **sizes, place=place)
    for name, tensor in layer.state_dict().items():
        assert str(tensor.place) == str(place)
        assert_bits_equal(tensor_bits(direct.state_dict()[name]), tensor_bits(tensor), name)
    for op, product in (("k_up", layer.absorb_q), ("v_up", layer.project_v)):
        x = float_tensor(random_activations(p, op, dtype), dtype, place)
        expected = tensor_bits(run(op, x, packed(place, p, q)))
        assert_bits_equal(tensor_bits(product(x)), expected)


@pytest.mark.parametrize("op", OPS)
def test_layer_left_on_the_cpu(place: Any, op: Op) -> None:
    p = MLAProblem(3, 2, 64, 256, 64)
    layer = MLAUpProjections(p.heads, p.nope, p.lora, p.v)
    x = float_tensor(np.zeros((p.tokens, p.heads, p.in_features(op))), "bfloat16", place)
    product, name = (layer.absorb_q, "w_k") if op == "k_up" else (layer.project_v, "w_v")
    message = rf"{name}: expected a tensor on .* as the first one, got one on Place\(cpu\)"
    with pytest.raises(ValueError, match=message):
        product(x)
