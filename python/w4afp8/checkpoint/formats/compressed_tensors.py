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
"""compressed-tensors, as llm-compressor writes and vLLM reads it: int4 and MXFP4.

Layout: https://github.com/vllm-project/compressed-tensors, compressors for "pack-quantized" and
"mxfp4-pack-quantized"; docs/checkpoints.md has it byte by byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from w4afp8.checkpoint.config import Config
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.numbers import FLOATS, read_e8m0, read_scales
from w4afp8.checkpoint.projection import (
    Fields,
    Projection,
    ProjectionFormat,
    ProjectionInfo,
    check_group_index,
    offset_binary_to_int4,
    rows_of_words,
    scale_type,
)
from w4afp8.quant.weights import MXFP4_GROUP_SIZE


class PackQuantized(ProjectionFormat):
    """int4: ``weight_packed`` int32 ``[out, in / 8]``, ``weight_scale`` ``[out, groups]``.

    A code is stored as ``value + 8``, element i of a row at bits ``4 * (i % 8)``. ``weight_shape``
    tells how wide the codes are; only 4 bits, and only symmetric ones, can be read.
    """

    name = "compressed-tensors"
    fields = frozenset({"weight_packed", "weight_scale", "weight_shape"})
    optional_fields = frozenset({"weight_g_idx"})

    def __init__(self, files: SafetensorsFiles, config: Config) -> None:
        super().__init__(files, config)
        config.expect_quantization("quant_method", "compressed-tensors")
        scheme = _only_scheme(config)
        self._declared = config.group_size(scheme)
        # "group" and its other spellings permute in_features; "weight" only changed the rounding.
        self._has_act_order = scheme.get("actorder") in ("group", "dynamic", True)

    def describe(self, fields: Fields) -> ProjectionInfo:
        files = self.files
        out, words = files.expect(fields["weight_packed"], ("I32",), (None, None)).shape
        files.expect(fields["weight_shape"], ("I64", "I32"), (2,))
        scale = files.info(fields["weight_scale"])
        # One scale a row is written with and without a second dimension.
        shape = (out,) if len(scale.shape) == 1 else (out, None)
        files.expect(fields["weight_scale"], FLOATS, shape)
        if "weight_g_idx" in fields:
            files.expect(fields["weight_g_idx"], ("I32", "I64"), (8 * words,))
        elif self._has_act_order:
            message = "expected weight_g_idx beside it (actorder), got none"
            raise files.error(fields["weight_packed"], message)
        groups = 1 if len(scale.shape) == 1 else scale.shape[1]
        scale_dtype = scale_type(files, fields["weight_scale"])
        return ProjectionInfo(out, 8 * words, groups, scale_dtype, self._declared)

    def read(self, fields: Fields) -> Projection:
        files = self.files
        words = files.view(fields["weight_packed"])
        shape = [words.shape[0], 8 * words.shape[1]]
        declared = [int(size) for size in files.view(fields["weight_shape"])]
        if declared != shape:
            raise files.error(
                fields["weight_shape"], f"expected {shape} for 4-bit codes, got {declared}"
            )
        scale = read_scales(files, fields["weight_scale"]).reshape(shape[0], -1)
        if "weight_g_idx" in fields:
            check_group_index(files, fields["weight_g_idx"], shape[1] // scale.shape[1])
        return Projection(offset_binary_to_int4(rows_of_words(words)), scale)


class Mxfp4PackQuantized(ProjectionFormat):
    """MXFP4: ``weight_packed`` uint8 ``[out, in / 2]``, ``weight_scale`` E8M0, 32 weights each."""

    name = "compressed-tensors"
    weight_format = "mxfp4"
    fields = frozenset({"weight_packed", "weight_scale"})

    def __init__(self, files: SafetensorsFiles, config: Config) -> None:
        super().__init__(files, config)
        config.expect_quantization("quant_method", "compressed-tensors")

    def describe(self, fields: Fields) -> ProjectionInfo:
        out, pairs = self.files.expect(fields["weight_packed"], ("U8",), (None, None)).shape
        groups = 2 * pairs // MXFP4_GROUP_SIZE
        # Float8 scales of 16 weights are NVFP4: another type, so refused here.
        self.files.expect(fields["weight_scale"], ("U8", "F8_E8M0"), (out, groups))
        return ProjectionInfo(out, 2 * pairs, groups)

    def read(self, fields: Fields) -> Projection:
        codes = np.array(self.files.view(fields["weight_packed"]))
        return Projection(codes, read_e8m0(self.files, fields["weight_scale"]))


def _only_scheme(config: Config) -> Mapping[str, Any]:
    """How the config says weights are quantised; refuses what is not symmetric int4.

    Empty where it says nothing, or has several schemes: then the names of modules would decide, and
    the tensors alone do.
    """
    groups = config.quantization.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    scheme = schemes[0].get("weights") if len(schemes) == 1 and isinstance(schemes[0], dict) else 0
    if not isinstance(scheme, dict):
        return {}
    for key, expected in (("num_bits", 4), ("type", "int"), ("symmetric", True)):
        if scheme.get(key, expected) != expected:
            got = f"expected {expected!r}, got {scheme[key]!r:.80}"
            raise config.error(f"quantization_config.config_groups: weights.{key}", got)
    return scheme
