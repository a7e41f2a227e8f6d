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
"""The mixture-of-experts functions of paddle.incubate.nn.functional, for ``quant_method="w4afp8"``.

    permuted, sums, rows, weights, ids = moe_dispatch(x, gating_output, moe_topk)
    y = moe_ffn(permuted, sums, ffn1_weight, ffn2_weight, ..., quant_method="w4afp8")
    out = moe_reduce(y, weights, rows, ids, ...)

`fused_moe` is all of that and the router. Names and order of the arguments are those of Paddle 3.x;
Paddle's other ``quant_method`` values are refused.
"""

from w4afp8.incubate.nn.functional.moe import fused_moe, moe_dispatch, moe_ffn, moe_reduce

__all__ = ["fused_moe", "moe_dispatch", "moe_ffn", "moe_reduce"]
