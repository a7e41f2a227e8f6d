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
"""``kv_b_proj`` cut into the two up projections of multi-head latent attention (MLA).

    kv_b_proj --split_kv_b_proj--> MLAUpWeights --> w4afp8.ops.mla_k_up, mla_v_up
              <-unpack_kv_b_proj-

Its rows are, for each head, first the nope rows of W_K, then the v rows of W_V; MXFP4's groups of
32 lie along lora. For W_K that is the *output* of ``q_nope @ W_K``. The kernels take the groups as
they are, so nothing is rounded; others transpose the matrix and round it again along nope, which
``requantize=True`` does too, to be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import paddle
from numpy.typing import NDArray

from w4afp8._checks import check_bool, check_int, check_multiple, check_range
from w4afp8.quant.codes import join_nibbles, split_nibbles
from w4afp8.quant.kv_b_source import FP8_BLOCK, Source, UpError, read_source
from w4afp8.quant.mla_layout import (
    BLOCK,
    pack_codes,
    pack_k_scale,
    pack_v_scale,
    unpack_codes,
    unpack_k_scale,
    unpack_v_scale,
)
from w4afp8.quant.quantize import dequantize, quantize
from w4afp8.quant.weights import QuantizedWeight, check_type

MOST_INPUTS = 1024  # nope and lora: all inputs of a product are in shared memory at once


@dataclass(frozen=True, eq=False)
class MLAUpWeights:
    """The weight operands of `w4afp8.ops.mla_k_up` and `mla_v_up`. Layouts: docs/mla.md.

    Attributes:
        w_k: packed codes of W_K, uint8 ``[heads, lora, nope / 2]``.
        w_k_scale: its scales, uint8 ``[heads, lora / 32, nope]``.
        w_v: packed codes of W_V, uint8 ``[heads, v, lora / 2]``.
        w_v_scale: its scales, uint8 ``[heads, v, lora / 32]``.
        error: 0 where the checkpoint is MXFP4: these are its own codes and scales.
    """

    w_k: paddle.Tensor
    w_k_scale: paddle.Tensor
    w_v: paddle.Tensor
    w_v_scale: paddle.Tensor
    error: UpError

    @property
    def heads(self) -> int:
        return int(self.w_k.shape[0])

    @property
    def nope(self) -> int:
        return int(self.w_k.shape[2]) * 2

    @property
    def lora(self) -> int:
        return int(self.w_k.shape[1])

    @property
    def v(self) -> int:
        return int(self.w_v.shape[1])


@dataclass(frozen=True, eq=False)
class RequantizedUpWeights:
    """What others make of ``kv_b_proj``: both matrices with groups along their inputs.

    Attributes:
        w_k: ``[heads, lora, nope]``, mxfp4 with groups along nope: codes
            ``[heads, lora, nope / 2]``, scale ``[heads, lora, nope / 32]``.
        w_v: ``[heads, v, lora]``, mxfp4 with groups along lora.
        error: of W_K never 0, but by chance: it is rounded along another axis than the checkpoint.
    """

    w_k: QuantizedWeight
    w_v: QuantizedWeight
    error: UpError


@overload
def split_kv_b_proj(
    weight: Any,
    scale: Any,
    heads: int,
    nope: int,
    v: int,
    *,
    requantize: Literal[False] = False,
    block: tuple[int, int] = FP8_BLOCK,
    place: Any = None,
) -> MLAUpWeights: ...
@overload
def split_kv_b_proj(
    weight: Any,
    scale: Any,
    heads: int,
    nope: int,
    v: int,
    *,
    requantize: Literal[True],
    block: tuple[int, int] = FP8_BLOCK,
    place: Any = None,
) -> RequantizedUpWeights: ...
def split_kv_b_proj(
    weight: Any,
    scale: Any,
    heads: int,
    nope: int,
    v: int,
    *,
    requantize: bool = False,
    block: tuple[int, int] = FP8_BLOCK,
    place: Any = None,
) -> MLAUpWeights | RequantizedUpWeights:
    """Cuts ``kv_b_proj`` into packed W_K and W_V.

    Args:
        weight: paddle.Tensor or numpy array. MXFP4: uint8 ``[heads * (nope + v), lora / 2]``, the
            low nibble first. Floats ``[heads * (nope + v), lora]``. FP8 blocks: float8_e4m3fn, or
            its bits as uint8, ``[heads * (nope + v), lora]``.
        scale: MXFP4: E8M0 ``[.., lora / 32]``, bytes of 0 to 252, as uint8 or as
            ml_dtypes.float8_e8m0fnu. Floats: None. FP8 blocks: floats, a multiplier for each block.
        heads: rows are divided among so many.
        nope: features of a head of q without rotary part, a multiple of 64.
        v: features of a head's value, a multiple of 64.
        requantize: give the layout of others instead, for comparison.
        block: rows and columns that share a scale of FP8.
        place: where the tensors shall be; None for Paddle's current device.

    Returns:
        MLAUpWeights: the checkpoint's own codes and scales, bit for bit, where it is MXFP4; floats
        and FP8 blocks are rounded once, along lora. RequantizedUpWeights with ``requantize``:
        W_K rounded along nope. Both tell their errors.

    Raises:
        ValueError: a type, a shape or a size is wrong; FP8 has no scale; a scale is NaN (0xFF), or
            so large that bfloat16 cannot hold a weight (253, 254).

    Examples:
        >>> import numpy as np
        >>> from w4afp8.quant import split_kv_b_proj
        >>> kv_b_proj = np.random.default_rng(0).standard_normal([2 * 192, 256], np.float32)
        >>> up = split_kv_b_proj(kv_b_proj, None, heads=2, nope=128, v=64)
        >>> list(up.w_k.shape), list(up.w_v.shape), 0.1 < up.error.k < 0.12
        ([2, 256, 64], [2, 64, 128], True)
    """
    check_bool("requantize", requantize)
    source = read_source(weight, scale, block)
    heads, nope, v = _check_sizes(source, heads, nope, v)
    if requantize:
        return _requantized(source, heads, nope, v)
    codes = _by_head(split_nibbles(source.quantized.codes[0]), heads)
    scales = _by_head(source.quantized.scale[0], heads)
    error = (
        UpError() if source.exact else _error(source, dequantize(source.quantized)[0], heads, nope)
    )

    def tensor(array: NDArray[np.uint8]) -> paddle.Tensor:
        return paddle.to_tensor(array, place=place)

    return MLAUpWeights(
        w_k=tensor(pack_codes(codes[:, :nope].transpose(0, 2, 1))),
        w_k_scale=tensor(pack_k_scale(scales[:, :nope].transpose(0, 2, 1))),
        w_v=tensor(pack_codes(codes[:, nope:])),
        w_v_scale=tensor(pack_v_scale(scales[:, nope:])),
        error=error,
    )


def unpack_kv_b_proj(up: MLAUpWeights) -> QuantizedWeight:
    """The reverse of `split_kv_b_proj`.

    Args:
        up: packed weights.

    Returns:
        QuantizedWeight: mxfp4 ``[1, heads * (nope + v), lora]``, the codes and scales that were
        packed, bit for bit.

    Raises:
        ValueError: it is no MLAUpWeights.

    Examples:
        >>> import numpy as np
        >>> from w4afp8.quant import split_kv_b_proj, unpack_kv_b_proj
        >>> codes = np.arange(128 * 32, dtype=np.uint32).astype(np.uint8).reshape(128, 32)
        >>> up = split_kv_b_proj(codes, np.full([128, 2], 127, np.uint8), heads=1, nope=64, v=64)
        >>> bool((unpack_kv_b_proj(up).codes[0] == codes).all())
        True
    """
    check_type("up", up, MLAUpWeights)
    w_k, w_k_scale, w_v, w_v_scale = (
        np.ascontiguousarray(t.cpu().numpy()) for t in (up.w_k, up.w_k_scale, up.w_v, up.w_v_scale)
    )
    codes = [unpack_codes(w_k).transpose(0, 2, 1), unpack_codes(w_v)]
    scales = [unpack_k_scale(w_k_scale).transpose(0, 2, 1), unpack_v_scale(w_v_scale)]
    rows = up.heads * (up.nope + up.v)
    return QuantizedWeight(
        join_nibbles(np.concatenate(codes, axis=1).reshape(1, rows, -1)),
        np.concatenate(scales, axis=1).reshape(1, rows, -1),
        "mxfp4",
    )


def _requantized(source: Source, heads: int, nope: int, v: int) -> RequantizedUpWeights:
    values = _by_head(source.values, heads)
    w_k = quantize(np.ascontiguousarray(values[:, :nope].transpose(0, 2, 1)), weight_format="mxfp4")
    codes, scale = (_by_head(a[0], heads) for a in (source.quantized.codes, source.quantized.scale))
    w_v = QuantizedWeight(
        np.ascontiguousarray(codes[:, nope:]), np.ascontiguousarray(scale[:, nope:]), "mxfp4"
    )
    back = np.concatenate([dequantize(w_k).transpose(0, 2, 1), dequantize(w_v)], axis=1)
    return RequantizedUpWeights(w_k, w_v, _error(source, back, heads, nope))


def _by_head(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """``[heads * (nope + v), n]`` as ``[heads, nope + v, n]``."""
    return rows.reshape(heads, -1, rows.shape[-1])


def _error(source: Source, values: NDArray[Any], heads: int, nope: int) -> UpError:
    exact = _by_head(source.values, heads).astype(np.float64)
    difference = values.reshape(exact.shape) - exact

    def relative(part: tuple[slice, slice]) -> float:
        norm = np.linalg.norm(exact[part])
        return float(np.linalg.norm(difference[part]) / norm) if norm > 0 else 0.0

    every = slice(None)
    return UpError(k=relative((every, slice(nope))), v=relative((every, slice(nope, None))))


def _check_sizes(source: Source, heads: int, nope: int, v: int) -> tuple[int, int, int]:
    """Returns heads, nope and v as ints."""
    rows, lora = source.values.shape
    heads = check_int("heads", heads)
    nope, v = check_multiple("nope", nope, BLOCK), check_multiple("v", v, BLOCK)
    check_multiple("lora", lora, BLOCK)
    check_range("nope", nope, 1, MOST_INPUTS)
    check_range("lora", lora, 1, MOST_INPUTS)
    if heads < 1 or heads * (nope + v) != rows:
        raise ValueError(
            f"weight: expected heads * (nope + v) = {heads} * ({nope} + {v}) rows, got {rows}"
        )
    return heads, nope, v
