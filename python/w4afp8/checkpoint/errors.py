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
"""What is wrong with a checkpoint, and in which file and tensor."""

from __future__ import annotations

from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or not without loss.

    The message is ``file: tensor: what was expected, what came``, without the tensor where the file
    as a whole is wrong.

    Args:
        path: the file, or the folder where no single file is to blame.
        message: what was expected and what came.
        tensor: the tensor that is wrong.

    Examples:
        >>> str(CheckpointError("a.safetensors", "expected 2 dimensions, got 3", tensor="w"))
        'a.safetensors: w: expected 2 dimensions, got 3'
    """

    def __init__(self, path: str | Path, message: str, *, tensor: str | None = None) -> None:
        where = f"{path}: " if tensor is None else f"{path}: {tensor}: "
        super().__init__(where + message)
        self.path = Path(path)
        self.tensor = tensor
