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
"""The operators around the GEMM: each is checked against PyTorch, then timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from w4afp8 import ops
from w4afp8.testing.gpu import as_torch, from_torch
from w4afp8.testing.timing import num_rotations, time_launches

COPY_GBS = 2810.0  # read plus write, of the H100 that the goals were set on
HIDDEN, INTERMEDIATE, EXPERTS, TOPK = 7168, 2048, 256, 8
# Half a unit in the last place of what an operator writes, relative to the number: every result
# below is one rounding of a float32 whose own error is hundreds of times smaller.
FP8_ROUNDING, BFLOAT16_ROUNDING = 2.0**-4, 2.0**-8


@dataclasses.dataclass(frozen=True)
class SmallOp:
    """An operator ready to run. ``error``: relative, 2-norm; 0 where the bytes must be the same."""

    name: str
    tokens: int
    bytes_moved: int
    error_bound: float
    run: Callable[[Any], Any]
    make: Callable[[], Any]  # fresh inputs for run
    error: Callable[[Any, Any], float]  # of run's result for these inputs


def relative(actual: Any, expected: Any) -> float:
    difference = actual.double() - expected.double()
    return float((difference.norm() / expected.double().norm()).item())


def mismatch(actual: Any, expected: Any) -> float:
    """Part of the elements that differ."""
    return float((actual != expected).double().mean().item())


def quantise(x: Any) -> tuple[Any, Any]:
    """FP8 bytes and scales of rows, by PyTorch."""
    rows = x.float()
    largest = torch.full((), 448.0, device="cuda")  # PyTorch multiplies by 1 / a Python number
    scale = torch.clamp(rows.abs().amax(1) / largest, min=torch.finfo(torch.float32).tiny)
    values = (rows * (1 / scale)[:, None]).clamp(-448, 448)
    return values.to(torch.float8_e4m3fn).view(torch.uint8), scale


def random_rows(rows: int, features: int) -> Any:
    return torch.randn(rows, features, device="cuda").to(torch.bfloat16)


def random_ids(tokens: int) -> Any:
    """Distinct experts for every token."""
    return torch.rand(tokens, EXPERTS, device="cuda").topk(TOPK).indices.to(torch.int32)


def quant_per_token(tokens: int) -> SmallOp:
    def error(x: Any, out: Any) -> float:
        bytes_, scale = quantise(as_torch(x))
        return mismatch(as_torch(out[0]).view(torch.uint8), bytes_) + mismatch(
            as_torch(out[1]), scale
        )

    return SmallOp(
        name="quant_per_token",
        tokens=tokens,
        bytes_moved=tokens * HIDDEN * 3,
        error_bound=0.0,
        run=ops.quant_per_token,
        make=lambda: from_torch(random_rows(tokens, HIDDEN)),
        error=error,
    )


def moe_route(tokens: int) -> SmallOp:
    def error(logits: Any, out: Any) -> float:
        scores = torch.softmax(as_torch(logits).double(), 1)
        weights = scores.gather(1, as_torch(out[1]).long())
        largest = scores.topk(TOPK).values
        # Which expert wins a near tie is float32's business; the weights it wins with are not.
        return relative(as_torch(out[0]), largest / largest.sum(1, keepdim=True)) + relative(
            weights, largest
        )

    return SmallOp(
        name="moe_route",
        tokens=tokens,
        bytes_moved=tokens * (EXPERTS * 4 + TOPK * 8),
        # Softmax and two sums over up to 256 terms: some 300 roundings of 2^-24 at the very most.
        error_bound=2.0**-15,
        run=lambda logits: ops.moe_route(logits, topk=TOPK),
        make=lambda: from_torch(torch.randn(tokens, EXPERTS, device="cuda")),
        error=error,
    )


def moe_dispatch(tokens: int) -> SmallOp:
    def error(inputs: Any, out: Any) -> float:
        x, ids = (as_torch(t) for t in inputs)
        permuted, scale, _, row_index = (as_torch(t) for t in out)
        order = torch.sort(ids.flatten(), stable=True).indices
        expected_rows = torch.empty_like(order)
        expected_rows[order] = torch.arange(order.numel(), device="cuda")
        bytes_, scales = quantise(x)
        source = order // TOPK
        return (
            mismatch(row_index.flatten().long(), expected_rows)
            + mismatch(permuted.view(torch.uint8), bytes_[source])
            + mismatch(scale, scales[source])
        )

    return SmallOp(
        name="moe_dispatch",
        tokens=tokens,
        bytes_moved=tokens * HIDDEN * (2 + TOPK),
        error_bound=0.0,
        run=lambda inputs: ops.moe_dispatch(*inputs, experts=EXPERTS),
        make=lambda: (from_torch(random_rows(tokens, HIDDEN)), from_torch(random_ids(tokens))),
        error=error,
    )


def activation_quant(tokens: int) -> SmallOp:
    rows = tokens * TOPK

    def make() -> Any:
        sums = torch.linspace(0, rows, EXPERTS + 1, device="cuda").to(torch.int32)
        return from_torch(random_rows(rows, 2 * INTERMEDIATE)), from_torch(sums)

    def error(inputs: Any, out: Any) -> float:
        gate, up = as_torch(inputs[0]).double().chunk(2, 1)
        values = as_torch(out[0]).float().double() * as_torch(out[1]).double()[:, None]
        return relative(values, torch.nn.functional.silu(gate) * up)

    return SmallOp(
        name="activation_quant",
        tokens=tokens,
        bytes_moved=rows * INTERMEDIATE * 5,
        error_bound=FP8_ROUNDING,
        run=lambda inputs: ops.activation_quant(*inputs),
        make=make,
        error=error,
    )


def moe_combine(tokens: int) -> SmallOp:
    rows = tokens * TOPK

    def make() -> Any:
        index = torch.randperm(rows, device="cuda").to(torch.int32).view(tokens, TOPK)
        weights = torch.rand(tokens, TOPK, device="cuda")
        return tuple(from_torch(t) for t in (random_rows(rows, HIDDEN), weights, index))

    def error(inputs: Any, out: Any) -> float:
        y, weights, index = (as_torch(t) for t in inputs)
        worst = 0.0
        for begin in range(0, tokens, 256):
            part = slice(begin, begin + 256)
            expected = (weights[part].double()[..., None] * y[index[part].long()].double()).sum(1)
            worst = max(worst, relative(as_torch(out)[part], expected))
        return worst

    return SmallOp(
        name="moe_combine",
        tokens=tokens,
        bytes_moved=tokens * HIDDEN * 2 * (TOPK + 1),
        error_bound=BFLOAT16_ROUNDING,
        run=lambda inputs: ops.moe_combine(*inputs),
        make=make,
        error=error,
    )


def pack_weight(experts: int) -> SmallOp:
    out, inside = 7168, 8192

    def error(codes: Any, packed: Any) -> float:
        back = ops.unpack_weight(packed, weight_format="int4", out_features=out, in_features=inside)
        return mismatch(as_torch(back), as_torch(codes))

    return SmallOp(
        name="pack_weight",
        tokens=experts,
        bytes_moved=experts * out * inside,
        error_bound=0.0,
        run=ops.pack_weight,
        make=lambda: from_torch(
            torch.randint(0, 256, (experts, out, inside // 2), dtype=torch.uint8, device="cuda")
        ),
        error=error,
    )


def small_ops(token_counts: tuple[int, ...]) -> Iterator[SmallOp]:
    """Every operator at every size; the packer once, for 8 experts."""
    for tokens in token_counts:
        for make in (quant_per_token, moe_route, moe_dispatch, activation_quant, moe_combine):
            yield make(tokens)
    yield pack_weight(8)


def run_small_op(op: SmallOp, stream: Any) -> dict[str, Any]:
    """Checks and times one operator. To be called inside ``torch_on_paddle_stream``."""
    checked = op.make()
    error = op.error(checked, op.run(checked))
    inputs = [checked, *(op.make() for _ in range(num_rotations(op.bytes_moved) - 1))]
    stream.synchronize()

    def launch_with(one: Any) -> Callable[[], Any]:
        return lambda: op.run(one)

    timing = time_launches([launch_with(one) for one in inputs], stream=stream, replays=3)
    return {
        "op": op.name,
        "tokens": op.tokens,
        "us": round(timing.us, 3),
        "floor_us": round(op.bytes_moved / COPY_GBS / 1e3, 3),
        "error": error,
        "error_bound": op.error_bound,
    }
