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
"""Makes the checkpoints under test/data/checkpoints, with the ecosystems' own packages.

    python -m venv fixtures && . fixtures/bin/activate
    pip install torch compressed-tensors transformers
    pip install --no-deps gptqmodel autoawq
    pip install accelerate defuser device-smi logbar pillow pypcre requests threadpoolctl tokenicer
    python scripts/make_checkpoint_fixtures.py

The versions that made the committed files are in test/data/checkpoints/README.md, which this script
writes too. The tests need none of the packages.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from checkpoint_fixtures import (
    compressed_tensors_files,
    float_files,
    gpt_oss_files,
    gptq_awq_files,
    written_rules,
)
from checkpoint_fixtures.fixture import Fixture, write

ROOT = Path(__file__).resolve().parents[1]
MAKERS: tuple[Callable[[], Fixture], ...] = (
    compressed_tensors_files.group,
    compressed_tensors_files.channel,
    compressed_tensors_files.mxfp4,
    gptq_awq_files.gptq_v1,
    gptq_awq_files.gptq_v2,
    gptq_awq_files.awq,
    gpt_oss_files.gpt_oss,
    written_rules.deepseek,
    written_rules.fastdeploy,
    written_rules.fastdeploy_offset,
    written_rules.fastdeploy_sign_magnitude,
    float_files.fp8_block,
    float_files.bfloat16,
)


README = """# Checkpoints made by others' code

Each folder is a small checkpoint in the layout of its ecosystem; the `.npz` beside it says what its
tensors stand for, computed by the same package's own code. `scripts/make_checkpoint_fixtures.py`
writes all of it, this file too; the tests need none of the packages.

| folder | weights written and decoded by | what it has |
|---|---|---|
{rows}

Where no package runs on a CPU ("the written rule") plain loops write the layout number by number.
The outputs of layers are computed in float64 by transformers {transformers} (on torch {torch}):
Qwen3-MoE's block, DeepSeek-V3's, gpt-oss's. float32 scales were given to the decoders, so that
products of codes and scales are float32 numbers and not rounded to the packages' half precision.

## Arrays of an `.npz`
`L.` is the index of a layer.

| name | what |
|---|---|
| `L.up_gate.sha256`, `L.down.sha256` | uint8 `[experts, 32]`: of all float32 values |
| `L.up_gate.rows`, `L.up_gate.values` | which rows stand here as numbers; `L.down` too |
| `L.up_gate_bias`, `L.down_bias` | float32 `[experts, out]`; the gate's rows first |
| `L.x` | float32 `[tokens, hidden]`; rounding to FP8 by rows changes nothing |
| `L.logits`, `L.topk_weights`, `L.topk_ids` | the router's |
| `L.correction_bias` | float32 `[experts]`, for the choice of experts |
| `L.out` | float64 `[tokens, hidden]`: the layer's output, weights as stored, no rounding between |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "test" / "data" / "checkpoints")
    out = parser.parse_args().out
    rows = []
    for maker in MAKERS:
        fixture = maker()
        write(fixture, out)
        packages = ", ".join(f"{name} {version(name)}" for name in fixture.made_by)
        what = (maker.__doc__ or "").splitlines()[0]
        rows.append(f"| `{fixture.name}` | {packages or 'the written rule'} | {what} |")
    versions = {name: version(name) for name in ("transformers", "torch")}
    (out / "README.md").write_text(README.format(rows="\n".join(rows), **versions))


if __name__ == "__main__":
    main()
