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
"""FastDeploy's experts: up_gate_proj, SwiGLU, down_proj."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paddle import Tensor

from w4afp8.fastdeploy.activations import DYNAMIC_RANGE
from w4afp8.fastdeploy.experts import ACTIVATIONS, Between, run_projections
from w4afp8.fastdeploy.gemm import row_scale, stored_projection
from w4afp8.incubate.nn.functional.moe import check_quant_method
from w4afp8.layers.checks import check_hadamard
from w4afp8.layers.experts import tokens_hint
from w4afp8.layers.operands import contiguous

_SETTINGS: dict[str, Any] = {
    "quant_method": None,
    "used_in_ep_low_latency": False,
    "estimate_total_token_nums": -1,
    "hadamard_block_size": -1,
    "activation": "swiglu",
}


@dataclass(frozen=True)
class Settings:
    """The attributes of FastDeploy's operator that matter here."""

    quant_method: str
    used_in_ep_low_latency: bool
    estimate_total_token_nums: int
    hadamard_block_size: int
    activation: str

    def __post_init__(self) -> None:
        check_quant_method(self.quant_method)
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}"
            )


def block_size_of(hadamard_block_size: int, features: int) -> int:
    """FastDeploy's way to say it, 0 or less for no rotation, as the operators take it.

    Raises:
        ValueError: it is above 0, and no power of two from 8 on that divides the features.
    """
    return check_hadamard(hadamard_block_size if hadamard_block_size > 0 else -1, features)


