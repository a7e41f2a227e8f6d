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
"""``split_kv_b_proj``: nothing lost of MXFP4, everything else rounded once, others refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import paddle
import pytest

from w4afp8.quant import (
    MLAUpWeights,
    UpError,
    dequantize,
    quantize,
    split_kv_b_proj,
    unpack_kv_b_proj,
)
from w4afp8.quant.codes import join_nibbles, split_nibbles
from w4afp8.quant.mla_layout import pack_codes, pack_k_scale, pack_v_scale
from w4afp8.testing.mla import MLAProblem, random_kv_b_proj, up_weights
from w4afp8.testing.tensors import float8_tensor, float_tensor

pytestmark = pytest.mark.cpu_only

P = MLAProblem(0, 3, 64, 256, 128)
SIZES = {"heads": P.heads, "nope": P.nope, "v": P.v}


def normal(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((P.rows, P.lora), np.float32) * 0.05


def all_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Each of the 16 codes with each E8M0 byte of 0..252, both in W_K and in W_V."""
    groups = (P.rows, P.lora // 32)
    codes = np.tile(np.arange(32, dtype=np.uint8) % 16, groups)
    scale = np.resize(np.arange(253, dtype=np.uint8), groups)
    by_head = scale.reshape(P.heads, P.nope + P.v, -1)
    assert len(np.unique(by_head[:, : P.nope])) == len(np.unique(by_head[:, P.nope :])) == 253
    return join_nibbles(codes), scale


def test_every_pair_of_code_and_scale_comes_back() -> None:
    codes, scale = all_pairs()
    up = split_kv_b_proj(codes, scale, **SIZES)
    back = unpack_kv_b_proj(up)
    assert (back.codes[0] == codes).all()
    assert (back.scale[0] == scale).all()
    assert up.error == UpError(0.0, 0.0)


@pytest.mark.parametrize("kind", ["numpy", "paddle"])
def test_tensors_are_the_kernels(kind: str) -> None:
    q = random_kv_b_proj(P)
    codes, scale = q.codes[0], q.scale[0]
    given = (
        (codes, scale) if kind == "numpy" else (paddle.to_tensor(codes), paddle.to_tensor(scale))
    )
    up = split_kv_b_proj(*given, **SIZES)
    assert isinstance(up, MLAUpWeights)
    assert (up.heads, up.nope, up.lora, up.v) == (P.heads, P.nope, P.lora, P.v)
    assert list(up.w_k.shape) == [P.heads, P.lora, P.nope // 2]
    assert list(up.w_k_scale.shape) == [P.heads, P.lora // 32, P.nope]
    assert list(up.w_v.shape) == [P.heads, P.v, P.lora // 2]
    assert list(up.w_v_scale.shape) == [P.heads, P.v, P.lora // 32]
    sizes = [int(t.size) for t in (up.w_k, up.w_k_scale, up.w_v, up.w_v_scale)]
    assert sum(sizes) == codes.size + scale.size  # no padding


# The layout of docs/mla.md once more, code by code.
def naive_code_place(out: int, column: int) -> tuple[int, int, int]:
    """Byte of the half word inside a block, bit of the magnitude and of the sign."""
    warp, upper, row = out // 16, out % 16 // 8, out % 8
    step, later, pair, half = column // 16, column % 16 // 8, column % 8 // 2, column % 2
    byte = (32 * warp + 4 * row + pair) * 16 + step * 4 + half * 2
    magnitude_bit, sign_bit = {(0, 0): (6, 15), (1, 0): (3, 12), (0, 1): (0, 14), (1, 1): (9, 13)}[
        upper, later
    ]
    return byte, magnitude_bit, sign_bit


def test_place_of_every_code() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (2, 128, 192), dtype=np.uint8)
    packed = pack_codes(codes).reshape(2, 2, 3, 2048)
    for out in range(128):
        for column in range(192):
            byte, magnitude_bit, sign_bit = naive_code_place(out % 64, column % 64)
            block = packed[:, out // 64, column // 64, byte : byte + 2].astype(int)
            word = block[:, 0] | block[:, 1] << 8
            found = word >> magnitude_bit & 7 | (word >> sign_bit & 1) << 3
            assert (found == codes[:, out, column]).all()


def test_place_of_every_scale() -> None:
    rng = np.random.default_rng(0)
    k_scale = rng.integers(0, 253, (2, 4, 128), dtype=np.uint8)  # lora 128, nope 128
    packed = pack_k_scale(k_scale).reshape(2, 2, 2, 128)
    for group in range(4):
        for i in range(128):
            k = i % 16
            byte = group % 2 * 64 + k % 8 // 2 * 16 + i % 64 // 16 * 4 + k % 2 * 2 + k // 8
            assert (packed[:, group // 2, i // 64, byte] == k_scale[:, group, i]).all()
    v_scale = rng.integers(0, 253, (2, 128, 4), dtype=np.uint8)  # v 128, lora 128
    packed = pack_v_scale(v_scale).reshape(2, 2, 2, 128)
    for row in range(128):
        for group in range(4):
            byte = (row % 64 // 16 * 8 + row % 8) * 4 + group % 2 * 2 + row % 16 // 8
            assert (packed[:, row // 64, group // 2, byte] == v_scale[:, row, group]).all()


@pytest.mark.parametrize("scale", [253, 254])
@pytest.mark.parametrize("requantize", [False, True])
def test_scales_beyond_bfloat16_are_refused_by_name(scale: int, requantize: Any) -> None:
    codes, scales = all_pairs()
    scales[70, 3] = scale
    message = rf"scale: expected E8M0 bytes of 0..252 .*bfloat16.*, got {scale} at \(70, 3\)"
    with pytest.raises(ValueError, match=message):
        split_kv_b_proj(codes, scales, **SIZES, requantize=requantize)


def test_nan_scale_is_refused_by_name() -> None:
    codes, scales = all_pairs()
    scales[70, 3] = 0xFF
    with pytest.raises(ValueError, match=r"scale: expected E8M0 bytes .*, got 0xFF, which is NaN"):
        split_kv_b_proj(codes, scales, **SIZES)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "numpy", "ml_dtypes"])
def test_floats_are_rounded_once_along_lora(kind: str) -> None:
    values: Any = normal()
    if kind == "ml_dtypes":
        values = values.astype(ml_dtypes.bfloat16)
    elif kind != "numpy":
        values = float_tensor(values, kind, paddle.CPUPlace())
    up = split_kv_b_proj(values, None, **SIZES)
    exact = np.asarray(
        values.astype("float32").numpy() if isinstance(values, paddle.Tensor) else values,
        np.float32,
    )
    expected = quantize(exact[None], weight_format="mxfp4")
    back = unpack_kv_b_proj(up)
    assert (back.codes == expected.codes).all()
    assert (back.scale == expected.scale).all()
    rounded = dequantize(expected)[0].astype(np.float64)
    is_k = np.arange(P.rows) % (P.nope + P.v) < P.nope
    for rows, error in ((is_k, up.error.k), (~is_k, up.error.v)):
        source = exact[rows].astype(np.float64)
        distance = np.linalg.norm(rounded[rows] - source) / np.linalg.norm(source)
        assert error == pytest.approx(distance, rel=1e-9)
        assert 0.05 < error < 0.2


@pytest.mark.parametrize("kind", ["paddle", "bits", "ml_dtypes"])
@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
def test_fp8_blocks(kind: str, block: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 0x7F, (P.rows, P.lora)).astype(np.uint8)
    values = bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    shape = (-(-P.rows // block[0]), P.lora // block[1])
    scale = rng.uniform(0.5, 2, shape).astype(np.float32)
    whole = values * np.kron(scale, np.ones(block, np.float32))[: P.rows, : P.lora]
    given: dict[str, Any] = {
        "paddle": float8_tensor(bits, paddle.CPUPlace()),
        "bits": bits,
        "ml_dtypes": bits.view(ml_dtypes.float8_e4m3fn),
    }
    up = split_kv_b_proj(given[kind], scale, **SIZES, block=block)
    expected = split_kv_b_proj(whole, None, **SIZES)
    assert (unpack_kv_b_proj(up).codes == unpack_kv_b_proj(expected).codes).all()
    assert (unpack_kv_b_proj(up).scale == unpack_kv_b_proj(expected).scale).all()
    assert up.error == expected.error


def test_requantizing_loses_what_we_keep() -> None:
    q = random_kv_b_proj(P)
    ours = split_kv_b_proj(q.codes[0], q.scale[0], **SIZES)
    theirs = split_kv_b_proj(q.codes[0], q.scale[0], **SIZES, requantize=True)
    assert theirs.w_k.codes.shape == (P.heads, P.lora, P.nope // 2)
    assert theirs.w_k.scale.shape == (P.heads, P.lora, P.nope // 32)
    assert theirs.w_v.codes.shape == (P.heads, P.v, P.lora // 2)
    exact = up_weights(P, q)
    assert (dequantize(theirs.w_v) == exact["v_up"]).all()
    distance = np.linalg.norm(dequantize(theirs.w_k) - exact["k_up"])
    assert theirs.error.k == pytest.approx(distance / np.linalg.norm(exact["k_up"]), rel=1e-9)
    assert theirs.error.k > 0.05
    assert (theirs.error.v, ours.error.k, ours.error.v) == (0.0, 0.0, 0.0)


def test_requantizing_floats_rounds_them_once() -> None:
    theirs = split_kv_b_proj(normal(), None, **SIZES, requantize=True)
    w_k = normal().reshape(P.heads, P.nope + P.v, P.lora)[:, : P.nope].transpose(0, 2, 1)
    expected = quantize(np.ascontiguousarray(w_k), weight_format="mxfp4")
    assert (theirs.w_k.codes == expected.codes).all()
    assert 0.05 < theirs.error.k < 0.2


def test_zeros_have_no_error() -> None:
    assert split_kv_b_proj(FLOATS, None, **SIZES).error == UpError(0.0, 0.0)


def test_minus_zero_is_kept() -> None:
    codes = np.full((P.rows, P.lora // 2), 0x88, np.uint8)
    scale = np.full((P.rows, P.lora // 32), 127, np.uint8)
    back = unpack_kv_b_proj(split_kv_b_proj(codes, scale, **SIZES))
    assert (split_nibbles(back.codes) == 8).all()


CODES, SCALES = (
    np.zeros((P.rows, P.lora // 2), np.uint8),
    np.zeros((P.rows, P.lora // 32), np.uint8),
)
FLOATS = np.zeros((P.rows, P.lora), np.float32)


def with_one(values: np.ndarray, value: float) -> np.ndarray:
    changed = values.copy()
    changed[5, 6] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": [1.0]}, "weight: expected a paddle.Tensor or a numpy array, got list"),
        ({"scale": 3}, "scale: expected a paddle.Tensor or a numpy array, got int"),
        (
            {"weight": CODES.astype(np.int32)},
            "weight: expected uint8 beside E8M0 scales, got int32",
        ),
        ({"weight": CODES[0]}, r"weight: expected a matrix, got the shape \[128\]"),
        ({"weight": CODES[:0]}, r"weight: expected a matrix, got the shape \[0, 128\]"),
        ({"scale": SCALES[0]}, r"scale: expected a matrix, got the shape \[8\]"),
        ({"scale": SCALES[:, :7]}, r"scale: expected a numpy array of uint8 \[1, 576, 8\], got"),
        ({"weight": CODES[:, :8]}, "weight: expected lora in multiples of 32, got 16"),
        ({"weight": CODES, "scale": None}, "weight: expected floats, got uint8"),
        ({"weight": FLOATS[:, :100], "scale": None}, "lora in multiples of 32, got 100"),
        (
            {"weight": FLOATS[:, :96], "scale": None},
            "lora: expected a positive multiple of 64, got",
        ),
        (
            {"weight": with_one(FLOATS, np.nan), "scale": None},
            r"finite numbers, got nan at \(5, 6\)",
        ),
        (
            {"weight": with_one(FLOATS, np.inf), "scale": None},
            r"finite numbers, got inf at \(5, 6\)",
        ),
        (
            {
                "weight": with_one(np.zeros_like(FLOATS, np.uint8), 0x7F),
                "scale": np.ones((5, 2), "f4"),
            },
            r"weight: expected finite numbers, got nan at \(5, 6\)",
        ),
        (
            {"weight": FLOATS + 1, "scale": np.full((5, 2), np.nan, "f4")},
            r"scale: expected finite numbers, got nan at \(0, 0\)",
        ),
        (
            {"weight": FLOATS + 448, "scale": np.full((5, 2), 3e38, "f4")},
            "weight: expected finite numbers, got inf",
        ),
        (
            {"weight": FLOATS, "scale": np.ones((4, 2), "f4")},
            r"scale: expected \[5, 2\] for blocks of \[128, 128\], got \[4, 2\]",
        ),
        ({"nope": 96}, "nope: expected a positive multiple of 64, got 96"),
        ({"v": 0}, "v: expected a positive multiple of 64, got 0"),
        ({"nope": 1088}, "nope: expected 1 to 1024, got 1088"),
        ({"heads": 4}, r"heads \* \(nope \+ v\) = 4 \* \(64 \+ 128\) rows, got 576"),
        ({"heads": 0}, r"heads \* \(nope \+ v\) = 0 \* "),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"weight": CODES, "scale": SCALES, **SIZES, **change}
    with pytest.raises(ValueError, match=message):
        split_kv_b_proj(**arguments)


def test_unpack_refuses_other_things() -> None:
    with pytest.raises(ValueError, match="up: expected a MLAUpWeights, got dict"):
        unpack_kv_b_proj({})  # type: ignore[arg-type]
