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
"""Reads the native format: tensors as W4AFP8MoEFFN keeps them, used where the file is mapped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.model import Checkpoint, ExpertWeights, MoELayerInfo, RouterWeights
from w4afp8.checkpoint.native_layout import (
    NATIVE_FORMAT,
    PROJECTIONS,
    ROUTER_TENSORS,
    native_prefix,
    packed_tensors,
    projection_sizes,
)
from w4afp8.checkpoint.native_metadata import Source, read_metadata
from w4afp8.layers.format_record import format_record
from w4afp8.quant import PackedWeight, QuantizedWeight, unpack
from w4afp8.quant.packing import LARGEST_RELATIVE, pack_e8m0

_VIEWS = {"U8": np.uint8, "BF16": np.int16, "F32": np.float32}  # DLPack knows no bits alone


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """The operands of one layer.

    Attributes:
        up_gate: of all experts.
        down: of all experts.
        up_gate_bias: float32 ``[experts, up_gate.out_features]``.
        down_bias: float32 ``[experts, hidden]``.
    """

    up_gate: PackedWeight
    down: PackedWeight
    up_gate_bias: NDArray[np.float32] | None
    down_bias: NDArray[np.float32] | None


class NativeCheckpoint(Checkpoint):
    """Packed layers in safetensors files.

    Args:
        files: opened files that `is_native` is true of.

    Attributes:
        sources: what each layer was converted from, by its prefix.

    Raises:
        CheckpointError: metadata or tensors are not what the format asks for.
    """

    format = "native"

    def __init__(self, files: SafetensorsFiles) -> None:
        self.path = files.path
        self._files = files
        layers: list[MoELayerInfo] = []
        self.sources: dict[str, Source] = {}
        self._routers: dict[str, dict[str, Any]] = {}
        for file in files.files:
            described = read_metadata(file, files.metadata[file])
            layer = described.layer
            if layer.prefix in self.sources:
                raise CheckpointError(file, f"expected {layer.prefix} in one file, got it twice")
            layers.append(layer)
            self.sources[layer.prefix] = described.source
            if described.router is not None:
                self._routers[layer.prefix] = described.router
            self._expect_tensors(layer)
        self.layers = tuple(sorted(layers, key=lambda layer: (layer.index, layer.prefix)))

    def _expect_tensors(self, layer: MoELayerInfo) -> None:
        for projection in PROJECTIONS:
            prefix = native_prefix(layer, projection)
            out, features = projection_sizes(layer, projection)
            for name, spec in packed_tensors(layer, projection).items():
                self._files.expect(prefix + name, (spec.dtype,), spec.shape)
            self._expect_record(layer, prefix + "format", out, features)
            if layer.has_bias:
                self._files.expect(prefix + "bias", ("F32",), (layer.experts, out))
            if prefix + "input_scale" in self._files.tensors:
                self._files.expect(prefix + "input_scale", ("F32",), (layer.experts,))
        if not layer.exact:
            self._files.expect(f"{layer.prefix}.error", ("F32",), (layer.experts,))
        if layer.prefix in self._routers:
            name = native_prefix(layer, "router") + "weight"
            self._files.expect(name, ("F32",), (layer.hidden_size, layer.experts))
            for name in (native_prefix(layer, "router") + n for n in ROUTER_TENSORS[1:]):
                if name in self._files.tensors:
                    self._files.expect(name, ("F32",), (layer.experts,))

    def _expect_record(self, layer: MoELayerInfo, name: str, out: int, features: int) -> None:
        self._files.expect(name, ("I32",), (6,))
        sizes = (layer.experts, out, features)
        expected = format_record(layer.weight_format, layer.group_size, *sizes)
        got = tuple(self._files.view(name).tolist())
        if got != expected:
            raise self._files.error(name, f"expected {list(expected)}, got {list(got)}")

    def read_expert(self, layer: MoELayerInfo, expert: int) -> ExpertWeights:
        if not 0 <= expert < layer.experts:
            raise CheckpointError(
                self.path, f"expert: expected 0 to {layer.experts - 1}, got {expert}"
            )
        up_gate, down = (self._unpacked(layer, name, expert) for name in PROJECTIONS)
        biases = [self._row(native_prefix(layer, p) + "bias", expert) for p in PROJECTIONS]
        scales = [self._row(native_prefix(layer, p) + "input_scale", expert) for p in PROJECTIONS]
        return ExpertWeights(
            up_gate=up_gate,
            down=down,
            up_gate_bias=biases[0],
            down_bias=biases[1],
            up_gate_input_scale=None if scales[0] is None else float(scales[0]),
            down_input_scale=None if scales[1] is None else float(scales[1]),
            error=self.read_errors(layer)[expert],
        )

    def read_errors(self, layer: MoELayerInfo) -> tuple[float, ...]:
        """The experts' quantisation errors (`ExpertWeights.error`), without reading any weight.

        Args:
            layer: one of `layers`.

        Raises:
            CheckpointError: one is NaN or infinite.
        """
        if layer.exact:
            return (0.0,) * layer.experts
        return tuple(self._read(f"{layer.prefix}.error").tolist())

    def _unpacked(self, layer: MoELayerInfo, projection: str, expert: int) -> QuantizedWeight:
        prefix = native_prefix(layer, projection)
        rows = {
            name: _tensor(self._files.view(prefix + name)[expert : expert + 1].copy(), spec.dtype)
            for name, spec in packed_tensors(layer, projection).items()
        }
        try:
            weight = unpack(_packed(layer, projection, rows))
            _check_scale(weight, rows)
        except ValueError as error:
            message = f"expert {expert}: {error}"
            raise self._files.error(prefix + "weight_scale", message) from error
        return weight

    def _row(self, name: str, expert: int) -> Any:
        if name not in self._files.tensors:
            return None
        row = self._files.view(name)[expert].copy()
        self._check_finite(name, row)
        return row

    def _read(self, name: str) -> NDArray[np.float32]:
        values = self._files.view(name).copy()
        self._check_finite(name, values)
        return values

    def _check_finite(self, name: str, values: NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise self._files.error(name, "expected finite numbers, got NaN or infinity")

    def read_router(self, layer: MoELayerInfo) -> RouterWeights | None:
        router = self._routers.get(layer.prefix)
        if router is None:
            return None
        prefix = native_prefix(layer, "router")
        tensors = {
            name: self._read(prefix + name)
            for name in ROUTER_TENSORS
            if prefix + name in self._files.tensors
        }
        return RouterWeights(
            **tensors,
            options=router["options"],
            limits_groups=router["limits_groups"],
        )

    def release(self) -> None:
        self._files.release()

    def packed_layer(self, layer: MoELayerInfo) -> PackedLayer:
        """A layer's operands over the mapped file: nothing is repacked or copied.

        The map is private: where a tensor is written to, its page becomes the process's own and the
        file stays as it is. A file that is cut while it is mapped ends the process when a missing
        page is touched, as with any map.

        Args:
            layer: one of `layers`.

        Raises:
            CheckpointError: a scale or bias is not finite, or a scale negative.
        """
        up_gate, down = (self._mapped(layer, projection) for projection in PROJECTIONS)
        up_gate_bias, down_bias = (
            self._read(native_prefix(layer, p) + "bias") if layer.has_bias else None
            for p in PROJECTIONS
        )
        return PackedLayer(up_gate, down, up_gate_bias, down_bias)

    def _mapped(self, layer: MoELayerInfo, projection: str) -> PackedWeight:
        prefix = native_prefix(layer, projection)
        tensors = {}
        for name, spec in packed_tensors(layer, projection).items():
            info = self._files.info(prefix + name)
            array = np.memmap(info.file, _VIEWS[spec.dtype], "c", info.offset, info.shape)
            if name != "weight" and not _are_scales(array, spec.dtype):
                message = "expected finite positive scales, got others"
                raise self._files.error(prefix + name, message)
            tensors[name] = _tensor(array, spec.dtype)
        return _packed(layer, projection, tensors)


def is_native(files: SafetensorsFiles) -> bool:
    """Whether the files' metadata says that they are of the native format."""
    return any(metadata.get("format") == NATIVE_FORMAT for metadata in files.metadata.values())


