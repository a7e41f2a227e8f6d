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
"""What config.json tells beyond the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w4afp8.checkpoint.errors import CheckpointError
from w4afp8.checkpoint.files import read_json_object
from w4afp8.layers.experts import Activation

CONFIG_NAME = "config.json"
_SILU = ("silu", "swish")
# What a config leaves out where it is its model's default: transformers' configuration classes and
# routers. W4AFP8MoEFFN's own defaults are softmax and normalised weights.
_SIGMOID_MODELS = ("deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite")
_NOT_NORMALISED_MODELS = ("deepseek_v2", "olmoe", "qwen2_moe", "qwen3_moe")
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_SWIGLU_OAI_LIMIT = 7.0  # where W4AFP8MoEFFN's "swiglu_oai" clamps


class Config:
    """The config beside a checkpoint; empty where there is none.

    Args:
        path: the checkpoint, a file or a folder.

    Attributes:
        file: where it is or would be.
        model: the language model's part.
        quantization: ``quantization_config``, or the older quantize_config.json.

    Raises:
        CheckpointError: a file is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        folder = path if path.is_dir() else path.parent
        self.file = folder / CONFIG_NAME
        whole = read_json_object(self.file) if self.file.is_file() else {}
        text = self._object("text_config", whole.get("text_config"))
        self.model: Mapping[str, Any] = text or whole
        found = whole.get("quantization_config", self.model.get("quantization_config"))
        older = folder / "quantize_config.json"
        if found is None and older.is_file():
            found = read_json_object(older)
        self.quantization = self._object("quantization_config", found)

    @property
    def method(self) -> str | None:
        """The name of the quantisation method, where there is one."""
        method = self.quantization.get("quant_method")
        return method if isinstance(method, str) else None

    def expect_quantization(self, key: str, *allowed: object) -> None:
        """Raises CheckpointError where the quantisation says something else of `key`."""
        value = self.quantization.get(key, allowed[0])
        if not any(type(value) is type(want) and value == want for want in allowed):
            expected = " or ".join(repr(want) for want in allowed)
            raise self.error(
                f"quantization_config.{key}", f"expected {expected}, got {value!r:.80}"
            )

    def group_size(self, source: Mapping[str, Any] | None = None) -> int | None:
        """The declared weights per scale; None where none is declared or the rows are whole."""
        value = (self.quantization if source is None else source).get("group_size")
        return value if type(value) is int and value > 0 else None

    def activation(self) -> Activation:
        """The activation between the projections.

        Raises:
            CheckpointError: it is none that `W4AFP8MoEFFN` computes.
        """
        if self.model.get("model_type") == "gpt_oss":
            return self.oai_activation()
        name = self.model.get("hidden_act", _SILU[0])
        if name not in _SILU:
            raise self.error("hidden_act", f"expected {' or '.join(_SILU)}, got {name!r:.80}")
        return "swiglu"

    def oai_activation(self) -> Activation:
        """gpt-oss's activation.

        Raises:
            CheckpointError: it clamps elsewhere than `W4AFP8MoEFFN` does.
        """
        limit = self.model.get("swiglu_limit", _SWIGLU_OAI_LIMIT)
        if limit != _SWIGLU_OAI_LIMIT:
            raise self.error("swiglu_limit", f"expected {_SWIGLU_OAI_LIMIT}, got {limit!r:.80}")
        return "swiglu_oai"

    def router_options(self) -> dict[str, Any]:
        """Options of `W4AFP8MoEFFN` for the router, as far as the config tells them.

        Raises:
            CheckpointError: an option is of another type.
        """
        options: dict[str, Any] = {}
        if self.model.get("model_type") in _SIGMOID_MODELS:
            options["scoring"] = "sigmoid"
        if self.model.get("model_type") in _NOT_NORMALISED_MODELS:
            options["norm_topk_prob"] = False
        known: list[tuple[str, str, tuple[type, ...]]] = [
            ("scoring_func", "scoring", (str,)),
            ("norm_topk_prob", "norm_topk_prob", (bool,)),
            ("routed_scaling_factor", "routed_scaling_factor", (float, int)),
        ]
        if self.limits_groups and self._ranks_groups_by_two():
            known += [(key, key, (int,)) for key in ("n_group", "topk_group")]
        for key, option, kinds in known:
            value = self.model.get(key)
            if value is None:
                continue
            if type(value) not in kinds:
                raise self.error(key, f"expected a {kinds[0].__name__}, got {value!r:.80}")
            options[option] = value
        return options

    def _ranks_groups_by_two(self) -> bool:
        """Whether groups are chosen as `MoERouter` does: DeepSeek-V2's are by their best expert."""
        is_named = self.model.get("topk_method", "noaux_tc") == "noaux_tc"
        return is_named and self.model.get("model_type") in _SIGMOID_MODELS

    def check_experts(self, prefix: str, experts: int) -> None:
        """Raises CheckpointError where the config tells of another number of experts.

        Args:
            prefix: of the layer.
            experts: found in the files.
        """
        for key in _EXPERT_KEYS:
            declared = self.model.get(key)
            if type(declared) is int and declared > 0 and declared != experts:
                raise self.error(
                    key, f"expected {experts}, the experts of {prefix}, got {declared}"
                )

    @property
    def limits_groups(self) -> bool:
        """Whether tokens choose among the experts of a few groups only (DeepSeek-V3)."""
        groups, chosen = (self.model.get(key) for key in ("n_group", "topk_group"))
        return type(groups) is int and groups > 1 and groups != chosen

    def error(self, key: str, message: str) -> CheckpointError:
        """An error about an entry of the config."""
        return CheckpointError(self.file, message, tensor=key)

    def _object(self, key: str, value: Any) -> Mapping[str, Any]:
        """What an entry holds; nothing where it is missing or null."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(key, f"expected a JSON object, got {value!r:.80}")
        return value
