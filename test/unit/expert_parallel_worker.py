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
"""One process of the tests of expert parallelism: expert_parallel_launch.py starts it.

python expert_parallel_worker.py <folder for results> <what to do> [phase] [rank]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from expert_parallel_cases import (
    CASES,
    MAX_DECODE_TOKENS,
    PHASES,
    SIZE,
    Case,
    all_tokens,
    cases_of,
    whole_layer,
)

from w4afp8.distributed import ExchangeError, W4AFP8ExpertParallelMoEFFN
from w4afp8.testing.tensors import tensor_bits


def make_layer(case: Case) -> W4AFP8ExpertParallelMoEFFN:
    return W4AFP8ExpertParallelMoEFFN.from_layer(
        whole_layer(case),
        experts_per_rank=case.experts_per_rank,
        max_decode_tokens=MAX_DECODE_TOKENS,
    )


def own_tokens(case: Case) -> list[Any]:
    own = case.tokens_of(dist.get_rank())
    return [None if t is None else t[own].clone() for t in all_tokens(case)]


def run_cases(folder: Path) -> None:
    """Writes this rank's outputs of all cases and phases, as bits."""
    outputs = {}
    for name, case in cases_of(dist.get_world_size()).items():
        layer = make_layer(case)
        for phase in PHASES:
            outputs[f"{name}/{phase}"] = tensor_bits(layer(*own_tokens(case), phase=phase))
    np.savez(folder / f"{dist.get_rank()}.npz", **outputs)


def lose_a_rank(folder: Path, how: str, phase: str, lost: int) -> None:
    """A first call of all ranks; in the second one rank is missing, and the others say so."""
    case = CASES["four ranks"]
    layer = make_layer(case)
    x, logits = own_tokens(case)
    layer(x, logits, phase=phase)
    if dist.get_rank() == lost:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        too_many = MAX_DECODE_TOKENS + 1
        x = paddle.zeros([too_many, SIZE], dtype=case.dtype)
        layer(x, paddle.zeros([too_many, case.experts]), phase="decode")
    start = time.monotonic()
    try:
        layer(x, logits, phase=phase)
    except ExchangeError as error:
        (folder / f"{dist.get_rank()}.txt").write_text(f"{time.monotonic() - start}\n{error}")
        sys.exit(5)


def main() -> None:
    paddle.set_device("cpu")
    dist.init_parallel_env()
    folder, what, *rest = sys.argv[1:]
    if what == "cases":
        run_cases(Path(folder))
    else:
        lose_a_rank(Path(folder), what, rest[0], int(rest[1]))


if __name__ == "__main__":
    main()
