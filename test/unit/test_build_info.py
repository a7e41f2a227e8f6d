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
"""The extension as it was built: what it says of itself, and what it needs to be loaded."""

from __future__ import annotations

import doctest
import os
import pathlib
import shutil
import subprocess
import sys

import paddle
import pytest

import w4afp8
from w4afp8 import _extension, ops

pytestmark = pytest.mark.cpu_only

PACKAGE = pathlib.Path(w4afp8.__file__).parent
LIBRARY = PACKAGE / "_ops_pd_.so"
# quant_per_token_and_head is quant_per_token of three dimensions.
OPERATORS = set(ops.__all__) - {"force_route", "quant_per_token_and_head"}


def run_python(code: str, **environment: str) -> str:
    """Runs a new interpreter; returns what it printed last."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_build_info() -> None:
    info = w4afp8.build_info()
    assert info["version"] == w4afp8.__version__
    assert info["paddle_version"] == paddle.__version__
    facts = (info["cuda_version"], info["cutlass_version"], info["arch"])
    if info["cuda"]:
        assert facts[2] == "sm_90a"
        assert tuple(map(int, str(facts[0]).split("."))) >= (12, 4)
        assert str(facts[1])[0].isdigit()
    else:
        assert facts == (None, None, None)


def test_both_routes_of_every_operator_exist() -> None:
    extension = _extension.extension()
    assert {name for name in OPERATORS if hasattr(extension, name)} == OPERATORS
    assert {name for name in OPERATORS if hasattr(extension, f"w4afp8_{name}")} == OPERATORS
    registered = paddle.base.framework.OpProtoHolder.instance().op_proto_map
    assert {f"w4afp8_{name}" for name in OPERATORS} <= set(registered)


def test_no_driver_and_no_cuda_library_is_needed() -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    text = subprocess.run([readelf, "-d", LIBRARY], capture_output=True, text=True, check=True)
    needed = [line for line in text.stdout.splitlines() if "(NEEDED)" in line]
    assert any("libpaddle" in line for line in needed)
    assert not [line for line in needed if "libcuda" in line or "libnv" in line]


def test_the_static_cuda_runtime_is_hidden() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    command = [nm, "--dynamic", LIBRARY]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in text.splitlines()]
    assert "PyInit__ops" in names
    assert not [name for name in names if name.startswith(("cuda", "cu", "__cuda"))]


def test_import_sees_no_gpu() -> None:
    code = "import w4afp8; print(w4afp8.build_info()['version'])"
    assert run_python(code, CUDA_VISIBLE_DEVICES="") == w4afp8.__version__


def test_import_without_the_extension(tmp_path: pathlib.Path) -> None:
    bare = tmp_path / "w4afp8"
    shutil.copytree(PACKAGE, bare, ignore=shutil.ignore_patterns("_ops*", "__pycache__"))
    code = "import w4afp8\ntry: w4afp8.build_info()\nexcept ImportError as error: print(error)\n"
    message = run_python(code, PYTHONPATH=str(tmp_path))
    assert "build them with 'python3 setup_ops.py build_ext --inplace'" in message


def test_import_loads_no_plotting_and_no_command_line() -> None:
    code = (
        "import paddle, sys; before = set(sys.modules); import w4afp8, w4afp8.ops\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'matplotlib', 'rich', 'tokenizers', 'safetensors', 'argparse'}))"
    )
    assert run_python(code) == "[]"


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = w4afp8.nothing
    assert set(w4afp8.__all__) <= set(dir(w4afp8))


def test_examples_in_the_docstrings() -> None:
    # An example for every operator, in the module that defines it.
    modules = {sys.modules[getattr(ops, name).__module__] for name in OPERATORS}
    found = [doctest.testmod(module) for module in modules]
    assert sum(result.attempted for result in found) >= len(OPERATORS)
    assert not any(result.failed for result in found)
