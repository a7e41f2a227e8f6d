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
"""FastDeploy's W4AFP8 weights: as its checkpoints hold them, and as its older operators read them.

Where the config has a rotation (``hadamard_block_size``), the weights of down_proj are rotated, and
its input must be.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w4afp8.checkpoint.config import Config
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.numbers import read_input_scale, read_scales
from w4afp8.checkpoint.projection import Fields, Projection, ProjectionFormat, ProjectionInfo

_LARGEST_CODE = np.float32(7)
_LARGEST_E4M3 = 448.0
_CODE_UNIT = np.float32(512)  # the operator reads a code v as v * 2^-9, an E4M3 number
_CODE_FIELDS = ("quant_weight", "weight")
_BLOCK = 64  # in_features whose codes share 32 bytes
_SCALE_BLOCK = 128
# What FastDeploy's MixQuantConfig and W4AFP8Config take where a config does not say.
_DEFAULT_ROTATION = 128


class _FastDeploy(ProjectionFormat):
    name = "fastdeploy"

    def __init__(self, files: SafetensorsFiles, config: Config) -> None:
        super().__init__(files, config)
        self.hadamard_block_size = _rotation(config)

    def weight_field(self, fields: Fields) -> str:
        """The name of the tensor of codes.

        Raises:
            CheckpointError: there is none, or there are two.
        """
        names = [fields[field] for field in _CODE_FIELDS if field in fields]
        if len(names) != 1:
            raise self.files.error(
                fields["weight_scale"],
                f"expected one of {' and '.join(_CODE_FIELDS)} beside it, got {len(names)}",
            )
        return names[0]


def _rotation(config: Config) -> int:
    """The blocks in which FastDeploy rotates the activations of down_proj; -1 where it does not.

    Raises:
        CheckpointError: the config says something that is no number.
    """
    is_named = config.quantization.keys() & {"moe_quant_type", "quantization"}
    block = config.quantization.get("hadamard_block_size", _DEFAULT_ROTATION if is_named else -1)
    if type(block) is not int:
        raise config.error(
            "quantization_config.hadamard_block_size", f"expected an int, got {block!r:.80}"
        )
    return block if block > 0 else -1


class FastDeploy(_FastDeploy):
    """Codes int8 ``[in / 2, out]``, two's complement, the even in_feature in the low nibble.

    ``weight_scale`` is the largest magnitude of a channel ``[out]`` or of a group ``[out, groups]``
    (``[groups, out]`` beside a static ``activation_scale``), so that a weight is
    ``code * (weight_scale / 7)``: FastDeploy divides in float32 too.
    ``activation_scale`` is the largest magnitude of the activations.
    """

    fields = frozenset({"weight_scale"})
    optional_fields = frozenset({"quant_weight", "weight", "activation_scale"})

    def describe(self, fields: Fields) -> ProjectionInfo:
        files = self.files
        weight = self.weight_field(fields)
        pairs, out = files.expect(weight, ("I8", "U8"), (None, None)).shape
        shape = files.info(fields["weight_scale"]).shape
        if len(shape) == 1:
            files.expect(fields["weight_scale"], ("F32",), (out,))
            return ProjectionInfo(out, 2 * pairs, 1)
        is_static = "activation_scale" in fields
        expected = (None, out) if is_static else (out, None)
        files.expect(fields["weight_scale"], ("F32",), expected)
        return ProjectionInfo(out, 2 * pairs, shape[0 if is_static else 1])

    def read(self, fields: Fields) -> Projection:
        pairs = self.files.view(self.weight_field(fields))
        largest = read_scales(self.files, fields["weight_scale"])
        if largest.ndim == 1:
            largest = largest[:, None]
        elif "activation_scale" in fields:
            largest = largest.T
        codes = np.ascontiguousarray(pairs.T).view(np.uint8)
        return Projection(codes, np.ascontiguousarray(largest / _LARGEST_CODE))

    def input_scale(self, fields: Fields) -> float | None:
        if "activation_scale" not in fields:
            return super().input_scale(fields)
        return read_input_scale(self.files, fields["activation_scale"]) / _LARGEST_E4M3


class FastDeployConverted(_FastDeploy):
    """Codes uint8 ``[out, in / 2]`` as ``w4afp8_gemm_weight_convert`` gives them.

    In each 64 in_features byte j holds in_feature j high and j + 32 low. A code is either
    ``value + 7`` or sign and magnitude (``value`` above 0, else ``8 - value``). ``weight_scale`` is
    what the operator reads: 512 times the multiplier, in the order of `permute_scales`, ``[out]``
    or ``[out / 128, in / 128, 128]``.

    Args:
        files: of the checkpoint.
        config: beside it.
        codes: names of the tensors of codes of the layer: which of the two spellings it is.
    """

    fields = frozenset({"weight_scale"})
    optional_fields = frozenset({"quant_weight", "weight"})

    def __init__(self, files: SafetensorsFiles, config: Config, codes: Iterable[str]) -> None:
        super().__init__(files, config)
        if config.quantization.get("is_permuted") is False:
            raise config.error(
                "quantization_config.is_permuted",
                "expected scales of the weights alone, got False: FastDeploy's layers fold the "
                "activations' range into such scales",
            )
        self._codes = tuple(codes)
        self._table: bytes | None = None

    def describe(self, fields: Fields) -> ProjectionInfo:
        files = self.files
        weight = self.weight_field(fields)
        out, pairs = files.expect(weight, ("U8", "I8"), (None, None)).shape
        if 2 * pairs % _BLOCK:
            raise files.error(weight, f"expected in_features of 64 * n, got {2 * pairs}")
        if len(files.info(fields["weight_scale"]).shape) == 1:
            files.expect(fields["weight_scale"], ("F32",), (out,))
            return ProjectionInfo(out, 2 * pairs, 1)
        groups = 2 * pairs // _SCALE_BLOCK
        files.expect(fields["weight_scale"], ("F32",), (out // _SCALE_BLOCK, groups, _SCALE_BLOCK))
        return ProjectionInfo(out, 2 * pairs, groups, declared_group_size=_SCALE_BLOCK)

    def read(self, fields: Fields) -> Projection:
        if self._table is None:
            self._table = _find_spelling(self.files, self._codes)
        weight = self.weight_field(fields)
        stored = self.files.view(weight)
        codes = _translated(stored, self._table)
        if codes is None:
            raise self.files.error(weight, "expected the layer's spelling of codes, got another")
        scale = read_scales(self.files, fields["weight_scale"])
        if scale.ndim == 3:
            scale = scale.transpose(1, 0, 2).reshape(scale.shape[1], -1)
        else:
            scale = scale[None]
        scale = unpermute_scales(scale).T / _CODE_UNIT
        pairs = np.frombuffer(codes, np.uint8).reshape(stored.shape)
        return Projection(_neighbours(pairs), np.ascontiguousarray(scale))


def permute_scales(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[..., out]`` in the operator's order: of 16 outputs 0, 8, 1, 9, ..., 7, 15."""
    pairs = scale.reshape(*scale.shape[:-1], -1, 2, 8)
    return np.ascontiguousarray(pairs.swapaxes(-1, -2)).reshape(scale.shape)


