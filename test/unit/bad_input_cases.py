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
"""What is right for every operator, and single changes that make it wrong."""

from __future__ import annotations

from typing import Any

import paddle
import pytest
from bad_input_tensors import FP8, Zeros
from bad_mla_cases import K_UP, MLA_CASES, V_UP

EXPERTS, OUT, IN, TOKENS, TOPK = 2, 72, 160, 6, 2
PADDED_OUT, PADDED_IN = 128, 192

GEMM = {
    "x": Zeros(FP8, (TOKENS, IN)),
    "weight": Zeros("uint8", (EXPERTS, PADDED_OUT, PADDED_IN // 2)),
    "weight_scale": Zeros("float32", (EXPERTS, OUT)),
    "tokens": Zeros("int32", (EXPERTS + 1,)),
}
MXFP4 = {"weight_format": "mxfp4", "group_scale": Zeros("uint8", (EXPERTS, 2, OUT, 4))}
GROUPED = {"group_size": 32, "group_scale": Zeros("float32", (EXPERTS, IN // 32, OUT))}
PADDED = {
    "x": Zeros(FP8, (EXPERTS, 3, IN)),
    "tokens": Zeros("int64", (EXPERTS,)),
    "token_padding": 3,
}

RIGHT: dict[str, dict[str, Any]] = {
    "group_gemm": GEMM,
    "pack_weight": {"codes": Zeros("uint8", (EXPERTS, OUT, IN // 2))},
    "unpack_weight": {"packed": GEMM["weight"], "out_features": OUT, "in_features": IN},
    "quant_per_token": {"x": Zeros("bfloat16", (TOKENS, IN))},
    "activation_quant": {
        "h": Zeros("bfloat16", (TOKENS, IN)),
        "tokens": Zeros("int32", (EXPERTS + 1,)),
    },
    "moe_route": {"logits": Zeros("float32", (TOKENS, 8)), "topk": TOPK},
    "moe_dispatch": {
        "x": Zeros("bfloat16", (TOKENS, IN)),
        "topk_ids": Zeros("int32", (TOKENS, TOPK)),
        "experts": EXPERTS,
    },
    "moe_combine": {
        "y": Zeros("bfloat16", (TOKENS * TOPK, IN)),
        "topk_weights": Zeros("float32", (TOKENS, TOPK)),
        "row_index": Zeros("int32", (TOKENS, TOPK)),
    },
    "mla_k_up": K_UP,
    "mla_v_up": V_UP,
}
OPTIONAL = {
    "group_gemm": {
        "group_scale": GROUPED["group_scale"],
        "x_scale": Zeros("float32", (TOKENS,)),
        "bias": Zeros("bfloat16", (EXPERTS, OUT)),
    },
    "moe_route": {"correction_bias": Zeros("float32", (8,))},
    "moe_combine": {"shared_output": Zeros("bfloat16", (TOKENS, IN))},
}
# Options beside the tensors: what is right for each, to find the wrong kinds.
OPTIONS: dict[str, dict[str, type]] = {
    "group_gemm": {
        **{"weight_format": str, "group_size": int, "token_padding": int},
        **{"max_tokens": int, "out_dtype": str, "accumulation": str, "activation": str},
    },
    "pack_weight": {"weight_format": str},
    "unpack_weight": {"weight_format": str, "out_features": int, "in_features": int},
    "activation_quant": {"activation": str, "token_padding": int, "hadamard_block_size": int},
    "moe_route": {
        "topk": int,
        "score": str,
        "norm_topk_prob": bool,
        "routed_scaling_factor": float,
        "n_group": int,
        "topk_group": int,
    },
    "moe_dispatch": {"experts": int, "token_padding": int, "first_expert": int},
}
WRONG_KINDS: dict[type, list[Any]] = {
    str: [None, 3, b"int4"],
    int: [None, "3", 3.0, True],
    bool: [None, 1, "yes"],
    float: [None, "1.0", [1.0], 10**400],
}


def bad(op: str, expected: str, got: str, **change: Any) -> Any:
    argument = expected.split(":", maxsplit=1)[0].replace(" ", "_")
    return pytest.param(op, change, expected, got, id=f"{op}-{argument}-{got}")


def bad_gemm(expected: str, got: str, *changes: dict[str, Any], **change: Any) -> Any:
    merged = {name: value for one in (*changes, change) for name, value in one.items()}
    return bad("group_gemm", expected, got, **merged)


BIG = 2**62
CASES = [
    # Sizes of the grouped GEMM.
    bad_gemm("in_features of x: expected a positive multiple of 32", "176", x=Zeros(FP8, (6, 176))),
    bad_gemm(
        "experts of weight_scale: expected at least 1 and at most 1024",
        "1025",
        weight_scale=Zeros("float32", (1025, OUT)),
    ),
    bad_gemm("in_features of x: expected a positive multiple of 32", "0", x=Zeros(FP8, (6, 0))),
    bad_gemm("weight: expected the shape [2, 128, 96]", "[2, 72, 80]",
             weight=Zeros("uint8", (2, 72, 80))),
    bad_gemm("weight: expected the shape [2, 128, 96]", "[3, 128, 96]",
             weight=Zeros("uint8", (3, 128, 96))),
    bad_gemm("out_features of weight_scale: expected a positive multiple of 8", "60",
             weight_scale=Zeros("float32", (2, 60))),
    bad_gemm("out_features of weight_scale: expected a positive multiple of 8", "0",
             weight_scale=Zeros("float32", (2, 0))),
    bad_gemm("experts of weight_scale: expected at least 1", "0",
             weight_scale=Zeros("float32", (0, OUT))),
    bad_gemm("weight: expected the shape [3, 128, 96]", "[2, 128, 96]",
             weight_scale=Zeros("float32", (3, OUT))),
    # Tokens of the wrong length.
    bad_gemm("tokens: expected prefix sums of 2 experts", "1 entries", tokens=Zeros("int32", (1,))),
    bad_gemm("tokens: expected prefix sums of 2 experts", "4 entries", tokens=Zeros("int64", (4,))),
    bad_gemm("tokens: expected the counts of 2 experts", "3 entries", PADDED,
             tokens=Zeros("int32", (3,))),
    bad_gemm("entries of tokens: expected at least 1", "0", tokens=Zeros("int32", (0,))),
    # Padding.
    bad_gemm("token_padding: expected at least 0", "-1", token_padding=-1),
    bad_gemm("token_padding: expected at least 0", str(BIG), token_padding=BIG),
    bad_gemm("x: expected the shape [num_tokens, features]", "[2, 3, 160]", PADDED,
             token_padding=0),
    bad_gemm("x: expected the shape [experts, token_padding, features]", "[6, 160]",
             token_padding=3),
    bad_gemm("x: expected token_padding 4 rows for each expert", "the shape [2, 3, 160]", PADDED,
             token_padding=4),
    bad_gemm("x: expected the shape [2, 3, 160]", "[3, 3, 160]", PADDED,
             x=Zeros(FP8, (3, 3, IN))),
    # Formats and groups.
    bad_gemm("weight_format: expected 'int4' or 'mxfp4'", "'int3'", weight_format="int3"),
    bad_gemm("group_scale: expected None with group_size -1", "a tensor [2, 5, 72]",
             group_scale=GROUPED["group_scale"]),
    *(bad_gemm("group_size: expected -1, 32, 64 or a multiple of 128, that divides in_features 160",
               str(size), GROUPED, group_size=size) for size in (0, -2, 1, 16, 96, 64, 128, 192)),
    bad_gemm("group_scale: expected a tensor [experts, in_features / group_size, out_features]",
             "None", group_size=32),
    bad_gemm("group_scale: expected the shape [2, 5, 72]", "[2, 72, 5]", GROUPED,
             group_scale=Zeros("bfloat16", (2, 72, 5))),
    bad_gemm("group_scale: expected dtype float32 or bfloat16", "float16", GROUPED,
             group_scale=Zeros("float16", (2, 5, 72))),
    bad_gemm("group_size: expected 32 (or -1, the format's own) with mxfp4", "128", MXFP4,
             group_size=128),
    bad_gemm("group_scale: expected a tensor "
             "[experts, in_features / 128 rounded up, out_features, 4]", "None",
             weight_format="mxfp4"),
    bad_gemm("group_scale: expected dtype uint8", "float32", GROUPED, weight_format="mxfp4"),
    bad_gemm("group_scale: expected the shape [2, 2, 72, 4]", "[2, 1, 72, 4]", MXFP4,
             group_scale=Zeros("uint8", (2, 1, OUT, 4))),
    # Scales, bias, output.
    *(bad_gemm("x_scale: expected the shape [1] or x's without in_features", str(list(shape)),
               x_scale=Zeros("float32", shape)) for shape in ((5,), (6, 1), (2, 3))),
    bad_gemm("x_scale: expected the shape [1] or x's without in_features", "[6]", PADDED,
             x_scale=Zeros("float32", (6,))),
    bad_gemm("bias: expected dtype float16", "bfloat16", out_dtype="float16",
             bias=Zeros("bfloat16", (EXPERTS, OUT))),
    bad_gemm("bias: expected the shape [2, 72]", "[72]", bias=Zeros("bfloat16", (OUT,))),
    bad_gemm("out_dtype: expected 'bfloat16' or 'float16'", "'float32'", out_dtype="float32"),
    bad_gemm("accumulation: expected 'default', 'half' or 'float32'", "'float16'",
             accumulation="float16"),
    *(bad_gemm("activation: expected 'none', 'swiglu' or 'swiglu_oai' (activation_quant applies "
               "the others)", f"'{name}'", activation=name) for name in ("gelu", "relu", "")),
    bad_gemm("out_features of weight_scale: expected a positive multiple of 8", "68",
             weight_scale=Zeros("float32", (2, 68)), activation="swiglu"),
    bad_gemm("out_dtype: expected 'bfloat16' or 'float16'", "'paddle.float32'",
             out_dtype=paddle.float32),
    bad_gemm("max_tokens: expected at least -1", "-2", max_tokens=-2),
    bad_gemm("max_tokens: expected an int of 64 bits", str(2**64), max_tokens=2**64),
    # Packing.
    bad("pack_weight", "in_features of codes: expected a positive multiple of 32", "16",
        codes=Zeros("uint8", (2, 8, 8))),
    bad("pack_weight", "in_features of codes: expected a positive multiple of 32", "0",
        codes=Zeros("uint8", (2, 8, 0))),
    bad("pack_weight", "out_features of codes: expected at least 1", "0",
        codes=Zeros("uint8", (2, 0, 16))),
    bad("pack_weight", "experts of codes: expected at least 1", "0",
        codes=Zeros("uint8", (0, 8, 16))),
    bad("pack_weight", "weight_format: expected 'int4' or 'mxfp4'", "''", weight_format=""),
    bad("unpack_weight", "packed: expected the shape [2, 192, 96]", "[2, 128, 96]",
        out_features=129),
    bad("unpack_weight", "packed: expected the shape [2, 128, 160]", "[2, 128, 96]",
        in_features=288),
    bad("unpack_weight", "in_features: expected a positive multiple of 32", "100",
        in_features=100),
    bad("unpack_weight", "in_features: expected at least 1", "-32", in_features=-32),
    bad("unpack_weight", "out_features: expected at least 1", "0", out_features=0),
    bad("unpack_weight", "out_features: expected at least 1", str(BIG), out_features=BIG),
    bad("unpack_weight", "experts of packed: expected at least 1", "0",
        packed=Zeros("uint8", (0, 128, 96))),
    bad("unpack_weight", "weight_format: expected 'int4' or 'mxfp4'", "'fp4'",
        weight_format="fp4"),
    # Quantisation.
    bad("quant_per_token", "features of x: expected at least 1", "0", x=Zeros("float32", (3, 0))),
    bad("activation_quant", "features of h: expected a positive multiple of 2", "7",
        h=Zeros("float16", (TOKENS, 7))),
    bad("activation_quant", "features of h: expected a positive multiple of 1", "0",
        h=Zeros("float16", (TOKENS, 0)), activation="gelu"),
    bad("activation_quant", "activation: expected 'none', 'swiglu', 'swiglu_oai' or 'gelu'",
        "'relu'", activation="relu"),
    bad("activation_quant", "tokens: expected the shape [3]", "[2]",
        h=Zeros("float16", (3, 4, 8)), tokens=Zeros("int64", (2,)), token_padding=4),
    bad("activation_quant", "token_padding: expected at least 0", "-4", token_padding=-4),
    bad("activation_quant", "h: expected the shape [experts, token_padding, features]", "[6, 160]",
        token_padding=3),
    bad("activation_quant", "h: expected token_padding 5 rows for each expert",
        "the shape [3, 4, 8]", h=Zeros("float16", (3, 4, 8)), token_padding=5),
    bad("activation_quant", "entries of tokens: expected at least 1", "0",
        tokens=Zeros("int32", (0,))),
    *(bad("activation_quant", "hadamard_block_size: expected -1 (none) or a power of two from 8 to "
          "16384 that divides the 80 output features", str(size), hadamard_block_size=size)
      for size in (0, 1, 4, 24, 32, 80, -2, 2**15, BIG)),
    # Routing and the way there and back.
    bad("moe_route", "n_group: expected at least 1 and at most 8", "0", n_group=0),
    bad("moe_route", "n_group: expected at least 1 and at most 8", "9", n_group=9),
    bad("moe_route", "n_group: expected at least 1 and at most 32", "64",
        logits=Zeros("float32", (2, 64)), n_group=64),
    bad("moe_route", "n_group: expected a divisor of the 8 experts of logits", "3", n_group=3),
    bad("moe_route", "topk_group: expected at least 1 and at most 4", "5", n_group=4, topk_group=5),
    bad("moe_route", "topk_group: expected at least 1 and at most 1", "0", topk_group=0),
    bad("moe_route", "topk: expected at least 1 and at most 4", "5", topk=5, n_group=4,
        topk_group=2),
    bad("moe_dispatch", "token_padding: expected at least 0", "-1", token_padding=-1),
    bad("moe_dispatch", "token_padding: expected at least 0 and at most 1073741823", str(2**30),
        token_padding=2**30),
    bad("moe_dispatch", "first_expert: expected at least 0", "-1", first_expert=-1),
    bad("moe_dispatch", "first_expert: expected at least 0 and at most 2147483645", str(2**31 - 2),
        first_expert=2**31 - 2),
    bad("moe_combine", "y: expected the shape [rows, hidden] or [experts, rows, hidden]", "[4]",
        y=Zeros("bfloat16", (4,))),
    bad("moe_combine", "shared_output: expected the shape [6, 160]", "[5, 160]",
        shared_output=Zeros("bfloat16", (5, IN))),
    bad("moe_combine", "shared_output: expected dtype bfloat16", "float16",
        shared_output=Zeros("float16", (TOKENS, IN))),
    bad("moe_route", "topk: expected at least 1 and at most 8", "0", topk=0),
    bad("moe_route", "topk: expected at least 1 and at most 8", "9", topk=9),
    bad("moe_route", "topk: expected at least 1 and at most 32", "33",
        logits=Zeros("float32", (2, 64)), topk=33),
    bad("moe_route", "experts of logits: expected at least 1 and at most 1024", "1025",
        logits=Zeros("bfloat16", (2, 1025))),
    bad("moe_route", "experts of logits: expected at least 1 and at most 1024", "0",
        logits=Zeros("float16", (2, 0))),
    bad("moe_route", "correction_bias: expected the shape [8]", "[7]",
        correction_bias=Zeros("float32", (7,))),
    bad("moe_route", "score: expected 'softmax' or 'sigmoid'", "'relu'", score="relu"),
    *(bad("moe_route", "routed_scaling_factor: expected a finite float32", got,
          routed_scaling_factor=value)
      for value, got in ((float("nan"), "nan"), (float("-inf"), "-inf"), (1e39, ""))),
    bad("moe_dispatch", "topk_ids: expected the shape [6, 2]", "[5, 2]",
        topk_ids=Zeros("int32", (5, 2))),
    bad("moe_dispatch", "topk of topk_ids: expected at least 1 and at most 32", "33",
        topk_ids=Zeros("int32", (6, 33))),
    bad("moe_dispatch", "topk of topk_ids: expected at least 1 and at most 32", "0",
        topk_ids=Zeros("int32", (6, 0))),
    bad("moe_dispatch", "experts: expected at least 1 and at most 1024", "0", experts=0),
    bad("moe_dispatch", "experts: expected at least 1 and at most 1024", "1025", experts=1025),
    bad("moe_dispatch", "hidden of x: expected at least 1", "0", x=Zeros("float16", (6, 0))),
    bad("moe_combine", "row_index: expected the shape [6, 2]", "[6, 3]",
        row_index=Zeros("int32", (6, 3))),
    bad("moe_combine", "topk of topk_weights: expected at least 1 and at most 32", "0",
        topk_weights=Zeros("float32", (6, 0)), row_index=Zeros("int32", (6, 0))),
    bad("moe_combine", "hidden of y: expected at least 1", "0", y=Zeros("float16", (12, 0))),
    *(bad(op, expected, got, **change) for op, expected, got, change in MLA_CASES),
]  # fmt: skip
