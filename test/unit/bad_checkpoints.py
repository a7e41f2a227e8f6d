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
"""What the tests of wrong checkpoints share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Tensors
from checkpoint_samples import PREFIX, Case, draw_experts, spell

from w4afp8.checkpoint import CheckpointError, load_moe_ffn

FIRST = f"{PREFIX}.experts.1.up_proj"


def tensors_of(case: Case) -> Tensors:
    return spell(case, draw_experts(case, np.random.default_rng(0)))


def assert_refused(folder: Path, message: str, *, tensor: str | None = None) -> None:
    """Opening or loading fails, by the name of a file and `tensor`."""
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        load_moe_ffn(folder, layer=3, topk=1, progress=False)
    assert str(caught.value).startswith(str(caught.value.path))
    assert caught.value.path.is_relative_to(folder)
    if tensor is not None:
        assert caught.value.tensor == tensor
        assert f": {tensor}: " in str(caught.value)


def method(name: str, **more: Any) -> dict[str, Any]:
    """A config that names a method of quantisation."""
    return {"quantization_config": {"quant_method": name} | more}
