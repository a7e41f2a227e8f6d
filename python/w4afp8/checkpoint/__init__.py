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
"""Checkpoints that others have quantised: read exactly, expert by expert, converted and compared.

Formats: docs/checkpoints.md.
"""

from w4afp8.checkpoint.convert import ConvertReport, convert
from w4afp8.checkpoint.detect import open_checkpoint
from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.files import SafetensorsFiles
from w4afp8.checkpoint.inspect import CheckpointSummary, LayerSummary, inspect
from w4afp8.checkpoint.load import LoadReport, load_moe_ffn
from w4afp8.checkpoint.mla import KvBProj, load_mla_up, read_kv_b_proj
from w4afp8.checkpoint.model import Checkpoint, ExpertWeights, MoELayerInfo, RouterWeights
from w4afp8.checkpoint.verify import Difference, VerifyReport, verify

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointSummary",
    "ConvertReport",
    "Difference",
    "ExpertWeights",
    "KvBProj",
    "LayerSummary",
    "LoadReport",
    "MoELayerInfo",
    "RouterWeights",
    "SafetensorsFiles",
    "VerifyReport",
    "convert",
    "inspect",
    "load_mla_up",
    "load_moe_ffn",
    "open_checkpoint",
    "read_kv_b_proj",
    "verify",
]
