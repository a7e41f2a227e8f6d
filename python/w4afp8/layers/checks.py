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
"""Checks of layers' arguments: ValueError with name, what was expected, what came."""

from __future__ import annotations

from paddle import Tensor

from w4afp8._checks import check_int, check_range, check_tensor, dtype_name

MAX_EXPERTS = 1024


def check_share(num_experts: int, first_expert: int, router_experts: int | None) -> int:
    """Checks which of a router's experts a layer holds.

    Returns:
        The router's experts: as many as the layer's, where they are None.

    Raises:
        ValueError: the layer's experts, from first_expert on, are not all the router's.
    """
    check_range("num_experts", num_experts, 1, MAX_EXPERTS)
    experts = num_experts if router_experts is None else router_experts
    check_range("router_experts", experts, num_experts, MAX_EXPERTS)
    check_range("first_expert", first_expert, 0, experts - num_experts)
    return experts


def check_same(name: str, got: object, expected: object) -> None:
    """Raises ValueError unless both are equal."""
    if got != expected:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def check_hadamard(block_size: int, features: int) -> int:
    """Checks the size of the blocks that a projection's input is rotated in.

    Args:
        block_size: -1 for no rotation.
        features: of the input.

    Returns:
        The size.

    Raises:
        ValueError: it is no power of two from 8 to 16384 that divides the features.
    """
    block_size = check_int("hadamard_block_size", block_size)
    if block_size == -1:
        return block_size
    if not 8 <= block_size <= 16384 or block_size & (block_size - 1) or features % block_size:
        raise ValueError(
            "hadamard_block_size: expected -1 or a power of two from 8 to 16384 that divides "
            f"{features}, got {block_size}"
        )
    return block_size


def check_activations(name: str, x: Tensor, dtype: str, features: int) -> None:
    """Raises ValueError unless x is ``[..., features]`` of a layer's own type."""
    check_tensor(name, x)
    check_own_dtype(name, x, dtype)
    if x.ndim < 1 or x.shape[-1] != features:
        raise ValueError(f"{name}: expected shape [..., {features}], got {list(x.shape)}")


def check_own_dtype(name: str, x: Tensor, dtype: str) -> None:
    """Raises ValueError unless a tensor is of a layer's own type."""
    if dtype_name(x.dtype) != dtype:
        raise ValueError(
            f"{name}: expected {dtype}, the layer's type (cast {name}, or convert the layer with "
            f".bfloat16() or .float16()), got {dtype_name(x.dtype)}"
        )
