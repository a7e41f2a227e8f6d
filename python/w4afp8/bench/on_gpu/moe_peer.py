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
"""The same layer by others, to be timed beside ours: PyTorch in BF16, DeepGEMM in FP8.

Each has a grouped GEMM; what is around it is made of PyTorch's own operators, in one CUDA graph.
Both are told how many copies of tokens the rank gets, and so need no buffer for all.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from w4afp8.bench.moe_cases import MODELS, MoEModel
from w4afp8.bench.on_gpu import moe_data, peer

BFLOAT16, DEEP_GEMM = "PyTorch BF16", "DeepGEMM FP8"
GEMMS_ALONE = " GEMMs"  # after a peer's name
BLOCK = peer.BLOCK
NUM_SETS = 4  # to rotate over: with one busy expert they are still twice the L2 together
# Of DeepGEMM, the greater: weights and activations of both products are rounded to FP8, where
# cases.layer_error_bound has activations alone; sqrt(2) times that, 0.09 at its largest.
ERROR_BOUND = 0.09
_LARGEST = 448.0  # of E4M3


@dataclasses.dataclass(frozen=True)
class Sorted:
    """A batch's copies of tokens that the rank holds, sorted by expert.

    ``token`` and ``weight`` of each copy; its ``expert``; ``ends`` int32 ``[experts]``, the prefix
    sums.
    """

    token: Any
    weight: Any
    expert: Any
    ends: Any


class PeerLayer:
    """One layer of another library: ``run(set)`` gives its output.

    Args:
        model: what it is a part of.
        batch: what it is run on.
        sets: weights to rotate over.
    """

    def __init__(self, model: MoEModel, batch: moe_data.Batch, sets: Sequence[Any]) -> None:
        self.model, self.sets = model, sets
        self.slots = sum(batch.counts)
        self.x, self.logits, self.bias = batch.x, batch.logits, batch.bias
        self.biases = moe_data.make_biases(model)
        self.bounds = torch.arange(1, model.experts + 1, device="cuda")

    def sort(self) -> Sorted:
        """Routes, and brings copies into the order of their experts."""
        weights, ids = moe_data.route(self.model, self.logits, self.bias)
        experts, order = torch.sort(ids.flatten(), stable=True)
        ends = torch.searchsorted(experts, self.bounds, out_int32=True)
        order = order[: self.slots]
        token = order // self.model.topk
        return Sorted(token, weights.flatten()[order], experts[: self.slots], ends)

    def with_bias(self, product: Any, which: int, experts: Any) -> Any:
        """Adds the biases of the rows' experts, where the model has such."""
        return product + self.biases[which][experts] if self.model.has_biases else product

    def combine(self, y: Any, copies: Sorted) -> Any:
        weighted = (y * copies.weight[:, None]).to(torch.bfloat16)
        return torch.zeros_like(self.x).index_add_(0, copies.token, weighted)

    def run(self, weights: Any) -> Any:
        copies = self.sort()
        return self.combine(self.experts(weights, copies), copies)

    def experts(self, weights: Any, copies: Sorted) -> Any:
        """What the experts make of each copy ``[slots, hidden]``."""
        raise NotImplementedError

    def gemms(self) -> Callable[[Any], object]:
        """Its two grouped GEMMs alone, on operands that are made here, given the weights."""
        raise NotImplementedError

    def launches(self) -> list[Callable[[], object]]:
        return [functools.partial(self.run, one) for one in self.sets]

    def gemm_launches(self) -> list[Callable[[], object]]:
        run = self.gemms()
        return [functools.partial(run, one) for one in self.sets]


class BFloat16Layer(PeerLayer):
    """Weights: bfloat16 ``[experts, 2 * intermediate, hidden]`` and ``[experts, hidden,
    intermediate]``.
    """

    def experts(self, weights: Any, copies: Sorted) -> Any:
        up_gate, down = (w.transpose(1, 2) for w in weights)
        hidden = torch._grouped_mm(self.x[copies.token], up_gate, offs=copies.ends)
        gated = moe_data.activate(self.model, self.with_bias(hidden, 0, copies.expert))
        y = torch._grouped_mm(gated, down, offs=copies.ends)
        return self.with_bias(y, 1, copies.expert)

    def gemms(self) -> Callable[[Any], object]:
        copies = self.sort()
        x = self.x[copies.token]
        gated = torch.randn(len(x), self.model.intermediate, device="cuda").to(torch.bfloat16)

        def multiply(weights: Any) -> object:
            up_gate, down = (w.transpose(1, 2) for w in weights)
            torch._grouped_mm(x, up_gate, offs=copies.ends)
            return torch._grouped_mm(gated, down, offs=copies.ends)

        return multiply


