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
"""Starts real processes over gloo on this machine, and ends them all after a time limit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).with_name("expert_parallel_worker.py")
PATHS = [str(WORKER.parent), str(WORKER.parents[2] / "python")]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its code (negative: by that signal) and what it wrote to stderr."""

    code: int
    errors: str


def free_endpoints(number: int) -> list[str]:
    """Endpoints that were free just now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def launch(world_size: int, folder: Path, *arguments: str, seconds: float = 240) -> list[Ended]:
    """Runs the worker on every rank.

    Raises:
        subprocess.TimeoutExpired: a rank was not done in time; all are ended.
    """
    endpoints = free_endpoints(world_size)
    deadline = time.monotonic() + seconds
    processes, logs = [], [folder / f"{rank}.log" for rank in range(world_size)]
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, str(WORKER), str(folder), *arguments],
                        env=_environment(rank, endpoints),
                        stdout=subprocess.DEVNULL,
                        stderr=file,
                    )
                )
        codes = [p.wait(timeout=max(0.1, deadline - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [Ended(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


def _environment(rank: int, endpoints: list[str]) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(PATHS),
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINERS_NUM": str(len(endpoints)),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
        "PADDLE_MASTER": endpoints[0],
        "PADDLE_DISTRI_BACKEND": "gloo",
        "OMP_NUM_THREADS": "1",
    }
