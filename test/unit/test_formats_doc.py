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
"""The naive code of docs/formats.md does what it says."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import pytest

from w4afp8.quant import dequantize, pack, quantize

pytestmark = pytest.mark.cpu_only

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "formats.md"


@pytest.mark.parametrize(
    "options",
    [{}, {"rounding": "absmax/7.5"}, {"group_size": 32}, {"weight_format": "mxfp4"}],
    ids=str,
)
@pytest.mark.parametrize("shape", [(1, 72, 96), (1, 328, 160)])
def test_naive_code(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code.group(1), names)
    q = quantize(np.random.default_rng(0).standard_normal(shape, np.float32), **options)
    packed = pack(q)
    result = names["weights"](
        packed.weight.numpy()[0],
        packed.weight_scale.numpy()[0],
        None if packed.group_scale is None else packed.group_scale.numpy()[0],
        q.weight_format,
        q.group_size,
        q.out_features,
        q.in_features,
    )
    assert (result == dequantize(q)[0]).all()
