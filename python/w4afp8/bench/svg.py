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
"""matplotlib, set so that the same rows give the same bytes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

_SETTINGS: dict[Any, Any] = {"svg.hashsalt": "w4afp8", "svg.fonttype": "none", "font.size": 9}


@contextlib.contextmanager
def svg_pyplot() -> Iterator[Any]:
    """pyplot with the documents' settings, inside the block.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # Building the font list is worth no line of output.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context(_SETTINGS):
        yield pyplot
