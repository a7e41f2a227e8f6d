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
"""Listed shapes and token distributions. Lists, not products of lists."""

from __future__ import annotations

from dataclasses import dataclass

# Around the tile widths 8, 16, 64, 128, 256 and beyond any tile.
TOKEN_COUNTS = (0, 1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 4097)

# Tokens of each expert.
RAGGED = {
    "even": (5, 5, 5, 5),
    "all to the first": (70, 0, 0, 0),
    "all to the last": (0, 0, 0, 70),
    "empty first": (0, 3, 17, 9),
    "empty middle": (12, 0, 0, 33),
    "empty last": (1, 64, 2, 0),
    "around the tiles": (15, 16, 17, 1),
    "no tokens": (0, 0, 0, 0),
}


@dataclass(frozen=True)
class LinearShape:
    """out_features and in_features of one linear layer."""

    out_features: int
    in_features: int


# Small, yet each meets another edge: the least, tails in out and in, several bands and k blocks,
# gpt-oss (2880), Qwen3 cut by tensor parallel (192), odd numbers of k blocks.
GEMM_SHAPES = (
    LinearShape(8, 32),
    LinearShape(72, 96),
    LinearShape(64, 128),
    LinearShape(192, 160),
    LinearShape(256, 192),
    LinearShape(320, 384),
    LinearShape(264, 640),
    LinearShape(520, 2880),
)
