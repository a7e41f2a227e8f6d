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
"""The two up projections of multi-head latent attention (MLA) with 4-bit weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import paddle
from paddle import Tensor

from w4afp8 import ops
from w4afp8._checks import check_int, check_multiple, check_range, check_tensor, dtype_name
from w4afp8._tracing import run_as_written
from w4afp8.layers.checks import check_own_dtype, check_same
from w4afp8.layers.format_record import RecordedLayer
from w4afp8.layers.operands import alias
from w4afp8.quant import MLAUpWeights, UpError, split_kv_b_proj
from w4afp8.quant.kv_b_proj import MOST_INPUTS
from w4afp8.quant.kv_b_source import FP8_BLOCK
from w4afp8.quant.mla_layout import BLOCK, GROUP
from w4afp8.quant.weights import check_type

_LAYOUT_VERSION = 1  # of the packed order of docs/mla.md
_OPERANDS = ("w_k", "w_k_scale", "w_v", "w_v_scale")


class MLAUpProjections(RecordedLayer):
    """``kv_b_proj`` as two products around attention over the latent cache.

    ``absorb_q`` before it, ``project_v`` after it: keys and values are never expanded. The layer
    holds the checkpoint's own 4-bit codes and scales. For inference: no gradients. A new layer's
    weights are zeros; `from_kv_b_proj` and `w4afp8.checkpoint.load_mla_up` make one with weights.

    State (all buffers): ``w_k``, ``w_k_scale``, ``w_v``, ``w_v_scale``, uint8, as `MLAUpWeights`
    has them, and ``format`` int32 ``[5]``: version of the packed order, heads, nope, lora, v.

    Under tensor parallelism each process holds its own heads: ``heads`` counts them.

    Args:
        heads: of this process, at least 1.
        nope: features of a head's query without the rotary part: 64, 128 or 192; on the CPU any
            multiple of 64 up to 1024.
        lora: features of the latent cache: 256, 512 or 768; on the CPU any multiple of 64 up to
            1024.
        v: features of a head's value, a multiple of 64.
        dtype: "bfloat16" or "float16", of inputs and outputs.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import paddle
        >>> from w4afp8.layers import MLAUpProjections
        >>> kv_b_proj = paddle.randn([4 * (128 + 128), 512])
        >>> up = MLAUpProjections.from_kv_b_proj(kv_b_proj, None, heads=4, nope=128, v=128)
        >>> q = paddle.randn([3, 4, 192]).astype("bfloat16")  # 128 features, then 64 rotary ones
        >>> latent_q = up.absorb_q(q[:, :, :128])  # scores: latent_q @ cache^T + rotary part
        >>> list(latent_q.shape), list(up.project_v(latent_q).shape)
        ([3, 4, 512], [3, 4, 128])
    """

    w_k: Tensor
    w_k_scale: Tensor
    w_v: Tensor
    w_v_scale: Tensor
    format: Tensor

    def __init__(
        self, heads: int, nope: int, lora: int, v: int, *, dtype: Any = "bfloat16"
    ) -> None:
        super().__init__(dtype=dtype)
        self.heads = check_range("heads", heads, 1, 2**31 - 1)
        self.nope = check_multiple("nope", nope, BLOCK)
        self.lora = check_multiple("lora", lora, BLOCK)
        self.v = check_multiple("v", v, BLOCK)
        check_range("nope", self.nope, 1, MOST_INPUTS)
        check_range("lora", self.lora, 1, MOST_INPUTS)
        self.error = UpError()
        for name, shape in zip(_OPERANDS, self._shapes(), strict=True):
            self.register_buffer(name, paddle.zeros(shape, dtype="uint8"))
        self.keep_record([_LAYOUT_VERSION, self.heads, self.nope, self.lora, self.v])

    def _shapes(self) -> tuple[list[int], ...]:
        heads, nope, lora, v = self.heads, self.nope, self.lora, self.v
        return (
            [heads, lora, nope // 2],
            [heads, lora // GROUP, nope],
            [heads, v, lora // 2],
            [heads, v, lora // GROUP],
        )

    @classmethod
    def from_kv_b_proj(
        cls,
        weight: Any,
        scale: Any,
        *,
        heads: int,
        nope: int,
        v: int,
        rank: int = 0,
        world_size: int = 1,
        block: tuple[int, int] = FP8_BLOCK,
        dtype: Any = "bfloat16",
        place: Any = None,
    ) -> MLAUpProjections:
        """Makes the layer of a whole ``kv_b_proj``, or of one rank's heads of it.

        Args:
            weight: as in `w4afp8.quant.split_kv_b_proj`: MXFP4, FP8 blocks or floats.
            scale: beside it.
            heads: of the whole matrix.
            nope: features of a head's query without the rotary part.
            v: features of a head's value.
            rank: of this process under tensor parallelism; it gets the heads
                ``[rank * heads / world_size, (rank + 1) * heads / world_size)``.
            world_size: number of processes, a divisor of the number of heads.
            block: rows and columns that share a scale of FP8.
            dtype: "bfloat16" or "float16", of inputs and outputs.
            place: where the layer shall be; None for Paddle's current device.

        Returns:
            MLAUpProjections: its `error` says how far the weights were rounded; 0 for MXFP4.

        Raises:
            ValueError: an argument is wrong.
        """
        up = split_kv_b_proj(weight, scale, heads, nope, v, block=block, place=place)
        mine = shard_heads(heads, rank, world_size)
        made = cls(len(mine), up.nope, up.lora, up.v, dtype=dtype)
        made.set_weights(up if len(mine) == up.heads else _part(up, mine))
        made.to(device=up.w_k.place)
        return made

    def set_weights(self, up: MLAUpWeights) -> None:
        """Takes packed weights as they are, sharing their memory.

        Raises:
            ValueError: they are of another size or type than the layer's.
        """
        check_type("up", up, MLAUpWeights)
        for name in _OPERANDS:
            check_tensor(f"up.{name}", getattr(up, name))
            got, own = getattr(up, name), getattr(self, name)
            check_same(f"up.{name}", _describe(got), _describe(own))
        for name in _OPERANDS:
            setattr(self, name, alias(getattr(up, name)))
        self.error = up.error

    @property
    def weights(self) -> MLAUpWeights:
        """The weights as `set_weights` takes them, sharing their memory."""
        return MLAUpWeights(self.w_k, self.w_k_scale, self.w_v, self.w_v_scale, self.error)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights and scales."""
        return sum(int(getattr(self, name).size) for name in _OPERANDS)

    @run_as_written
    def absorb_q(self, q_nope: Tensor, q_scale: Tensor | None = None) -> Tensor:
        """Brings queries into the space of the latent cache: ``q_nope @ W_K`` of each head.

        Args:
            q_nope: ``[tokens, heads, nope]`` of the layer's `activation_dtype`. May be a view of
                the projected query whose last dimension is contiguous. Or float8_e4m3fn.
            q_scale: float32 ``[tokens, heads]`` of FP8 queries, else None.

        Returns:
            ``[tokens, heads, lora]`` of the layer's `activation_dtype`, to be multiplied with the
            latent cache ``[.., lora]``.

        Raises:
            ValueError: q_nope does not fit the layer, or other weights were loaded.
        """
        self._check("q_nope", q_nope, self.nope, q_scale)
        return ops.mla_k_up(q_nope, self.w_k, self.w_k_scale, q_scale, self.activation_dtype)

    @run_as_written
    def project_v(self, x: Tensor, x_scale: Tensor | None = None) -> Tensor:
        """Brings what each head attended to into the space of values: ``x @ W_V`` of each head.

        Args:
            x: ``[tokens, heads, lora]`` of the layer's `activation_dtype`: the latent cache as each
                head's attention weighs it. May be a view whose last dimension is contiguous. Or
                float8_e4m3fn.
            x_scale: float32 ``[tokens, heads]`` of FP8 activations, else None.

        Returns:
            ``[tokens, heads, v]`` of the layer's `activation_dtype`.

        Raises:
            ValueError: x does not fit the layer, or other weights were loaded.
        """
        self._check("x", x, self.lora, x_scale)
        return ops.mla_v_up(x, self.w_v, self.w_v_scale, x_scale, self.activation_dtype)

    def forward(self, q_nope: Tensor) -> Tensor:
        """As `absorb_q`: Paddle's layers have one."""
        return self.absorb_q(q_nope)

    def _check(self, name: str, x: Tensor, features: int, scale: Tensor | None) -> None:
        self.check_loaded()
        check_tensor(name, x)
        # The operator tells whether FP8 and scales go together.
        if scale is None and x.dtype != paddle.float8_e4m3fn:
            check_own_dtype(name, x, self.activation_dtype)
        if x.ndim != 3 or list(x.shape)[1:] != [self.heads, features]:
            raise ValueError(
                f"{name}: expected shape [tokens, {self.heads}, {features}], got {list(x.shape)}"
            )

    def extra_repr(self) -> str:
        return (
            f"heads={self.heads}, nope={self.nope}, lora={self.lora}, v={self.v}, "
            f"dtype={self.activation_dtype}"
        )


def shard_heads(heads: int, rank: int, world_size: int) -> range:
    """The heads of one rank under tensor parallelism.

    Raises:
        ValueError: world_size does not divide the heads, or there is no such rank.
    """
    heads, world_size = check_int("heads", heads), check_int("world_size", world_size)
    if world_size < 1 or heads % world_size:
        raise ValueError(f"world_size: expected a divisor of {heads} heads, got {world_size}")
    rank = check_range("rank", rank, 0, world_size - 1)
    count = heads // world_size
    return range(rank * count, (rank + 1) * count)


def _part(up: MLAUpWeights, heads: range) -> MLAUpWeights:
    """Some heads, copied: as a view they would keep the memory of all."""
    parts = {name: getattr(up, name)[heads.start : heads.stop].clone() for name in _OPERANDS}
    return dataclasses.replace(up, **parts)


def _describe(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"
