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
"""Checkpoints that are not 4-bit yet, quantised on the way in: float weights, FP8 in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.config import Config
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.numbers import FLOATS, read_floats, read_scales
from w4afp8.checkpoint.projection import Fields, Projection, ProjectionFormat, ProjectionInfo
from w4afp8.quant import Rounding, ScaleDtype, WeightFormat, dequantize, quantize
from w4afp8.quant.weights import check_choice, check_group_size


@dataclass(frozen=True)
class Quantization:
    """How to quantise; the arguments of `w4afp8.quant.quantize`.

    Raises:
        ValueError: an argument is none of its choices, or two do not go together.
    """

    weight_format: WeightFormat = "int4"
    group_size: int = -1
    rounding: Rounding = "absmax/7"
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        check_choice("weight_format", self.weight_format, WeightFormat)
        check_choice("rounding", self.rounding, Rounding)
        check_choice("scale_dtype", self.scale_dtype, ScaleDtype)
        if self.weight_format == "mxfp4" and self.rounding != "absmax/7":
            raise ValueError(f"rounding: expected the default with mxfp4, got {self.rounding!r}")
        has_float_groups = self.weight_format == "int4" and self.group_size != -1
        if self.scale_dtype == "bfloat16" and not has_float_groups:
            raise ValueError(
                "scale_dtype: expected float32 without groups of int4, got 'bfloat16' with "
                f"{self.weight_format}, group_size {self.group_size}"
            )


class Plain(ProjectionFormat):
    """``weight`` bfloat16, float16 or float32 ``[out, in]``.

    Args:
        files: of the checkpoint.
        config: beside it.
        quantization: what to make of the weights.
    """

    name = "float"
    exact = False
    fields = frozenset({"weight"})
    dtypes: tuple[str, ...] = FLOATS

    def __init__(self, files: SafetensorsFiles, config: Config, quantization: Quantization) -> None:
        super().__init__(files, config)
        self.quantization = quantization
        self.weight_format = quantization.weight_format

    def describe(self, fields: Fields) -> ProjectionInfo:
        name = fields["weight"]
        out, in_features = self.files.expect(name, self.dtypes, (None, None)).shape
        asked = self.quantization
        try:
            size = check_group_size(asked.weight_format, asked.group_size, in_features)
        except ValueError as error:
            raise self.files.error(name, str(error)) from error
        groups = 1 if size == -1 else in_features // size
        return ProjectionInfo(out, in_features, groups, asked.scale_dtype, size)

    def read(self, fields: Fields) -> Projection:
        weight = self.values(fields)
        asked = self.quantization
        quantized = quantize(
            weight[None],
            weight_format=asked.weight_format,
            group_size=asked.group_size,
            rounding=asked.rounding,
            scale_dtype=asked.scale_dtype,
        )
        difference = dequantize(quantized)[0] - weight
        return Projection(
            quantized.codes[0],
            quantized.scale[0].reshape(len(weight), -1),
            _sum_of_squares(difference),
            _sum_of_squares(weight),
        )

    def values(self, fields: Fields) -> NDArray[np.float32]:
        """The weights, exactly."""
        return read_floats(self.files, fields["weight"])


class Fp8Block(Plain):
    """``weight`` E4M3 ``[out, in]``, ``weight_scale_inv`` a multiplier for each 128 x 128 of it."""

    name = "fp8-block"
    fields = frozenset({"weight", "weight_scale_inv"})
    dtypes = ("F8_E4M3",)

    def __init__(self, files: SafetensorsFiles, config: Config, quantization: Quantization) -> None:
        super().__init__(files, config, quantization)
        block = config.quantization.get("weight_block_size", [128, 128])
        sizes = block if isinstance(block, list) else []
        if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
            raise config.error(
                "quantization_config.weight_block_size",
                f"expected two positive integers, got {block!r:.80}",
            )
        self._block_out, self._block_in = sizes

    def describe(self, fields: Fields) -> ProjectionInfo:
        info = super().describe(fields)
        blocks = (-(-info.out_features // self._block_out), -(-info.in_features // self._block_in))
        self.files.expect(fields["weight_scale_inv"], FLOATS, blocks)
        return info

    def values(self, fields: Fields) -> NDArray[np.float32]:
        weight = super().values(fields)
        scale = read_scales(self.files, fields["weight_scale_inv"])
        out, in_features = weight.shape
        rows = np.arange(out) // self._block_out
        columns = np.arange(in_features) // self._block_in
        with np.errstate(over="ignore"):
            weight *= scale[rows][:, columns]
        if not np.isfinite(weight).all():
            raise self.files.error(fields["weight"], "expected finite products, got infinity")
        return weight


def _sum_of_squares(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())
