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
"""Recognises a checkpoint's format from its tensors' names and types, and its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from w4afp8.checkpoint.config import Config
from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.experts import LayerTensors, find_layers
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.formats import gpt_oss
from w4afp8.checkpoint.formats.awq import Awq
from w4afp8.checkpoint.formats.compressed_tensors import Mxfp4PackQuantized, PackQuantized
from w4afp8.checkpoint.formats.deepseek import DeepSeekW4AFP8
from w4afp8.checkpoint.formats.fastdeploy import FastDeploy, FastDeployConverted
from w4afp8.checkpoint.formats.gptq import Gptq
from w4afp8.checkpoint.formats.plain import Fp8Block, Plain, Quantization
from w4afp8.checkpoint.model import Checkpoint
from w4afp8.checkpoint.native import NativeCheckpoint, is_native
from w4afp8.checkpoint.numbers import FLOATS
from w4afp8.checkpoint.per_expert import PerExpertCheckpoint
from w4afp8.checkpoint.projection import Fields, ProjectionFormat
from w4afp8.quant import Rounding, ScaleDtype, WeightFormat

_BYTE_TYPES = ("I8", "U8")


def open_checkpoint(
    path: str | Path,
    *,
    weight_format: WeightFormat | None = None,
    group_size: int | None = None,
    rounding: Rounding | None = None,
    scale_dtype: ScaleDtype | None = None,
) -> Checkpoint:
    """Opens a checkpoint in any of the formats of docs/checkpoints.md; reads headers only.

    The options say how to quantise weights that are no 4-bit numbers yet, and are refused where
    there are none.

    Args:
        path: a ``.safetensors`` file, or a folder of such with ``config.json`` and, where there are
            several, ``model.safetensors.index.json``.
        weight_format: "int4" (default) or "mxfp4".
        group_size: as in `w4afp8.quant.quantize`; -1 by default.
        rounding: "absmax/7" (default), "absmax/7.5" or "mse".
        scale_dtype: "float32" (default) or "bfloat16", of int4 group scales.

    Returns:
        Checkpoint: its layers, to be read expert by expert.

    Raises:
        CheckpointError: there are no experts of a known format; a header, the index or the config
            is wrong; an option asks for what the checkpoint's own format decides.
        ValueError: an option is none of its choices, or two do not go together.

    Examples:
        >>> import numpy as np, tempfile
        >>> from safetensors.numpy import save_file
        >>> from w4afp8.checkpoint import open_checkpoint
        >>> shapes = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
        >>> weights = {
        ...     f"model.layers.0.mlp.experts.0.{name}.weight": np.ones(shape, np.float32)
        ...     for name, shape in shapes.items()
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(weights, f"{folder}/model.safetensors")
        ...     checkpoint = open_checkpoint(folder, weight_format="mxfp4")
        ...     checkpoint.layers[0].intermediate_size, checkpoint.layers[0].exact
        (64, False)
    """
    options = {
        "weight_format": weight_format,
        "group_size": group_size,
        "rounding": rounding,
        "scale_dtype": scale_dtype,
    }
    asked: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    files = SafetensorsFiles(path)
    if is_native(files):
        if asked:
            raise _superfluous(files.path, asked, "native")
        return NativeCheckpoint(files)
    checkpoint = _open(files, Config(files.path), Quantization(**asked))
    if asked and all(layer.exact for layer in checkpoint.layers):
        raise _superfluous(files.path, asked, checkpoint.format)
    return checkpoint


def _superfluous(path: Path, asked: dict[str, object], name: str) -> CheckpointError:
    """An error about options where there is nothing to quantise."""
    values = ", ".join(repr(value) for value in asked.values())
    return CheckpointError(
        path, f"expected no {', '.join(asked)} (its weights are 4-bit: {name}), got {values}"
    )


def _open(files: SafetensorsFiles, config: Config, quantization: Quantization) -> Checkpoint:
    prefixes = gpt_oss.find_prefixes(files)
    if prefixes:
        return gpt_oss.GptOss(files, config, prefixes)
    layers = find_layers(files)
    if not layers:
        raise CheckpointError(
            files.path,
            "expected experts named '....experts.0.gate_proj....' or as gpt-oss names them, got "
            f"none among {len(files.tensors)} tensors",
        )
    return PerExpertCheckpoint(
        files,
        config,
        [(layer, _format_of(files, config, layer, quantization)) for layer in layers],
    )


def _format_of(
    files: SafetensorsFiles, config: Config, layer: LayerTensors, quantization: Quantization
) -> ProjectionFormat:
    """How a layer is spelled; its first expert decides, and the others must follow."""
    fields = layer.experts[0]["down"]
    if "weight_packed" in fields:
        is_int4 = files.info(fields["weight_packed"]).dtype == "I32"
        return (PackQuantized if is_int4 else Mxfp4PackQuantized)(files, config)
    if "qweight" in fields:
        return (Awq if _is_awq(files, config, fields) else Gptq)(files, config)
    weight = fields.get("quant_weight", fields.get("weight"))
    if weight is None:
        name = next(iter(fields.values()))
        raise files.error(name, "expected the tensors of a known format, got none")
    dtype = files.info(weight).dtype
    if dtype in _BYTE_TYPES:
        if "weight_scale_inv" in fields:
            return DeepSeekW4AFP8(files, config)
        return _fastdeploy(files, config, layer)
    if dtype == "F8_E4M3":
        return Fp8Block(files, config, quantization)
    if dtype in FLOATS:
        return Plain(files, config, quantization)
    raise files.error(weight, f"expected weights of 4 or 8 bits or floats, got {dtype}")


def _is_awq(files: SafetensorsFiles, config: Config, fields: Fields) -> bool:
    """AWQ packs along the outputs, GPTQ along in_features; a config must agree."""
    if config.method is not None:
        return config.method == "awq"
    if "scales" not in fields:
        return False
    words, scales = files.info(fields["qweight"]).shape, files.info(fields["scales"]).shape
    return len(words) == len(scales) == 2 and words[1] * 8 == scales[1]


def _fastdeploy(files: SafetensorsFiles, config: Config, layer: LayerTensors) -> ProjectionFormat:
    """Its checkpoints have ``[in / 2, out]``, its operators ``[out, in / 2]``; none fits both."""
    expert = layer.experts[0]
    fields = expert.get("up_gate", expert.get("gate", {}))
    up_gate = fields.get("quant_weight", fields.get("weight"))
    down = expert["down"].get("quant_weight", expert["down"].get("weight"))
    if up_gate is not None and down is not None:
        first, second = files.info(up_gate).shape, files.info(down).shape
        if len(first) == len(second) == 2 and 2 * first[1] == second[0]:
            codes = (_weight_name(fields) for expert in layer.experts for fields in expert.values())
            return FastDeployConverted(files, config, filter(None, codes))
    return FastDeploy(files, config)


def _weight_name(fields: Fields) -> str | None:
    return fields.get("quant_weight", fields.get("weight"))
