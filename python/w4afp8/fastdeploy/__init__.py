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
"""FastDeploy's W4AFP8 operators and quantisation method, over this package's operators.

Names, order of the arguments and tensors' shapes are FastDeploy's; the bytes of a converted weight
are this package's (docs/fastdeploy.md says what maps to what, and what differs).
"""

from w4afp8.fastdeploy.dispatch import moe_expert_dispatch, moe_expert_reduce
from w4afp8.fastdeploy.ffn import moe_expert_ffn
from w4afp8.fastdeploy.gemm import w4afp8_gemm
from w4afp8.fastdeploy.quant_method import W4AFP8MoEMethod
from w4afp8.fastdeploy.scales import w4afp8_gemm_scale_permute
from w4afp8.fastdeploy.weights import w4afp8_gemm_weight_convert

__all__ = [
    "W4AFP8MoEMethod",
    "moe_expert_dispatch",
    "moe_expert_ffn",
    "moe_expert_reduce",
    "w4afp8_gemm",
    "w4afp8_gemm_scale_permute",
    "w4afp8_gemm_weight_convert",
]
