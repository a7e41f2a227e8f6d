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
"""Tensors that are wrong, or cannot be read exactly: refused by file and tensor name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bad_checkpoints import FIRST, assert_refused, method, tensors_of
from checkpoint_files import Tensors, write_checkpoint
from checkpoint_samples import BY_NAME, CASES, PREFIX, Case

from w4afp8.checkpoint import CheckpointError, load_moe_ffn, open_checkpoint

pytestmark = pytest.mark.cpu_only

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_every_tensor_is_needed(case: Case, tmp_path: Path) -> None:
    tensors = tensors_of(case)
    optional = (".g_idx", ".input_scale", ".activation_scale")
    for name in [name for name in tensors if not name.endswith(optional)]:
        rest = {other: values for other, values in tensors.items() if other != name}
        with pytest.raises(CheckpointError, match=re.escape(PREFIX)) as caught:
            open_checkpoint(write_checkpoint(tmp_path, rest, case.config))
        assert str(tmp_path) in str(caught.value)


@every_case
def test_every_dtype_is_checked(case: Case, tmp_path: Path) -> None:
    tensors = tensors_of(case)
    for name, values in tensors.items():
        wrong = tensors | {name: np.zeros(values.shape, np.int16)}
        with pytest.raises(CheckpointError, match=r"expected .*, got ") as caught:
            load_moe_ffn(write_checkpoint(tmp_path, wrong, case.config), layer=3, topk=1)
        assert caught.value.tensor is not None
        assert caught.value.tensor.startswith(PREFIX)


@every_case
def test_every_shape_is_checked(case: Case, tmp_path: Path) -> None:
    tensors = tensors_of(case)
    for name, values in tensors.items():
        for shape in ([*values.shape, 1], [3, *values.shape[1:]], [0, *values.shape[1:]]):
            # FastDeploy's scales of whole channels are right with a second dimension too.
            if case.name == "fastdeploy groups" and shape == [len(values), 1]:
                continue
            wrong = tensors | {name: np.zeros(shape, values.dtype)}
            with pytest.raises(CheckpointError, match=r"expected .*, got "):
                load_moe_ffn(write_checkpoint(tmp_path, wrong, case.config), layer=3, topk=1)


SCALES = {
    "compressed-tensors groups": "weight_scale",
    "compressed-tensors float16": "weight_scale",
    "deepseek": "weight_scale_inv",
    "gptq": "scales",
    "awq": "scales",
    "fastdeploy channels": "weight_scale",
    "fastdeploy offset groups": "weight_scale",
}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "expected finite numbers, got nan at ["),
        (np.inf, "expected finite numbers, got inf at ["),
        (-0.5, "expected scales of at least 0, got -0.5 at ["),
    ],
)
@pytest.mark.parametrize("name", SCALES)
def test_scales(name: str, value: float, message: str, tmp_path: Path) -> None:
    case, tensors = BY_NAME[name], tensors_of(BY_NAME[name])
    projection = "down_proj"
    tensor = f"{PREFIX}.experts.1.{projection}.{SCALES[name]}"
    tensors[tensor] = tensors[tensor].copy()
    tensors[tensor].reshape(-1)[1] = value
    assert_refused(write_checkpoint(tmp_path, tensors, case.config), message, tensor=tensor)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("compressed-tensors mxfp4", f"{FIRST}.weight_scale"),
        ("gpt-oss", f"{PREFIX}.experts.down_proj_scales"),
    ],
)
def test_e8m0_that_is_nan(name: str, tensor: str, tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME[name])
    tensors[tensor].reshape(-1)[-1] = 255
    folder = write_checkpoint(tmp_path, tensors, {})
    assert_refused(folder, "expected E8M0 bytes of 0..254, got 255 at [", tensor=tensor)


@dataclass(frozen=True)
class Bad:
    """A change that makes a right checkpoint wrong, and what is said of it."""

    case: str
    tensor: str
    change: Callable[[Any], Any]
    message: str


def at(index: Any, value: Any) -> Callable[[Any], Any]:
    """Sets one element."""

    def change(values: Any) -> Any:
        values = values.copy()
        values[index] = value
        return values

    return change


NO_ACT_ORDER = "(act-order cannot be honoured), got "
TENSORS = {
    "act-order": Bad(
        "gptq",
        f"{FIRST}.g_idx",
        lambda g: g[::-1],
        f"expected group 0 for in_feature 0 {NO_ACT_ORDER}1",
    ),
    "one weight in another group": Bad(
        "gptq_v2", f"{FIRST}.g_idx", at(5, 1), f"expected group 0 for in_feature 5 {NO_ACT_ORDER}1"
    ),
    "a zero point of AWQ": Bad(
        "awq",
        f"{FIRST}.qzeros",
        at((1, 2), -0x77777777 - 2),
        "expected the zero point 8 everywhere (stored as 8), got 7 stored in word [1, 2]",
    ),
    "zero points of GPTQ": Bad(
        "gptq",
        f"{FIRST}.qzeros",
        lambda z: np.full_like(z, 0x66666666),
        "expected the zero point 8 everywhere (stored as 7), got 6 stored in word [0, 0]",
    ),
    "zero points of the other version": Bad(
        "gptq_v2",
        f"{FIRST}.qzeros",
        lambda z: np.full_like(z, 0x77777777),
        "(stored as 8), got 7 stored in word [0, 0]: only symmetric weights can be read",
    ),
    "codes of 8 bits": Bad(
        "compressed-tensors groups",
        f"{FIRST}.weight_shape",
        lambda shape: shape // np.array([1, 2]),
        "expected [32, 64] for 4-bit codes, got [32, 32]",
    ),
    "a code of neither spelling": Bad(
        "fastdeploy offset",
        f"{PREFIX}.experts.1.down_proj.weight",
        at((0, 0), 0x0F),
        "expected the layer's spelling of codes, got another",
    ),
    "a sign of a code of neither spelling": Bad(
        "fastdeploy signs",
        f"{PREFIX}.experts.1.up_gate_proj.weight",
        at((0, 0), 0x0F),
        "expected the layer's spelling of codes, got another",
    ),
    "a bias that is NaN": Bad(
        "gpt-oss",
        f"{PREFIX}.experts.gate_up_proj_bias",
        at((1, 3), np.nan),
        "expected finite numbers, got nan at [3]",
    ),
    "a scale of activations that is 0": Bad(
        "deepseek",
        f"{PREFIX}.experts.0.w2.input_scale",
        at(0, 0),
        "expected a positive scale, got 0",
    ),
    "scales of activations in a row": Bad(
        "fastdeploy channels",
        f"{PREFIX}.experts.0.down_proj.activation_scale",
        lambda _: np.ones(7, np.float32),
        "expected shape [1] or [], got [7]",
    ),
}


@pytest.mark.parametrize("bad", TENSORS.values(), ids=TENSORS.keys())
def test_tensors(bad: Bad, tmp_path: Path) -> None:
    case = BY_NAME[bad.case]
    tensors = tensors_of(case)
    tensors[bad.tensor] = bad.change(tensors[bad.tensor])
    folder = write_checkpoint(tmp_path, tensors, case.config)
    assert_refused(folder, bad.message, tensor=bad.tensor)


def test_codes_that_tell_no_spelling(tmp_path: Path) -> None:
    tensors = tensors_of(BY_NAME["fastdeploy offset"])
    codes = {n: np.full_like(v, 0x77) for n, v in tensors.items() if n.endswith(".weight")}
    folder = write_checkpoint(tmp_path, tensors | codes, {})
    assert_refused(folder, "expected a code 0 or 15, which tells the spelling, got none anywhere")
    both = {name: np.full_like(values, 0x0F) for name, values in codes.items()}
    folder = write_checkpoint(tmp_path, tensors | both, {})
    assert_refused(folder, "expected codes of 0 to 14 or of 1 to 15, got both 0 and 15")


def float_tensors(value: float, dtype: Any = np.float32) -> Tensors:
    shapes = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
    names = {f"{PREFIX}.experts.0.{name}.weight": shape for name, shape in shapes.items()}
    return {name: np.full(shape, value).astype(dtype) for name, shape in names.items()}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_float_weights_that_are_nan(dtype: Any, tmp_path: Path) -> None:
    tensors = float_tensors(np.nan, dtype)
    if dtype == ml_dtypes.float8_e4m3fn:
        tensors |= {f"{name}_scale_inv": np.ones((1, 1), np.float32) for name in tensors}
    folder = write_checkpoint(tmp_path, tensors, {})
    assert_refused(folder, "gate_proj.weight: expected finite numbers, got nan at [0, 0]")


def test_fp8_products_that_overflow(tmp_path: Path) -> None:
    tensors = float_tensors(448, ml_dtypes.float8_e4m3fn)
    tensors |= {f"{name}_scale_inv": np.full((1, 1), 1e37, np.float32) for name in tensors}
    folder = write_checkpoint(tmp_path, tensors, {})
    assert_refused(folder, "gate_proj.weight: expected finite products, got infinity")


@pytest.mark.parametrize("block", [[128], "128", [0, 128], [True, 1]])
def test_blocks_that_are_none(block: Any, tmp_path: Path) -> None:
    tensors = float_tensors(1, ml_dtypes.float8_e4m3fn)
    tensors |= {f"{name}_scale_inv": np.ones((1, 1), np.float32) for name in tensors}
    folder = write_checkpoint(tmp_path, tensors, method("fp8", weight_block_size=block))
    assert_refused(folder, "weight_block_size: expected two positive integers, got ")
