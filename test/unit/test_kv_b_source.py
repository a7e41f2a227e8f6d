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
"""Types of ``kv_b_proj`` and its scales that are easily mistaken for each other."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import paddle
import pytest

from w4afp8.layers import MLAUpProjections
from w4afp8.quant import UpError, split_kv_b_proj, unpack_kv_b_proj
from w4afp8.testing.mla import MLAProblem, random_kv_b_proj

pytestmark = pytest.mark.cpu_only

P = MLAProblem(0, 3, 64, 256, 128)
SIZES = {"heads": P.heads, "nope": P.nope, "v": P.v}
BITS = np.random.default_rng(0).integers(0, 0x40, (P.rows, P.lora)).astype(np.uint8)
FLOAT8 = {
    **{name: BITS.view(getattr(ml_dtypes, name)) for name in ("float8_e4m3fn", "float8_e5m2")},
    "float8_e4m3": BITS.view(ml_dtypes.float8_e4m3),
    "float8_e8m0fnu": BITS.view(ml_dtypes.float8_e8m0fnu),
    "float4_e2m1fn": (BITS % 16).view(ml_dtypes.float4_e2m1fn),
}


def on_paddle(dtype: str) -> paddle.Tensor:
    return paddle.to_tensor(BITS, place=paddle.CPUPlace()).view(getattr(paddle, dtype))


def check_refused(weight: Any, name: str) -> None:
    message = (
        rf"scale: expected the scales of the blocks \(weight_scale_inv\), as weight is {name}, got "
        "None"
    )
    for requantize in (False, True):
        with pytest.raises(ValueError, match=message):
            split_kv_b_proj(weight, None, **SIZES, requantize=requantize)
    with pytest.raises(ValueError, match=message):
        MLAUpProjections.from_kv_b_proj(weight, None, **SIZES)


@pytest.mark.parametrize("name", FLOAT8)
def test_float8_without_scales_is_refused(name: str) -> None:
    """A forgotten scale would be a wrong model."""
    check_refused(FLOAT8[name], name)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_of_paddle_without_scales_is_refused(name: str) -> None:
    check_refused(on_paddle(name), name)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_of_paddle_is_that_of_numpy(name: str) -> None:
    scale = np.full((-(-P.rows // 128), P.lora // 128), 0.5, np.float32)
    first, second = (
        unpack_kv_b_proj(split_kv_b_proj(weight, scale, **SIZES))
        for weight in (on_paddle(name), FLOAT8[name])
    )
    assert (first.codes == second.codes).all()
    assert (first.scale == second.scale).all()


def test_scales_may_be_typed_e8m0() -> None:
    q = random_kv_b_proj(P)
    typed = q.scale[0].view(ml_dtypes.float8_e8m0fnu)
    up = split_kv_b_proj(q.codes[0], typed, **SIZES)
    assert up.error == UpError()
    assert (unpack_kv_b_proj(up).codes == q.codes).all()
    assert (unpack_kv_b_proj(up).scale == q.scale).all()


@pytest.mark.parametrize(
    ("byte", "message"), [(253, "E8M0 bytes of 0..252 .*, got 253"), (255, "got 0xFF")]
)
def test_scales_typed_e8m0_are_checked(byte: int, message: str) -> None:
    q = random_kv_b_proj(P)
    scale = q.scale[0].copy()
    scale[5, 6] = byte
    with pytest.raises(ValueError, match=message):
        split_kv_b_proj(q.codes[0], scale.view(ml_dtypes.float8_e8m0fnu), **SIZES)


def test_blocks_of_float8_may_have_e8m0_scales() -> None:
    """As DeepSeek-V3.1 has them: powers of two, one for each block."""
    exponents = np.full((-(-P.rows // 128), P.lora // 128), 126, np.uint8)
    scales = exponents.view(ml_dtypes.float8_e8m0fnu), np.full(exponents.shape, 0.5, np.float32)
    first, second = (
        unpack_kv_b_proj(split_kv_b_proj(FLOAT8["float8_e4m3fn"], scale, **SIZES))
        for scale in scales
    )
    assert (first.codes == second.codes).all()
    assert (first.scale == second.scale).all()
