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
"""Decodes checkpoints that w4afp8 wrote, with compressed-tensors, and compares every bit.

    for name in awq gpt_oss; do
      w4afp8 convert test/data/checkpoints/$name written/$name --to compressed-tensors
    done
    python scripts/check_written_checkpoints.py written

Expected are the values in test/data/checkpoints/*.npz: what the packages that made the sources
decoded from them. Needs what make_checkpoint_fixtures.py needs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from safetensors.torch import load_file

DATA = Path(__file__).resolve().parents[1] / "test" / "data" / "checkpoints"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("written", type=Path, help="folder of checkpoints named as their sources")
    folders = sorted(path for path in parser.parse_args().written.iterdir() if path.is_dir())
    wrong = 0
    for folder in folders:
        results = compare(folder)
        wrong += results.count(False)
        print(f"{folder.name}: {results.count(True)} of {len(results)} matrices are the same")
    sys.exit(1 if wrong or not folders else 0)


def compare(folder: Path) -> list[bool]:
    """Whether each matrix of `folder` is bit for bit what its source's package decoded."""
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(quantization).config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(quantization["format"])
    tensors = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    results = []
    with np.load(DATA / f"{folder.name}.npz") as expected:
        for key in (key for key in expected.files if key.endswith(".sha256")):
            layer, projection, _ = key.split(".")
            for expert, digest in enumerate(expected[key]):
                values = _decode(tensors, layer, expert, projection, compressor, scheme)
                data = values.numpy().astype("<f4").tobytes()
                results.append(hashlib.sha256(data).digest() == digest.tobytes())
    return results


def _decode(
    tensors: dict[str, torch.Tensor],
    layer: str,
    expert: int,
    projection: str,
    compressor: Any,
    scheme: QuantizationScheme,
) -> torch.Tensor:
    """float32 ``[out, in]``; of "up_gate" the gate's rows first."""
    names = ("gate_proj", "up_proj") if projection == "up_gate" else ("down_proj",)
    parts = []
    for name in names:
        place = f"layers.{layer}.mlp.experts.{expert}.{name}.weight_"
        module = {f"weight_{k.split(place)[1]}": v for k, v in tensors.items() if place in k}
        if scheme.weights.type == "int":
            # The package multiplies in the type of the scales.
            module["weight_scale"] = module["weight_scale"].float()
        parts.append(compressor.decompress(module, scheme)["weight"].float())
    return torch.cat(parts)


if __name__ == "__main__":
    main()