def unpermute_scales(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The reverse of `permute_scales`."""
    pairs = scale.reshape(*scale.shape[:-1], -1, 8, 2)
    return np.ascontiguousarray(pairs.swapaxes(-1, -2)).reshape(scale.shape)


def _byte_table(values: dict[int, int]) -> bytes:
    """Both codes of a byte to two's complement; `_INVALID`, which no code is, where there are none.

    -8 occurs in no spelling, so no valid byte is translated to one with an 8.
    """
    table = bytearray([_INVALID] * 256)
    for high, high_value in values.items():
        for low, low_value in values.items():
            table[high << 4 | low] = (high_value & 15) << 4 | low_value & 15
    return bytes(table)


_INVALID = 0x88
_OFFSET = _byte_table({code: code - 7 for code in range(15)})
_SIGN_MAGNITUDE = _byte_table({c: c if c < 8 else 8 - c for c in range(1, 16)})


def _translated(stored: NDArray[Any], table: bytes) -> bytes | None:
    """All bytes by a spelling's table; None where one is not of that spelling."""
    # Python's translation and search of bytes take a fraction of numpy's time.
    codes = stored.tobytes().translate(table)
    return None if _INVALID in codes else codes


def _find_spelling(files: SafetensorsFiles, names: Iterable[str]) -> bytes:
    """The one that has all codes: offset codes are never 15, sign and magnitude never 0."""
    for name in names:
        stored = files.view(name)
        spellings = (_OFFSET, _SIGN_MAGNITUDE)
        fits = [table for table in spellings if _translated(stored, table) is not None]
        if not fits:
            raise files.error(name, "expected codes of 0 to 14 or of 1 to 15, got both 0 and 15")
        if len(fits) == 1:
            return fits[0]
    raise files.error(name, "expected a code 0 or 15, which tells the spelling, got none anywhere")


def _neighbours(pairs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """In_features j and j + 32 in a byte to j and j + 1, as the checkpoint order has them."""
    # In every two bytes the middle nibbles change places: low nibbles meet, and high ones.
    words = pairs.view("<u8")
    met = words & np.uint64(0xF00FF00FF00FF00F)
    met |= (words & np.uint64(0x00F000F000F000F0)) << np.uint64(4)
    met |= (words & np.uint64(0x0F000F000F000F00)) >> np.uint64(4)
    blocks = met.view(np.uint8).reshape(-1, _BLOCK // 4, 2)
    return np.ascontiguousarray(blocks[..., ::-1].swapaxes(1, 2)).reshape(pairs.shape)
