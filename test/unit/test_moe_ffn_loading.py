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
"""States of another format or size are refused, however they come into W4AFP8MoEFFN."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
import pytest

from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.layers.format_record import check_record
from w4afp8.testing.tensors import tensor_bits

pytestmark = pytest.mark.cpu_only

OWN: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_experts": 4,
    "topk": 2,
    "weight_format": "mxfp4",
    "has_router": True,
}
# Paddle itself finds no fault with packed int4 weights here: their type and shape are right.
OTHERS = {
    "int4 per channel": {"weight_format": "int4"},
    "int4 groups": {"weight_format": "int4", "group_size": 32},
    "other groups of one projection": {"down_group_size": 128, "weight_format": "int4"},
    "in_features in the same padding": {"intermediate_size": 96},
    "other experts": {"num_experts": 8},
    "other hidden size": {"hidden_size": 256},
}


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """Paddle warns of tensors of another shape, and leaves them out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Skip loading for")
        yield


def make(**changed: Any) -> W4AFP8MoEFFN:
    return W4AFP8MoEFFN(**{**OWN, **changed})


def make_x() -> paddle.Tensor:
    return paddle.ones([3, OWN["hidden_size"]]).astype("bfloat16")


@pytest.mark.parametrize("changed", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("load", ["set_state_dict", "set_dict", "load_dict"])
def test_refused_at_once(changed: dict[str, Any], load: str) -> None:
    layer = make()
    with pytest.raises(
        ValueError, match=r"state_dict: (up_gate|down)_proj\.weight: expected mxfp4 .* got "
    ):
        getattr(layer, load)(make(**changed).state_dict())


@pytest.mark.parametrize("changed", OTHERS.values(), ids=OTHERS.keys())
def test_refused_in_a_model_when_it_is_called(changed: dict[str, Any]) -> None:
    model = paddle.nn.Sequential(make())
    model(make_x())
    model.set_state_dict(paddle.nn.Sequential(make(**changed)).state_dict())
    for _ in range(2):
        with pytest.raises(ValueError, match="weight, as it was loaded: expected mxfp4"):
            model(make_x())
    with pytest.raises(ValueError, match="weight, as it was loaded: expected mxfp4"):
        copy.deepcopy(model)(make_x())


@pytest.mark.parametrize("full_graph", [False, True])
def test_refused_when_a_model_is_traced(full_graph: bool) -> None:
    model = paddle.nn.Sequential(make())
    model.set_state_dict(paddle.nn.Sequential(make(weight_format="int4")).state_dict())
    model.eval()
    traced = paddle.jit.to_static(model, full_graph=full_graph)
    with pytest.raises(ValueError, match="weight, as it was loaded: expected mxfp4"):
        traced(make_x())


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        (
            {"has_down_bias": True},
            {"has_down_bias": True, "dtype": "float16"},
            r"state_dict: down_proj\.bias: expected bfloat16, got float16",
        ),
        (
            {"weight_format": "int4", "group_size": 32},
            {"weight_format": "int4", "group_size": 32, "scale_dtype": "bfloat16"},
            r"state_dict: up_gate_proj\.group_scale: expected float32, got bfloat16",
        ),
    ],
    ids=["bias", "scales"],
)
def test_other_types_are_refused(own: dict, other: dict, message: str) -> None:
    layer = make(**own)
    with pytest.raises(ValueError, match=message):
        layer.set_state_dict(make(**other).state_dict())
    assert list(layer(make_x()).shape) == [3, 64]


def test_a_refused_state_leaves_the_layer_as_it_was() -> None:
    layer, other = make(), make(weight_format="int4")
    before = [tensor_bits(tensor) for tensor in layer.state_dict().values()]
    other.down_proj.weight_scale.fill_(2.0)
    with pytest.raises(ValueError, match=r"down_proj\.weight: .* got int4"):
        layer.set_state_dict({n: t for n, t in other.state_dict().items() if "up_gate" not in n})
    after = [tensor_bits(tensor) for tensor in layer.state_dict().values()]
    assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))
    assert list(layer(make_x()).shape) == [3, 64]


def test_a_model_runs_again_after_the_right_state() -> None:
    model = paddle.nn.Sequential(make())
    model.set_state_dict(paddle.nn.Sequential(make(weight_format="int4")).state_dict())
    model.set_state_dict(paddle.nn.Sequential(make()).state_dict())
    assert list(model(make_x()).shape) == [3, 64]


def test_weights_of_an_older_layout_are_refused() -> None:
    """Of 64 in_features they have another shape, which Paddle skips, and of 128 the same."""
    layer, model = make(), paddle.nn.Sequential(make())
    older = make()
    for projection in (older.up_gate_proj, older.down_proj):
        record = projection.format.clone()
        record[0] -= 1
        projection.register_buffer("format", record)
    older.up_gate_proj.register_buffer("weight", paddle.zeros([4, 256, 64], dtype="uint8"))
    message = r"layout 2, got mxfp4 .* layout 1 \(pack or convert the weights again\)"
    with pytest.raises(ValueError, match=message):
        layer.set_state_dict(older.state_dict())
    model.set_state_dict(paddle.nn.Sequential(older).state_dict())
    with pytest.raises(ValueError, match=message):
        model(make_x())


def test_the_message_says_both_formats() -> None:
    message = (
        "weights: expected mxfp4 with group size 32, weights [8, 64, 32], layout 1, "
        "got int4 with group size -1, weights [8, 64, 32], layout 1"
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        check_record("weights", (1, 0, -1, 8, 64, 32), (1, 1, 32, 8, 64, 32))