def _check_scale(weight: QuantizedWeight, rows: dict[str, paddle.Tensor]) -> None:
    if weight.weight_format == "mxfp4":
        packed = pack_e8m0(weight.scale)[1]
        if not np.array_equal(packed, rows["group_scale"].numpy()):
            raise ValueError("expected E8M0 bytes relative to the channel's largest, got others")
    elif (weight.scale < 0).any():
        raise ValueError("expected positive scales, got negative ones")


def _are_scales(array: NDArray[Any], dtype: str) -> bool:
    """Whether all are finite and none is negative; bfloat16 as the bits of int16."""
    if dtype == "BF16":  # from 0x7F80 on infinity and NaN
        return bool(((array >= 0) & (array < 0x7F80)).all())
    if dtype == "U8":
        return bool((array <= LARGEST_RELATIVE).all())
    return bool((np.isfinite(array) & (array >= 0)).all())


def _tensor(array: NDArray[Any], dtype: str) -> paddle.Tensor:
    """A tensor over the array's own memory, which it keeps alive."""
    viewed = array.view(_VIEWS[dtype])
    tensor = paddle.utils.dlpack.from_dlpack(viewed)
    return tensor.view("bfloat16") if dtype == "BF16" else tensor


def _packed(
    layer: MoELayerInfo, projection: str, tensors: dict[str, paddle.Tensor]
) -> PackedWeight:
    out, features = projection_sizes(layer, projection)
    return PackedWeight(
        weight=tensors["weight"],
        weight_scale=tensors["weight_scale"],
        group_scale=tensors.get("group_scale"),
        weight_format=layer.weight_format,
        group_size=layer.group_size,
        out_features=out,
        in_features=features,
    )
