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
"""The whole layer on the GPU beside the same layer on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.testing.gpu import device_name
from w4afp8.testing.tensors import float_tensor, tensor_bits, values_of

pytestmark = pytest.mark.usefixtures("route")

# From CPU to GPU the first GEMM sums in another order: an element of its bfloat16 output may move
# by one unit, 2^-7 of it. What comes of that is rounded up or down with a chance in proportion. Of
# the activation, to bfloat16, this keeps the mean move. To FP8 a move of d in steps of s becomes
# sqrt(d * s) in the root mean square, with s = 2^-3 at most sqrt(2^-7 * 2^-3) = 2^-5. Random
# weights keep that ratio through the second GEMM, whose bfloat16 output and the combined one may
# move by 2^-7 each.
BOUND = 2.0**-5 + 2 * 2.0**-7


def make_layer(form: str, activation: Any, **options: Any) -> W4AFP8MoEFFN:
    rng = np.random.default_rng(0)
    experts, hidden, inside = 8, 512, 384
    first = inside if activation == "gelu" else 2 * inside
    weight_format: Any = form.partition(" ")[0]
    return W4AFP8MoEFFN.from_float(
        rng.standard_normal((experts, first, hidden), np.float32) * 0.1,
        rng.standard_normal((experts, hidden, inside), np.float32) * 0.1,
        topk=3,
        weight_format=weight_format,
        group_size=128 if form.endswith("groups") else -1,
        activation=activation,
        up_gate_bias=rng.standard_normal((experts, first), np.float32) * 0.1,
        down_bias=rng.standard_normal((experts, hidden), np.float32) * 0.1,
        routed_scaling_factor=2.5,
        **options,
    )


# The third of the parts of a layer like DeepSeek-V3's, whose checkpoint is rotated.
PART: dict[str, Any] = {
    **{"router_experts": 32, "first_expert": 16, "hadamard_block_size": 128},
    **{"scoring": "sigmoid", "n_group": 4, "topk_group": 2},
}


# 2400: both products have large tiles, where the layer holds all experts.
@pytest.mark.parametrize("tokens", [0, 1, 70, 2400])
@pytest.mark.parametrize(
    ("form", "activation", "options"),
    [
        ("int4", "swiglu", {}),
        ("int4 groups", "swiglu_oai", {}),
        ("mxfp4", "gelu", {}),
        ("int4", "swiglu", PART),
    ],
    ids=["int4", "int4 groups", "mxfp4", "a part"],
)
def test_layer_matches_the_cpu(
    place: Any, form: str, activation: str, options: Any, tokens: int
) -> None:
    layer = make_layer(form, activation, **options)
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, layer.hidden_size), np.float32)
    logits = rng.standard_normal((tokens, layer.router.num_experts), np.float32)

    def run(where: Any) -> Any:
        layer.to(device=where)
        out = layer(float_tensor(x, "bfloat16", where), float_tensor(logits, "float32", where))
        assert out.place == float_tensor(x, "bfloat16", where).place
        return values_of(tensor_bits(out), "bfloat16").astype(np.float64)

    on_cpu, on_gpu = run(paddle.CPUPlace()), run(place)
    assert on_gpu.shape == (tokens, layer.hidden_size)
    assert np.linalg.norm(on_gpu - on_cpu) <= BOUND * np.linalg.norm(on_cpu)


@pytest.mark.parametrize("form", ["int4", "int4 groups", "mxfp4"])
@pytest.mark.parametrize("router_on_host", [False, True])
def test_from_float_is_all_on_the_current_device(
    place: Any, form: str, router_on_host: bool
) -> None:
    rng = np.random.default_rng(0)
    router: dict[str, Any] = {
        "gate_weight": rng.standard_normal((512, 8), np.float32),
        "correction_bias": rng.standard_normal(8, np.float32),
    }
    if router_on_host:
        router = {name: paddle.to_tensor(value) for name, value in router.items()}

    def make(device: str) -> W4AFP8MoEFFN:
        paddle.device.set_device(device)  # undone after the test
        layer = make_layer(form, "swiglu", **router)
        paddle.device.set_device("cpu")
        return layer

    on_host, on_device = make("cpu").state_dict(), make(device_name(place)).state_dict()
    assert {name: str(t.place) for name, t in on_device.items()} == dict.fromkeys(
        on_host, str(place)
    )
    for name, tensor in on_host.items():
        np.testing.assert_array_equal(tensor_bits(on_device[name]), tensor_bits(tensor), name)
    assert all(tensor.place.is_cpu_place() for tensor in on_host.values())
    if router_on_host:
        assert router["gate_weight"].place.is_cpu_place()