class DeepGemmLayer(PeerLayer):
    """Weights: two ``peer.Blocks``. Rows of each expert are padded to 128 (contiguous layout)."""

    def __init__(self, model: MoEModel, batch: moe_data.Batch, sets: Sequence[Any]) -> None:
        super().__init__(model, batch, sets)
        busy = min(model.experts, self.slots)
        self.rows = BLOCK * (self.slots // BLOCK + busy)  # at most so many are needed

    def experts(self, weights: Any, copies: Sorted) -> Any:
        place, expert_of_row = self._places(copies)
        hidden = self._multiply(self.x, weights[0], expert_of_row, place, copies.token)
        experts = expert_of_row.clamp(min=0)
        gated = moe_data.activate(self.model, self.with_bias(hidden, 0, experts))
        y = self._multiply(gated, weights[1], expert_of_row, place, place)
        return self.with_bias(y[place], 1, copies.expert)

    def _places(self, copies: Sorted) -> tuple[Any, Any]:
        """The row of each copy, and the expert of each row or -1."""
        begins = torch.cat([copies.ends.new_zeros(1), copies.ends[:-1]])
        blocks = (copies.ends - begins + BLOCK - 1) // BLOCK
        padded = (blocks.cumsum(0) - blocks) * BLOCK - begins
        place = torch.arange(self.slots, device="cuda") + padded[copies.expert]
        expert_of_row = torch.full((self.rows,), -1, dtype=torch.int32, device="cuda")
        return place, expert_of_row.index_copy_(0, place, copies.expert.to(torch.int32))

    def gemms(self) -> Callable[[Any], object]:
        copies = self.sort()
        place, expert_of_row = self._places(copies)
        gated = torch.randn(self.rows, self.model.intermediate, device="cuda").to(torch.bfloat16)
        first = self._operand(self.x, place, copies.token)
        second = self._operand(gated, place, place)

        def multiply(weights: Any) -> object:
            for operand, blocks in zip((first, second), weights, strict=True):
                deep_gemm_multiply(operand, blocks, expert_of_row)
            return None

        return multiply

    def _multiply(self, x: Any, blocks: Any, expert_of_row: Any, place: Any, source: Any) -> Any:
        return deep_gemm_multiply(self._operand(x, place, source), blocks, expert_of_row)

    def _operand(self, x: Any, place: Any, source: Any) -> tuple[Any, Any]:
        """Rounds x to FP8, and puts its rows ``source`` at the rows ``place``."""
        values, scale = quantise_blocks(x, 1)
        rows = values.new_empty((self.rows, values.shape[1]))
        rows.view(torch.uint8).index_copy_(0, place, values.view(torch.uint8)[source])
        columns = scale.new_ones((scale.shape[1], self.rows))  # the layout that is not copied
        columns.index_copy_(1, place, scale[source].t())
        return rows, columns.t()


def deep_gemm_multiply(operand: tuple[Any, Any], blocks: Any, expert_of_row: Any) -> Any:
    """Bfloat16 ``[rows, out]``; rows of no expert hold anything."""
    import deep_gemm

    shape = (len(operand[0]), blocks.values.shape[1])
    out = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
        operand, (blocks.values, blocks.scale), out, expert_of_row
    )
    return out


def quantise_blocks(x: Any, height: int) -> tuple[Any, Any]:
    """FP8 ``[rows, in]``, in padded to 128, and float32 scales of ``height`` x 128."""
    rows, inside = x.shape
    padded = F.pad(x.float(), (0, -inside % BLOCK, 0, -rows % height))
    tiles = padded.view(padded.shape[0] // height, height, -1, BLOCK)
    scale = tiles.abs().amax((1, 3)).clamp(min=1e-12) / _LARGEST
    values = (tiles / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    return values.view(padded.shape)[:rows], scale


def bfloat16_sets(model: MoEModel, matrices: moe_data.Matrices) -> list[Any]:
    """The weights that ours stand for, rounded, at ``NUM_SETS`` places."""
    pairs = [
        [matrix.to(torch.bfloat16) for matrix in matrices(expert)]
        for expert in range(model.experts)
    ]
    first = tuple(torch.stack(matrices_of) for matrices_of in zip(*pairs, strict=True))
    del pairs
    return [first, *(tuple(w.clone() for w in first) for _ in range(NUM_SETS - 1))]


def deep_gemm_sets(bfloat16: Sequence[Any]) -> list[Any]:
    """The same weights in FP8 with scales of 128 x 128."""
    first = []
    for weight in bfloat16[0]:
        parts = [quantise_blocks(expert, BLOCK) for expert in weight]
        values = torch.stack([part.view(torch.uint8) for part, _ in parts])
        scale = torch.stack([part for _, part in parts])
        first.append(peer.Blocks(values.view(torch.float8_e4m3fn), scale))
    return [
        [peer.Blocks(b.values.clone(), b.scale.clone()) for b in first] for _ in range(NUM_SETS)
    ]


def warm(models: Sequence[MoEModel]) -> list[str]:
    """Compiles DeepGEMM's kernels for these models, many at a time.

    Returns:
        What went wrong, a line each.
    """
    jobs = [(model.name, str(tokens)) for model in models for tokens in model.tokens()]
    with concurrent.futures.ThreadPoolExecutor(peer.WARM_PROCESSES) as pool:
        return [line for line in pool.map(_warm_in_a_process, jobs) if line]


def _warm_in_a_process(job: tuple[str, str]) -> str:
    command = [sys.executable, "-m", "w4afp8.bench.on_gpu.moe_peer", *job]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=peer.WARM_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{' '.join(job)}: stopped after {peer.WARM_SECONDS:.0f} s"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"{' '.join(job)}: {last}" if done.returncode else ""


def compile_for(model: MoEModel, tokens: int) -> None:
    """Multiplies once, with as many rows as the batch of so many tokens will have."""
    batch = moe_data.make_batch(model, tokens, moe_data.make_bias(model))
    layer = DeepGemmLayer(model, batch, [])
    shapes = ((2 * model.intermediate, model.hidden), (model.hidden, model.intermediate))
    weights = [peer.make_blocks((model.experts, *shape)) for shape in shapes]
    layer.run(weights)
    torch.cuda.synchronize()


def main(words: Sequence[str]) -> None:
    """Runs what ``warm`` starts: a model's name, a number of tokens."""
    (model,) = (model for model in MODELS if model.name == words[0])
    compile_for(model, int(words[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
