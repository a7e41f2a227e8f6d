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
"""Types of the compiled extension. w4afp8.ops documents each operator."""

from paddle import Tensor

from w4afp8._extension import BuildInfo
from w4afp8.layers.experts import Experts

def build_info() -> BuildInfo: ...
def group_gemm(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    tokens: Tensor,
    group_scale: Tensor | None,
    x_scale: Tensor | None,
    bias: Tensor | None,
    weight_format: str,
    group_size: int,
    token_padding: int,
    max_tokens: int,
    out_dtype: str,
    accumulation: str,
    activation: str,
) -> Tensor: ...
def pack_weight(codes: Tensor, weight_format: str) -> Tensor: ...
def unpack_weight(
    packed: Tensor, weight_format: str, out_features: int, in_features: int
) -> Tensor: ...
def quant_per_token(x: Tensor) -> tuple[Tensor, Tensor]: ...
def activation_quant(
    h: Tensor, tokens: Tensor, activation: str, token_padding: int, hadamard_block_size: int
) -> tuple[Tensor, Tensor]: ...
def moe_route(
    logits: Tensor,
    correction_bias: Tensor | None,
    topk: int,
    score: str,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
    n_group: int,
    topk_group: int,
) -> tuple[Tensor, Tensor]: ...
def moe_dispatch(
    x: Tensor, topk_ids: Tensor, experts: int, token_padding: int, first_expert: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def moe_combine(
    y: Tensor, topk_weights: Tensor, row_index: Tensor, shared_output: Tensor | None
) -> Tensor: ...
def moe_experts(
    x: Tensor,
    tokens: Tensor,
    x_scale: Tensor | None,
    experts: Experts,
    out_dtype: str,
    token_padding: int,
) -> Tensor: ...
def moe_ffn(
    x: Tensor,
    logits: Tensor,
    shared_output: Tensor | None,
    routing: tuple[Tensor | None, int, str, bool, float, int, int],
    experts: Experts,
    first_expert: int,
) -> Tensor: ...
def fuses_activation(rows: int, outputs: int, in_features: int) -> bool: ...
def mla_k_up(
    q_nope: Tensor, w_k: Tensor, w_k_scale: Tensor, q_scale: Tensor | None, out_dtype: str
) -> Tensor: ...
def mla_v_up(
    x: Tensor, w_v: Tensor, w_v_scale: Tensor, x_scale: Tensor | None, out_dtype: str
) -> Tensor: ...
