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
"""Times one checkpoint layer on its way into W4AFP8MoEFFN, in each 4-bit format.

Writes a layer of random codes to a temporary folder, so that the files are in the page cache, and
prints the seconds of reading, of packing and of the whole load, each the best of some runs.

    python scripts/time_loading.py                       # 128 experts x (2 x 768) x 2048 on the CPU
    python scripts/time_loading.py --device gpu
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from safetensors.numpy import save_file

from w4afp8.checkpoint import Checkpoint, load_moe_ffn, open_checkpoint
from w4afp8.quant import pack
from w4afp8.testing.gpu import device_name, gpu_place

PREFIX = "model.layers.0.mlp"
GROUP = 128
Fields = dict[str, np.ndarray]
Spell = Callable[[np.random.Generator, int, int], Fields]


def compressed_tensors(rng: np.random.Generator, out: int, in_features: int) -> Fields:
    return {
        "weight_packed": words(rng, out, in_features // 8),
        "weight_scale": np.ones((out, in_features // GROUP), np.float16),
        "weight_shape": np.array([out, in_features]),
    }


def mxfp4(rng: np.random.Generator, out: int, in_features: int) -> Fields:
    return {
        "weight_packed": rng.integers(0, 256, (out, in_features // 2), np.uint8),
        "weight_scale": rng.integers(100, 130, (out, in_features // 32), np.uint8),
    }


def deepseek(rng: np.random.Generator, out: int, in_features: int) -> Fields:
    return {
        "weight": rng.integers(-128, 128, (out, in_features // 2), np.int8),
        "weight_scale_inv": np.ones((out, in_features // GROUP), np.float32),
    }


def gptq(rng: np.random.Generator, out: int, in_features: int) -> Fields:
    return {
        "qweight": words(rng, in_features // 8, out),
        "qzeros": np.full((in_features // GROUP, out // 8), 0x77777777, np.int32),
        "scales": np.ones((in_features // GROUP, out), np.float16),
    }


def awq(rng: np.random.Generator, out: int, in_features: int) -> Fields:
    return {
        "qweight": words(rng, in_features, out // 8),
        "qzeros": np.full((in_features // GROUP, out // 8), 0x88888888, np.uint32).view(np.int32),
        "scales": np.ones((in_features // GROUP, out), np.float16),
    }


def fastdeploy(rng: np.random.Generator, out: int, in_features: int) -> Fields:
    return {
        "quant_weight": rng.integers(-128, 128, (in_features // 2, out), np.int8),
        "weight_scale": np.ones((out, in_features // GROUP), np.float32),
    }


def fastdeploy_offset(rng: np.random.Generator, out: int, in_features: int) -> Fields:
    return fastdeploy_operator(rng.integers(0, 15, (2, out, in_features // 2), np.uint8))


def fastdeploy_signs(rng: np.random.Generator, out: int, in_features: int) -> Fields:
    return fastdeploy_operator(rng.integers(1, 16, (2, out, in_features // 2), np.uint8))


def fastdeploy_operator(codes: np.ndarray) -> Fields:
    """From the codes of both halves of the bytes."""
    high, low = codes
    out, pairs = high.shape
    return {
        "weight": high << np.uint8(4) | low,
        "weight_scale": np.ones((out // GROUP, 2 * pairs // GROUP, GROUP), np.float32),
    }


FORMATS: dict[str, Spell] = {
    spell.__name__: spell
    for spell in (
        *(compressed_tensors, mxfp4, deepseek, gptq, awq),
        *(fastdeploy, fastdeploy_offset, fastdeploy_signs),
    )
}


def words(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Random codes, eight to an int32."""
    return rng.integers(-(2**31), 2**31, (rows, columns), np.int32)


def write_layer(folder: Path, spell: Spell, experts: int, hidden: int, intermediate: int) -> None:
    """A checkpoint of one layer; all experts have the same numbers, each its own copy of them."""
    rng = np.random.default_rng(0)
    sizes = {"gate_proj": (intermediate, hidden), "up_proj": (intermediate, hidden)}
    sizes["down_proj"] = (hidden, intermediate)
    fields = {name: spell(rng, *size) for name, size in sizes.items()}
    tensors = {
        f"{PREFIX}.experts.{expert}.{projection}.{field}": values
        for expert in range(experts)
        for projection, named in fields.items()
        for field, values in named.items()
    }
    (folder / "config.json").write_text(json.dumps({"hidden_act": "silu"}))
    save_file(tensors, folder / "model.safetensors")


def read_all(checkpoint: Checkpoint) -> None:
    layer = checkpoint.layers[0]
    for expert in range(layer.experts):
        checkpoint.read_expert(layer, expert)
        checkpoint.release()


def pack_all(checkpoint: Checkpoint) -> None:
    """Packs one expert as often as there are experts: no reading in between."""
    layer = checkpoint.layers[0]
    weights = checkpoint.read_expert(layer, 0)
    for _ in range(layer.experts):
        pack(weights.up_gate)
        pack(weights.down)
    synchronize()


def load(checkpoint: Checkpoint) -> None:
    load_moe_ffn(checkpoint, layer=0, topk=1, progress=False)
    synchronize()


def synchronize() -> None:
    if paddle.device.get_device() != "cpu":
        paddle.device.synchronize()


def best_seconds(action: Callable[[Checkpoint], None], checkpoint: Checkpoint, runs: int) -> float:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        action(checkpoint)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _device(name: str) -> str:
    """Paddle's name of the device; a GPU may come by a plugin."""
    place = gpu_place() if name == "gpu" else None
    if name == "gpu" and place is None:
        sys.exit("Paddle sees no GPU here: nothing was timed")
    return "cpu" if place is None else device_name(place)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=768)
    parser.add_argument("--runs", type=int, default=3)
    options: Any = parser.parse_args(argv)
    paddle.device.set_device(_device(options.device))
    sizes = (options.experts, options.hidden, options.intermediate)
    print(f"{'format':20}{'read s':>8}{'pack s':>8}{'load s':>8}")
    for name in options.formats:
        with tempfile.TemporaryDirectory() as folder:
            write_layer(Path(folder), FORMATS[name], *sizes)
            checkpoint = open_checkpoint(folder)
            row = [best_seconds(a, checkpoint, options.runs) for a in (read_all, pack_all, load)]
            print(f"{name:20}" + "".join(f"{seconds:8.2f}" for seconds in row))


if __name__ == "__main__":
    main()
