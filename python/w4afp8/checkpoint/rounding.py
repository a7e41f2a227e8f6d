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
"""Says how far weights were rounded, whether or not anybody asks."""

from __future__ import annotations

import logging
from pathlib import Path

_LOG = logging.getLogger("w4afp8.checkpoint")


def log_rounding(path: Path, layer: int, error: float) -> None:
    """Logs the error of a layer whose source is not in 4 bits; nothing where nothing was lost.

    It is a warning, so that Python prints it on standard error unless logging is set up otherwise.

    Args:
        path: of the checkpoint.
        layer: index of the layer.
        error: the largest `ExpertWeights.error` of its experts.

    Examples:
        >>> log_rounding(Path("some/checkpoint"), 3, 0.0)
    """
    if error:
        _LOG.warning(
            "%s: layer %d: rounded to 4 bits, relative error %.4f in the worst expert",
            path,
            layer,
            error,
        )
