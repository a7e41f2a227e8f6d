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
"""What is right for the operators of multi-head latent attention, and what is wrong."""

from __future__ import annotations

from typing import Any

from bad_input_tensors import FP8, Zeros

TOKENS = 6
HEADS, NOPE, LORA, V = 2, 64, 256, 64
K_UP = {
    "q_nope": Zeros("bfloat16", (TOKENS, HEADS, NOPE)),
    "w_k": Zeros("uint8", (HEADS, LORA, NOPE // 2)),
    "w_k_scale": Zeros("uint8", (HEADS, LORA // 32, NOPE)),
}
V_UP = {
    "x": Zeros("float16", (TOKENS, HEADS, LORA)),
    "w_v": Zeros("uint8", (HEADS, V, LORA // 2)),
    "w_v_scale": Zeros("uint8", (HEADS, V, LORA // 32)),
}
FLOAT8 = {
    "x": Zeros(FP8, (TOKENS, HEADS, LORA)),
    "x_scale": Zeros("float32", (TOKENS, HEADS)),
}

# Operator, expected, got, change of the right arguments.
MLA_CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("mla_k_up", "heads of q_nope: expected at least 1", "0",
     {"q_nope": Zeros("bfloat16", (TOKENS, 0, NOPE))}),
    *(("mla_k_up", "nope of q_nope: expected a positive multiple of 64", str(n),
     {"q_nope": Zeros("float16", (TOKENS, HEADS, n))}) for n in (0, 32, 96)),
    ("mla_v_up", "lora of x: expected at least 1 and at most 1024", "1088",
     {"x": Zeros("float16", (TOKENS, HEADS, 1088))}),
    ("mla_v_up", "lora of x: expected a positive multiple of 64", "100",
     {"x": Zeros("bfloat16", (TOKENS, HEADS, 100))}),
    *(("mla_k_up", "lora of w_k: expected a positive multiple of 64", str(n),
     {"w_k": Zeros("uint8", (HEADS, n, NOPE // 2))}) for n in (0, 96)),
    ("mla_v_up", "v of w_v: expected a positive multiple of 64", "32",
     {"w_v": Zeros("uint8", (HEADS, 32, LORA // 2))}),
    ("mla_k_up", "w_k: expected the shape [2, 256, 32]", "[3, 256, 32]",
     {"w_k": Zeros("uint8", (3, LORA, NOPE // 2))}),
    ("mla_k_up", "w_k: expected the shape [2, 256, 32]", "[2, 256, 64]",
     {"w_k": Zeros("uint8", (HEADS, LORA, NOPE))}),
    ("mla_k_up", "w_k_scale: expected the shape [2, 8, 64]", "[2, 64, 8]",
     {"w_k_scale": Zeros("uint8", (HEADS, NOPE, LORA // 32))}),
    ("mla_v_up", "w_v: expected the shape [2, 64, 128]", "[2, 64, 32]",
     {"w_v": Zeros("uint8", (HEADS, V, 32))}),
    ("mla_v_up", "w_v_scale: expected the shape [2, 64, 8]", "[2, 8, 64]",
     {"w_v_scale": Zeros("uint8", (HEADS, LORA // 32, V))}),
    ("mla_v_up", "x: expected dtype bfloat16 or float16", "float32",
     {"x": Zeros("float32", (TOKENS, HEADS, LORA))}),
    ("mla_v_up", "x: expected dtype bfloat16 or float16", "int8",
     {"x": Zeros("int8", (TOKENS, HEADS, LORA))}),
    # FP8 activations.
    ("mla_v_up", "x_scale: expected float32 scales, as x is float8_e4m3fn", "None",
     {"x": FLOAT8["x"]}),
    ("mla_k_up", "q_scale: expected None, as q_nope is not float8_e4m3fn", "a tensor",
     {"q_scale": FLOAT8["x_scale"]}),
    ("mla_v_up", "x_scale: expected the shape [6, 2]", "[6]",
     {**FLOAT8, "x_scale": Zeros("float32", (TOKENS,))}),
    ("mla_v_up", "x_scale: expected dtype float32", "float16",
     {**FLOAT8, "x_scale": Zeros("float16", (TOKENS, HEADS))}),
    ("mla_v_up", "x_scale: expected a paddle.Tensor", "list", {**FLOAT8, "x_scale": [1.0]}),
    ("mla_v_up", "x_scale: expected a contiguous tensor", "strides",
     {**FLOAT8, "x_scale": Zeros("float32", (TOKENS, HEADS), "strided")}),
    ("mla_v_up", "out_dtype: expected 'bfloat16' or 'float16'", "'float32'",
     {**FLOAT8, "out_dtype": "float32"}),
    ("mla_k_up", "out_dtype: expected the dtype of 16-bit activations", "'float16'",
     {"out_dtype": "float16"}),
    ("mla_k_up", "out_dtype: expected 'bfloat16' or 'float16'", "'int8'", {"out_dtype": "int8"}),
]  # fmt: skip
