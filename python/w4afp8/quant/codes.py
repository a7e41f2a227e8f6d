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
"""4-bit codes in checkpoint order: two to a byte, the low nibble first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

E2M1_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)

# Value of each of the 16 codes.
CODE_VALUES = {
    "int4": np.array([*range(8), *range(-8, 0)], dtype=np.float32),
    "mxfp4": np.concatenate([E2M1_MAGNITUDES, -E2M1_MAGNITUDES]),
}


def join_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``[..., n]`` codes of 0..15, one to a byte, to ``[..., n / 2]``."""
    return codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)


def split_nibbles(pairs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The reverse of `join_nibbles`: ``[..., n / 2]`` bytes to ``[..., n]`` codes of 0..15."""
    codes = np.empty((*pairs.shape[:-1], pairs.shape[-1] * 2), dtype=np.uint8)
    codes[..., 0::2] = pairs & np.uint8(15)
    codes[..., 1::2] = pairs >> np.uint8(4)
    return codes
