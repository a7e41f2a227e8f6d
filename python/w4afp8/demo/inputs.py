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
"""What the demonstration computes from, and a small copy of it for a machine without the model."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from w4afp8.demo.encoder import Weights
from w4afp8.demo.errors import DemoError
from w4afp8.demo.model_files import find_model_files, load_weights, tokenize

_WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class DemoInputs:
    """The model and tokenised sentences.

    ids and mask are int64 ``[sentences, tokens]``; weights are the checkpoint's arrays by name.
    """

    sentences: tuple[str, ...]
    ids: np.ndarray
    mask: np.ndarray
    weights: Weights


def load_inputs(sentences: tuple[str, ...]) -> DemoInputs:
    """Reads the installed model and tokenises `sentences`."""
    files = find_model_files()
    ids, mask = tokenize(files.tokenizer, sentences)
    return DemoInputs(sentences, ids, mask, load_weights(files.weights))


def save_copy(inputs: DemoInputs, path: str | Path) -> None:
    """Writes an FP16 copy with only the word embeddings that the sentences use.

    Loading it needs nothing but numpy, and it is a quarter of the model: for machines with a GPU
    and little else.

    Raises:
        DemoError: the file cannot be written.
    """
    used, ids = np.unique(inputs.ids, return_inverse=True)
    arrays: dict[str, np.ndarray] = {
        "weight:" + name: array.astype(np.float16)
        for name, array in inputs.weights.items()
        if array.dtype == np.float32 and not name.startswith("pooler.")
    }
    arrays["weight:" + _WORDS] = inputs.weights[_WORDS][used].astype(np.float16)
    arrays["sentences"] = np.array(inputs.sentences)
    arrays["ids"] = ids.reshape(inputs.ids.shape).astype(np.int64)
    arrays["mask"] = inputs.mask
    try:
        np.savez(Path(path), allow_pickle=False, **arrays)
    except OSError as error:
        raise DemoError(f"cannot write {path}: {error.strerror or error}") from error


def load_copy(path: str | Path) -> DemoInputs:
    """Reads what `save_copy` wrote.

    Raises:
        DemoError: the file is missing or was written by something else.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            weights = {
                name.removeprefix("weight:"): file[name].astype(np.float32)
                for name in file.files
                if name.startswith("weight:")
            }
            sentences = tuple(str(s) for s in file["sentences"])
            _ = weights[_WORDS]
            return DemoInputs(sentences, file["ids"], file["mask"], weights)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DemoError(f"cannot read {path} as a copy written by --save-copy: {error}") from error
