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
"""Two ways into one operator.

Eager tensors go straight through the pybind module, which is faster; a program that is being
traced (``paddle.jit.to_static``, static graphs) needs the operator that is registered with Paddle.
Both end in the same C++ function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import paddle

from w4afp8._checks import check_bool, check_int, check_tensor, wrong_type
from w4afp8._extension import extension
from w4afp8._tracing import run_as_written

Route = Literal["pybind", "registered"]

# Parameters of the operators in order: t tensor, v tensor or view, o tensor or None, i int,
# f float, b bool, s str.
_PARAMETERS = {
    "group_gemm": {
        **{"x": "t", "weight": "t", "weight_scale": "t", "tokens": "t"},
        **{"group_scale": "o", "x_scale": "o", "bias": "o", "weight_format": "s"},
        **{"group_size": "i", "token_padding": "i", "max_tokens": "i", "out_dtype": "s"},
        **{"accumulation": "s", "activation": "s"},
    },
    "pack_weight": {"codes": "t", "weight_format": "s"},
    "unpack_weight": {
        **{"packed": "t", "weight_format": "s", "out_features": "i", "in_features": "i"},
    },
    "mla_k_up": {
        **{"q_nope": "v", "w_k": "t", "w_k_scale": "t", "q_scale": "o", "out_dtype": "s"},
    },
    "mla_v_up": {
        **{"x": "v", "w_v": "t", "w_v_scale": "t", "x_scale": "o", "out_dtype": "s"},
    },
    "quant_per_token": {"x": "t"},
    "activation_quant": {
        **{"h": "t", "tokens": "t", "activation": "s", "token_padding": "i"},
        **{"hadamard_block_size": "i"},
    },
    "moe_route": {
        **{"logits": "t", "correction_bias": "o", "topk": "i", "score": "s"},
        **{"norm_topk_prob": "b", "routed_scaling_factor": "f"},
        **{"n_group": "i", "topk_group": "i"},
    },
    "moe_dispatch": {
        **{"x": "t", "topk_ids": "t", "experts": "i", "token_padding": "i", "first_expert": "i"},
    },
    "moe_combine": {"y": "t", "topk_weights": "t", "row_index": "t", "shared_output": "o"},
}

_forced: Route | None = None


@contextlib.contextmanager
def force_route(route: Route) -> Iterator[None]:
    """Sends every call inside the ``with`` block down one route.

    Args:
        route: ``"pybind"`` (eager tensors only) or ``"registered"``.

    Raises:
        ValueError: There is no such route.
    """
    global _forced  # noqa: PLW0603
    if route not in ("pybind", "registered"):
        raise ValueError(f"route: expected 'pybind' or 'registered', got {route!r}")
    before, _forced = _forced, route
    try:
        yield
    finally:
        _forced = before


def is_eager() -> bool:
    """Whether calls go through the pybind module."""
    return _forced == "pybind" or (_forced is None and paddle.in_dynamic_mode())


@run_as_written
def call(name: str, *arguments: Any) -> Any:
    """Runs the operator ``name`` on its arguments, all of them, in order."""
    if is_eager():
        return getattr(extension(), name)(*arguments)
    checked = [
        _CHECKS[kind](parameter, value)
        for (parameter, kind), value in zip(_PARAMETERS[name].items(), arguments, strict=True)
    ]
    result = getattr(extension(), f"w4afp8_{name}")(*checked)
    return tuple(result) if isinstance(result, list) else result


def _is_strided(value: Any) -> bool:
    """Whether it is an eager tensor with elements that is not contiguous."""
    if not isinstance(value, paddle.Tensor) or not value.is_dense():
        return False
    return value.size > 0 and not value.is_contiguous()


def _check_tensor(name: str, value: Any) -> Any:
    check_tensor(name, value)
    if _is_strided(value):
        # Paddle's dispatch copies quietly; eager calls refuse.
        raise ValueError(
            f"{name}: expected a contiguous tensor, got strides {value.strides}; call contiguous()"
        )
    return value


def _check_view(name: str, value: Any) -> Any:
    """A tensor whose last dimension need be contiguous; copied for Paddle's dispatch."""
    if _is_strided(value):
        if value.shape[-1] > 1 and value.strides[-1] != 1:
            raise ValueError(
                f"{name}: expected a contiguous tensor, or a view whose last dimension is "
                f"contiguous, got strides {value.strides}; call contiguous()"
            )
        return value.contiguous()
    return _check_tensor(name, value)


def _check_optional_tensor(name: str, value: Any) -> Any:
    return None if value is None else _check_tensor(name, value)


def _check_int(name: str, value: Any) -> int:
    number = check_int(name, value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name}: expected an int of 64 bits, got {number}")
    return number


def _check_float(name: str, value: Any) -> float:
    if isinstance(value, str):
        raise wrong_type(name, "a float", value)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong_type(name, "a float", value) from None


def _check_str(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong_type(name, "a str", value)
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "t": _check_tensor,
    "v": _check_view,
    "o": _check_optional_tensor,
    "i": _check_int,
    "f": _check_float,
    "b": check_bool,
    "s": _check_str,
}
