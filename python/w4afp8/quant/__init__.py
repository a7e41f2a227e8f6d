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
"""Quantisation of weights to 4 bits, and packing for the operators.

    float weights --quantize--> QuantizedWeight --pack--> PackedWeight --> w4afp8.ops.group_gemm
                  <-dequantize-                 <-unpack-

Multi-head latent attention's up projections: `split_kv_b_proj`.

Formats and layouts: docs/formats.md.
"""

from w4afp8.quant.int4 import ROUNDINGS, Rounding
from w4afp8.quant.kv_b_proj import (
    MLAUpWeights,
    RequantizedUpWeights,
    split_kv_b_proj,
    unpack_kv_b_proj,
)
from w4afp8.quant.kv_b_source import UpError
from w4afp8.quant.packing import PackedWeight, pack, unpack
from w4afp8.quant.quantize import dequantize, quantize
from w4afp8.quant.weights import QuantizedWeight, ScaleDtype, WeightFormat

__all__ = [
    "ROUNDINGS",
    "MLAUpWeights",
    "PackedWeight",
    "QuantizedWeight",
    "RequantizedUpWeights",
    "Rounding",
    "ScaleDtype",
    "UpError",
    "WeightFormat",
    "dequantize",
    "pack",
    "quantize",
    "split_kv_b_proj",
    "unpack",
    "unpack_kv_b_proj",
]
