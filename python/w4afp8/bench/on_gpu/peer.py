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
"""DeepGEMM's FP8 grouped GEMM (package ``sgl-deep-gemm``), to be timed beside ours.

It multiplies FP8 activations, a scale for each token and 128 in_features, by FP8 weights, a scale
for each block of 128 x 128. Its kernels are compiled when they are first used: ``warm`` does that
for many shapes at once, in processes of their own.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from w4afp8.bench.cases import error_bound
from w4afp8.bench.goals import Shape
from w4afp8.bench.on_gpu.random_fp8 import random_fp8
from w4afp8.testing.timing import num_rotations

NAME = "DeepGEMM FP8"
BLOCK = 128
WARM_PROCESSES = 14
WARM_SECONDS = 120.0
# The contiguous layout pads every expert to 128 rows: with fewer tokens it only has more to do.
CONTIGUOUS_FROM = 64

Layout = Literal["masked", "contiguous"]
Launch = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Weights: float8_e4m3fn ``[experts, out, in]``, float32 ``[experts, out/128, in/128]``."""

    values: Any
    scale: Any


def _ceil_div(value: int, unit: int) -> int:
    return -(-value // unit)


def peer_shape(shape: Shape) -> Shape:
    """With in_features padded to whole blocks, as its users must."""
    experts, out, inside = shape
    return experts, out, BLOCK * _ceil_div(inside, BLOCK)


def make_blocks(shape: Shape) -> Blocks:
    experts, out, inside = peer_shape(shape)
    scale_shape = (experts, _ceil_div(out, BLOCK), _ceil_div(inside, BLOCK))
    scale = (0.5 + torch.rand(scale_shape, device="cuda")) * 1e-3
    return Blocks(random_fp8(experts, out, inside), scale)


def make_sets(shape: Shape) -> list[Blocks]:
    """Weight sets to rotate over, so that none is found in L2."""
    return [make_blocks(shape) for _ in range(num_rotations(math.prod(peer_shape(shape))))]


def make_token_scale(batches: tuple[int, ...], rows: int, inside: int) -> Any:
    """Float32 ``[*batches, rows, in / 128]``, rows contiguous: the layout that is not copied."""
    blocks = _ceil_div(inside, BLOCK)
    aligned = 4 * _ceil_div(rows, 4)
    scale = 0.5 + torch.rand((*batches, blocks, aligned), device="cuda")
    return scale.transpose(-1, -2)[..., :rows, :]


@dataclasses.dataclass(frozen=True)
class PeerRun:
    """One layout, ready: a launch for each weight set, and the parts to check its output with."""

    layout: Layout
    launches: tuple[Launch, ...]
    x: Any  # torch [experts, rows, in]
    x_scale: Any
    out: Any  # torch.bfloat16 [experts, rows, out]
    tokens: int

    def error(self, blocks: Blocks) -> float:
        """Relative error of the first and the last expert against float64."""
        difference = norm = 0.0
        for expert in (0, self.x.shape[0] - 1):
            x = _scaled(self.x[expert, : self.tokens], self.x_scale[expert, : self.tokens])
            scale = blocks.scale[expert].repeat_interleave(BLOCK, 0)[: blocks.values.shape[1]]
            reference = x @ _scaled(blocks.values[expert], scale).t()
            result = self.out[expert, : self.tokens].double()
            difference += float((result - reference).square().sum().item())
            norm += float(reference.square().sum().item())
        return math.sqrt(difference / norm)


def _scaled(values: Any, scale: Any) -> Any:
    """Float64 ``[rows, in]``; a scale for each row and 128 columns."""
    columns = scale.double().repeat_interleave(BLOCK, 1)[:, : values.shape[1]]
    return values.float().double() * columns


def masked(shape: Shape, tokens: int, sets: Sequence[Blocks]) -> PeerRun:
    """``[experts, rows, in]`` with the number of tokens of each expert."""
    import deep_gemm

    experts, out, inside = peer_shape(shape)
    rows = BLOCK * _ceil_div(tokens, BLOCK)
    x, scale = random_fp8(experts, rows, inside), make_token_scale((experts,), rows, inside)
    d = torch.empty(experts, rows, out, dtype=torch.bfloat16, device="cuda")
    counts = torch.full((experts,), tokens, dtype=torch.int32, device="cuda")

    def launch_with(blocks: Blocks) -> Launch:
        return lambda: deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked(
            (x, scale), (blocks.values, blocks.scale), d, counts, tokens
        )

    return PeerRun("masked", tuple(launch_with(b) for b in sets), x, scale, d, tokens)


def contiguous(shape: Shape, tokens: int, sets: Sequence[Blocks]) -> PeerRun:
    """Rows of all experts one after another, each expert's padded to 128."""
    import deep_gemm

    experts, out, inside = peer_shape(shape)
    rows = BLOCK * _ceil_div(tokens, BLOCK)
    x, scale = random_fp8(experts * rows, inside), make_token_scale((), experts * rows, inside)
    d = torch.empty(experts * rows, out, dtype=torch.bfloat16, device="cuda")
    row = torch.arange(experts * rows, device="cuda")
    expert_of_row = torch.where(row % rows < tokens, row // rows, -1).to(torch.int32)

    def launch_with(blocks: Blocks) -> Launch:
        return lambda: deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
            (x, scale), (blocks.values, blocks.scale), d, expert_of_row
        )

    by_expert = [t.view(experts, rows, -1) for t in (x, scale.contiguous(), d)]
    launches = tuple(launch_with(b) for b in sets)
    return PeerRun("contiguous", launches, by_expert[0], by_expert[1], by_expert[2], tokens)


def checked_runs(shape: Shape, tokens: int, sets: Sequence[Blocks]) -> list[PeerRun]:
    """The layouts to time. Each has run once, and its result was right.

    Raises:
        RuntimeError: It was not: then a time would mean nothing.
    """
    layouts = [masked, contiguous] if tokens >= CONTIGUOUS_FROM else [masked]
    runs = [layout(shape, tokens, sets) for layout in layouts]
    # It promotes to float32 every 128 in_features. Twice the mean error: few elements scatter
    # around the mean, and a wrong layout is off by 1.
    bound = 2 * error_bound("bfloat16", BLOCK)
    for run in runs:
        run.out.fill_(float("nan"))
        run.launches[0]()
        error = run.error(sets[0])
        if not error <= bound:
            raise RuntimeError(f"{NAME} {run.layout}: error {error:.2e}, bound {bound:.2e}")
    return runs


def warm(wanted: Sequence[tuple[Shape, int]]) -> list[str]:
    """Compiles what these shapes and tokens per expert need, many at a time.

    Returns:
        What went wrong, a line each.
    """
    by_shape: dict[Shape, list[int]] = {}
    for shape, tokens in wanted:
        by_shape.setdefault(shape, []).append(tokens)
    jobs = []
    for shape, counts in by_shape.items():
        jobs.append(["masked", *shape, *counts])
        jobs.append(["contiguous", *shape, *(t for t in counts if t >= CONTIGUOUS_FROM)])
    with concurrent.futures.ThreadPoolExecutor(WARM_PROCESSES) as pool:
        return [line for line in pool.map(_warm_in_a_process, jobs) if line]


def _warm_in_a_process(job: list[object]) -> str:
    words = [str(word) for word in job]
    command = [sys.executable, "-m", "w4afp8.bench.on_gpu.peer", *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=WARM_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{' '.join(words)}: stopped after {WARM_SECONDS:.0f} s"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"{' '.join(words)}: {last}" if done.returncode else ""


def compile_all(layout: Layout, shape: Shape, counts: Sequence[int]) -> None:
    """Runs a layout once for each number of tokens."""
    run = masked if layout == "masked" else contiguous
    blocks = make_blocks(shape)
    for tokens in counts:
        run(shape, tokens, [blocks]).launches[0]()
    torch.cuda.synchronize()


def main(words: Sequence[str]) -> None:
    """Runs what ``warm`` starts: layout, experts, out_features, in_features, numbers of tokens."""
    experts, out, inside, *counts = (int(word) for word in words[1:])
    layout: Layout = "masked" if words[0] == "masked" else "contiguous"
    compile_all(layout, (experts, out, inside), counts)


if __name__ == "__main__":
    main(sys.argv[1:])
