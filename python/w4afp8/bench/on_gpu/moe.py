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
"""Runs the layer's cases: makes data, checks every result, then times all in turns."""

from __future__ import annotations

import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from w4afp8 import ops
from w4afp8.bench.moe_cases import FORMATS, GEMMS, KERNELS, MoECase, MoEModel
from w4afp8.bench.on_gpu import moe_data, moe_peer
from w4afp8.bench.on_gpu.graphs import captured, replay_us
from w4afp8.bench.turns import REST_SECONDS, medians_in_turns
from w4afp8.layers import W4AFP8MoEFFN
from w4afp8.layers.experts import tokens_hint
from w4afp8.testing.gpu import as_torch, from_torch
from w4afp8.testing.timing import num_rotations

MOST_SETS = 16  # of weights to rotate over
AROUND = tuple(name for name in KERNELS if name not in GEMMS)
HADAMARD = "activation with a Hadamard transform"
# With so few tokens memory binds, and the card stays far from its power limit.
FEW_TOKENS, FEW_REST_SECONDS = 64, 0.02
_LAUNCH_US = 2.0  # least time of anything that is launched, to guess how many fill a graph

Launch = Callable[[], Any]
Contender = Callable[[], float]
Values = dict[str, Any]


class Timed:
    """Things to time in turns, each captured as a CUDA graph, by name."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.contenders: dict[str, Contender] = {}

    def add(self, name: str, launches: Sequence[Launch], floor_us: float) -> None:
        graph, repeats = captured(launches, floor_us + _LAUNCH_US, self._stream)
        self.contenders[name] = lambda: replay_us(graph, repeats)


@dataclasses.dataclass
class LayerBench:
    """One model's layer in every format. ``say`` prints a line of progress."""

    model: MoEModel
    stream: Any
    say: Callable[[str], None]
    with_peer: bool
    rounds: int

    def __post_init__(self) -> None:
        self.bias = moe_data.make_bias(self.model)
        self.sets: dict[str, list[moe_data.LayerWeights]] = {}
        self.layers: dict[str, W4AFP8MoEFFN] = {}
        for form in FORMATS:
            first = moe_data.make_layer_weights(self.model, form, keep_codes=True)
            self.sets[form] = [first]
            self.layers[form] = moe_data.make_layer(self.model, first, self.bias)
        self._peer_sets: dict[str, list[Any]] = {}

    def run(self, tokens: int) -> list[Values]:
        """Checks and times the layer on some tokens: the values of one row for each format."""
        batch = moe_data.make_batch(self.model, tokens, self.bias)
        cases = {form: MoECase(self.model, tokens, batch.counts, form) for form in FORMATS}
        prepared = {form: self._prepare(case, batch) for form, case in cases.items()}
        peers = dict(self._peers(cases[FORMATS[0]], batch)) if self.with_peer else {}
        timed = Timed(self.stream)
        for form, (steps, _) in prepared.items():
            self._add_cold(timed, cases[form], steps)
        self._add_around(timed, cases[FORMATS[0]], prepared[FORMATS[0]][0])
        self._add_peers(timed, peers, cases[FORMATS[0]])
        rest = FEW_REST_SECONDS if tokens <= FEW_TOKENS else REST_SECONDS
        medians = medians_in_turns(timed.contenders, self.rounds, rest=lambda: time.sleep(rest))
        others = [name for peer in peers for name in (peer, peer + moe_peer.GEMMS_ALONE)]
        peers_us = {name: round(medians[name], 3) for name in others if name in medians}
        return [
            {
                **cases[form].row_values(),
                **row_times(medians, form),
                **{"hadamard_us": round(medians[HADAMARD], 3), "error": error},
                **best_of(peers_us),
            }
            for form, (_, error) in prepared.items()
        ]

    def _sets_of(self, case: MoECase) -> list[moe_data.LayerWeights]:
        """As many sets of weights as make every launch find none of its own in L2."""
        touched = sum(gemm.weight_bytes() for gemm in case.gemms())
        wanted = num_rotations(touched, MOST_SETS)
        sets = self.sets[case.weight_format]
        while len(sets) < wanted:
            sets.append(
                moe_data.make_layer_weights(self.model, case.weight_format, keep_codes=False)
            )
        return sets[:wanted]

    def _prepare(self, case: MoECase, batch: moe_data.Batch) -> tuple[dict[str, Launch], float]:
        """The layer and its steps as launches, and the error of its result."""
        self._sets_of(case)
        layer, first = self.layers[case.weight_format], self.sets[case.weight_format][0]
        moe_data.take_weights(layer, first)
        x, logits = from_torch(batch.x), from_torch(batch.logits)
        parts = steps_of(case, layer, x, logits)
        steps = {"layer": lambda: layer(x, logits), **parts}
        expected = moe_data.reference(case, moe_data.dequantised(case, first), batch)
        out = moe_data.checked_output(steps["layer"])
        return steps, moe_data.relative_error(as_torch(out), expected)

    def _add_around(self, timed: Timed, case: MoECase, steps: dict[str, Launch]) -> None:
        """The launches around the GEMMs, which know nothing of the weights' format."""
        floors = case.floors_us()
        for name in AROUND:
            timed.add(name, [steps[name]], floors[name])
        timed.add(HADAMARD, [steps[HADAMARD]], floors["activation"])

    def _add_cold(self, timed: Timed, case: MoECase, steps: dict[str, Launch]) -> None:
        """What reads weights: the layer, its GEMMs together and each of them."""
        form, floors = case.weight_format, case.floors_us()
        layer, sets = self.layers[form], self._sets_of(case)

        def gemms() -> None:
            for name in GEMMS:
                steps[name]()

        gemm_us = sum(floors[name] for name in GEMMS)
        cold = {"layer": (steps["layer"], sum(floors.values())), "gemms": (gemms, gemm_us)}
        cold |= {name: (steps[name], floors[name]) for name in GEMMS}
        for name, (launch, floor_us) in cold.items():
            timed.add(f"{form} {name}", rotated(layer, sets, launch), floor_us)

    def _peers(
        self, case: MoECase, batch: moe_data.Batch
    ) -> Iterator[tuple[str, moe_peer.PeerLayer]]:
        """Others' layers whose results are right; says which are not, or do not run."""
        matrices = moe_data.dequantised(case, self.sets[case.weight_format][0])
        expected = moe_data.reference(case, matrices, batch)
        kinds = {
            moe_peer.BFLOAT16: moe_peer.BFloat16Layer,
            moe_peer.DEEP_GEMM: moe_peer.DeepGemmLayer,
        }
        for name, kind in kinds.items():
            try:
                layer = kind(self.model, batch, self._weights_of(name, matrices))
                error = moe_data.relative_error(layer.run(layer.sets[0]), expected)
            except Exception as problem:  # whatever another library throws
                self.say(f"{name} does not run {case.tokens} tokens: {problem}")
                continue
            if error <= moe_peer.ERROR_BOUND:
                yield name, layer
            else:
                self.say(f"{name}, {case.tokens} tokens: error {error:.2e}, not timed")

    def _weights_of(self, name: str, matrices: moe_data.Matrices) -> list[Any]:
        if moe_peer.BFLOAT16 not in self._peer_sets:
            bfloat16 = moe_peer.bfloat16_sets(self.model, matrices)
            self._peer_sets[moe_peer.BFLOAT16] = bfloat16
            self._peer_sets[moe_peer.DEEP_GEMM] = moe_peer.deep_gemm_sets(bfloat16)
        return self._peer_sets[name]

    def _add_peers(self, timed: Timed, peers: dict[str, moe_peer.PeerLayer], case: MoECase) -> None:
        for name, layer in peers.items():
            floor_us = 2 * sum(case.floors_us()[gemm] for gemm in GEMMS)
            try:
                timed.add(name, layer.launches(), floor_us)
                timed.add(name + moe_peer.GEMMS_ALONE, layer.gemm_launches(), floor_us)
            except Exception as problem:  # whatever another library throws
                self.say(f"{name} is not captured with {case.tokens} tokens: {problem}")

    def close(self) -> None:
        """Gives the memory back."""
        self.sets.clear()
        self.layers.clear()
        self._peer_sets.clear()
        gc.collect()
        torch.cuda.empty_cache()


