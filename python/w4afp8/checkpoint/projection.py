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
"""What a format has to tell of one projection of one expert."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.config import Config
from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.numbers import read_input_scale
from w4afp8.quant import ScaleDtype, WeightFormat

Fields = Mapping[str, str]  # field ("weight_scale") to the name of its tensor
# Fields that any format may have.
COMMON_FIELDS = frozenset({"bias", "input_scale"})


@dataclass(frozen=True)
class ProjectionInfo:
    """What the headers tell.

    Attributes:
        out_features: rows of the matrix.
        in_features: its columns.
        groups: scales of a row.
        scale_dtype: "bfloat16" where the scales are stored so.
        declared_group_size: what the config says, where it does.
    """

    out_features: int
    in_features: int
    groups: int
    scale_dtype: ScaleDtype = "float32"
    declared_group_size: int | None = None


@dataclass(frozen=True, eq=False)
class Projection:
    """One matrix in checkpoint order.

    Attributes:
        codes: uint8 ``[out, in / 2]``, the low nibble is the even in_feature.
        scale: float32 (int4) or E8M0 uint8 (mxfp4) ``[out, groups]``.
        squared_error: sum of squared differences to what the checkpoint holds.
        squared_norm: sum of the squares of that; 1 where nothing was rounded.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[Any]
    squared_error: float = 0.0
    squared_norm: float = 1.0


class ProjectionFormat(ABC):
    """How one ecosystem spells a projection.

    Args:
        files: of the checkpoint.
        config: beside it.
    """

    name: ClassVar[str]
    fields: ClassVar[frozenset[str]]  # that must be there
    optional_fields: ClassVar[frozenset[str]] = frozenset()
    weight_format: WeightFormat = "int4"
    exact: bool = True
    hadamard_block_size: int = -1  # of the input of down, -1 where it is not rotated

    def __init__(self, files: SafetensorsFiles, config: Config) -> None:
        self.files = files
        self.config = config

    def check_fields(self, fields: Fields) -> None:
        """Raises CheckpointError where a tensor is missing, or means what is not understood."""
        anyone = next(iter(fields.values()))
        base = anyone.rpartition(".")[0]
        missing = sorted(self.fields - fields.keys())
        if missing:
            raise CheckpointError(
                self.files.info(anyone).file,
                f"expected this tensor ({self.name}), got none",
                tensor=f"{base}.{missing[0]}",
            )
        unknown = sorted(fields.keys() - self.fields - self.optional_fields - COMMON_FIELDS)
        if unknown:
            raise self.files.error(
                fields[unknown[0]],
                f"expected only {', '.join(sorted(self.fields | self.optional_fields))} "
                f"({self.name}), got {unknown[0]}",
            )

    @abstractmethod
    def describe(self, fields: Fields) -> ProjectionInfo:
        """Checks types and shapes, reading no tensor.

        Raises:
            CheckpointError: they are not the format's.
        """

    @abstractmethod
    def read(self, fields: Fields) -> Projection:
        """Reads a projection that `describe` has checked.

        Raises:
            CheckpointError: values that cannot be honoured exactly.
        """

    def input_scale(self, fields: Fields) -> float | None:
        """The multiplier of FP8 activations, where the checkpoint holds one.

        Raises:
            CheckpointError: it is no single positive number.
        """
        name = fields.get("input_scale")
        return None if name is None else read_input_scale(self.files, name)


def scale_type(files: SafetensorsFiles, name: str) -> ScaleDtype:
    """What packed scales may be stored as without loss."""
    return "bfloat16" if files.info(name).dtype == "BF16" else "float32"


def rows_of_words(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """int32 ``[n, k / 8]`` of eight codes each, the first lowest, to bytes ``[n, k / 2]``."""
    return np.ascontiguousarray(words, dtype="<i4").view(np.uint8)


def offset_binary_to_int4(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes ``value + 8``, two to a byte, to two's complement: their highest bits flip."""
    return codes ^ np.uint8(0x88)


def check_group_index(files: SafetensorsFiles, name: str, group_size: int) -> None:
    """Refuses act-order: weight i must belong to group ``i // group_size``.

    Raises:
        CheckpointError: the groups are in another order.
    """
    index = files.view(name)
    wrong = np.flatnonzero(index != np.arange(len(index)) // group_size)
    if len(wrong):
        i = int(wrong[0])
        raise files.error(
            name,
            f"expected group {i // group_size} for in_feature {i} (act-order cannot be honoured), "
            f"got {int(index[i])}",
        )