def moe_expert_ffn(
    permute_input: Tensor,
    tokens_expert_prefix_sum: Tensor,
    up_gate_proj_weight: Tensor,
    down_proj_weight: Tensor,
    up_proj_in_scale: Tensor | None = None,
    up_gate_proj_bias: Tensor | None = None,
    up_gate_proj_scale: Tensor | None = None,
    down_proj_scale: Tensor | None = None,
    down_proj_in_scale: Tensor | None = None,
    expert_idx_per_token: Tensor | None = None,
    *arguments: Any,
    **named: Any,
) -> Tensor:
    """Runs every expert on its rows.

    Args:
        permute_input: Float8_e4m3fn ``[rows, hidden]`` sorted by expert; with
            used_in_ep_low_latency ``[experts, P, hidden]``.
        tokens_expert_prefix_sum: int64 ``[experts]``: inclusive prefix sums, or the counts.
        up_gate_proj_weight: From `w4afp8_gemm_weight_convert`, ``[experts, ..]``; the gate's half
            of the outputs first, with "swigluoai" gate and up in turns.
        down_proj_weight: The same.
        up_proj_in_scale: dequant_scale, float32 per row; None: static, folded into
            up_gate_proj_scale.
        up_gate_proj_bias: ``[experts, 2 * intermediate]``.
        up_gate_proj_scale: Float32 ``[experts, 2 * intermediate]`` or grouped, see `w4afp8_gemm`;
            with dynamic quantisation 440 is divided out of it.
        down_proj_scale: The same.
        down_proj_in_scale: Static quantisation of down_proj's input: float32 ``[experts]``, 1 over
            the largest magnitude. None: dynamic.
        expert_idx_per_token: Not read: the prefix sums say it.
        *arguments: max_tokens_per_expert (newer; not read), quant_method ``"w4afp8"``,
            used_in_ep_low_latency, estimate_total_token_nums (of all experts together, where it is
            above 0: a hint for speed only), hadamard_block_size
            (above 0: down_proj's input is rotated in blocks of so many, a power of two that divides
            intermediate), activation ("swiglu" or "swigluoai").
        **named: The same by name, and ``out_dtype`` ("bfloat16", or "float16", which FastDeploy
            does not have).

    Returns:
        ``[rows, hidden]`` or ``[experts, P, hidden]`` of out_dtype.

    Raises:
        ValueError: An argument is missing, wrong or refused.

    Examples:
        >>> import paddle
        >>> from w4afp8.fastdeploy import moe_expert_dispatch, moe_expert_ffn, moe_expert_reduce
        >>> x, logits = paddle.randn([3, 128]).astype("bfloat16"), paddle.randn([3, 4])
        >>> rows, sums, index, weights, ids, expert, scale, most = moe_expert_dispatch(x, logits)
        >>> up_gate = paddle.zeros([4, 64, 256], dtype="int8")  # w4afp8_gemm_weight_convert
        >>> down = paddle.zeros([4, 64, 128], dtype="int8")
        >>> scales = paddle.ones([4, 256]), paddle.ones([4, 128])
        >>> y = moe_expert_ffn(
        ...     *(rows, sums, up_gate, down, scale, None, *scales, None, expert, most),
        ...     *("w4afp8", False, -1, -1, "swiglu"),
        ... )
        >>> moe_expert_reduce(y, weights, index, ids, None, True, 1.0).shape
        paddle.Size([3, 128])
    """
    out_dtype = named.pop("out_dtype", "bfloat16")
    settings = _settings(arguments, named)
    padding = _padding(permute_input, settings)
    for name, scale in (
        ("up_gate_proj_scale", up_gate_proj_scale),
        ("down_proj_scale", down_proj_scale),
    ):
        if scale is None:
            raise ValueError(f"{name}: expected a tensor, got None")
    up_gate = stored_projection(
        "up_gate_proj",
        up_gate_proj_weight,
        up_gate_proj_scale,  # type: ignore[arg-type]
        permute_input.shape[-1],
        bias=None if up_gate_proj_bias is None else contiguous(up_gate_proj_bias.astype(out_dtype)),
    )
    intermediate = up_gate.weight_scale.shape[1] // 2
    down = stored_projection(
        "down_proj",
        down_proj_weight,
        down_proj_scale,  # type: ignore[arg-type]
        intermediate,
        factor=DYNAMIC_RANGE if down_proj_in_scale is None else 1.0,
    )
    experts, max_tokens = up_gate_proj_weight.shape[0], -1
    if settings.estimate_total_token_nums > 0:
        max_tokens = tokens_hint(settings.estimate_total_token_nums, experts)
    between = Between(
        settings.activation,
        block_size_of(settings.hadamard_block_size, intermediate),
        padding,
        down_proj_in_scale,
    )
    in_scale = row_scale(up_proj_in_scale, permute_input)
    rows = permute_input, tokens_expert_prefix_sum, in_scale
    return run_projections(
        up_gate, down, *rows, between, max_tokens=max_tokens, out_dtype=out_dtype
    )


def _settings(arguments: tuple[Any, ...], named: dict[str, Any]) -> Settings:
    """The attributes in order or by name; the newer form has a tensor, or None, before them."""
    in_order = arguments if arguments and isinstance(arguments[0], str) else arguments[1:]
    given = dict(zip(_SETTINGS, in_order, strict=False))
    by_name = {name: value for name, value in named.items() if name != "max_tokens_per_expert"}
    unknown = by_name.keys() - _SETTINGS.keys()
    if unknown or len(in_order) > len(_SETTINGS):
        raise ValueError(
            f"arguments: expected {', '.join(_SETTINGS)}, got {len(in_order)} in order and the "
            f"names {sorted(named)}"
        )
    return Settings(**{**_SETTINGS, **given, **by_name})


def _padding(permute_input: Tensor, settings: Settings) -> int:
    is_padded = settings.used_in_ep_low_latency
    if permute_input.ndim != (3 if is_padded else 2):
        raise ValueError(
            f"permute_input: expected {'[experts, P, hidden]' if is_padded else '[rows, hidden]'} "
            f"with used_in_ep_low_latency={is_padded}, got {list(permute_input.shape)}"
        )
    return int(permute_input.shape[1]) if is_padded else 0