def steps_of(case: MoECase, layer: W4AFP8MoEFFN, x: Any, logits: Any) -> dict[str, Launch]:
    """Each launch of the layer on its own, on what the launches before it made.

    As the layer has them: who applies the activation is the case's.
    """
    topk_weights, topk_ids = layer.router(x, logits)
    experts = layer.num_experts
    permuted, scale, tokens, row_index = ops.moe_dispatch(x, topk_ids, experts=experts)
    copies = x.shape[0] * layer.router.topk
    hint = {"max_tokens": tokens_hint(copies, layer.router.num_experts)}  # as the layer gives it

    def multiply() -> Any:
        first = layer.activation if case.fuses else "none"
        return layer.up_gate_proj(permuted, tokens, scale, activation=first, **hint)

    hidden = multiply()
    second = "none" if case.fuses else layer.activation
    quantise = functools.partial(ops.activation_quant, hidden, tokens, activation=second)
    gated, gated_scale = quantise()
    y = layer.down_proj(gated, tokens, gated_scale, **hint)
    return {
        "route": lambda: layer.router(x, logits),
        "dispatch": lambda: ops.moe_dispatch(x, topk_ids, experts=experts),
        "gemm_1": multiply,
        "activation": quantise,
        HADAMARD: lambda: quantise(hadamard_block_size=case.model.hadamard_block_size),
        "gemm_2": lambda: layer.down_proj(gated, tokens, gated_scale, **hint),
        "combine": lambda: ops.moe_combine(y, topk_weights, row_index),
    }


def rotated(
    layer: W4AFP8MoEFFN, sets: Sequence[moe_data.LayerWeights], launch: Launch
) -> list[Launch]:
    """A launch for each set of weights."""

    def launch_with(weights: moe_data.LayerWeights) -> Launch:
        def run() -> Any:
            moe_data.take_weights(layer, weights)
            return launch()

        return run

    return [launch_with(one) for one in sets]


def row_times(medians: dict[str, float], form: str) -> Values:
    """The keys of a row that say how long one format took."""
    return {
        "us": round(medians[f"{form} layer"], 3),
        "gemm_us": round(medians[f"{form} gemms"], 3),
        "kernels_us": {
            name: round(medians[name if name in AROUND else f"{form} {name}"], 3)
            for name in KERNELS
        },
    }


def best_of(peers_us: dict[str, float]) -> Values:
    """The keys of a row that say what was timed beside it."""
    layers = [name for name in peers_us if not name.endswith(moe_peer.GEMMS_ALONE)]
    if not layers:
        return {"peer": None, "peer_us": None, "peers_us": peers_us}
    best = min(layers, key=lambda name: peers_us[name])
    return {"peer": best, "peer_us": peers_us[best], "peers_us": peers_us}
