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
"""Progress on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def show_progress(title: str, total: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """A bar on standard error, erased when it is done; nothing without rich, or where
    standard error is no terminal.

    Args:
        title: stands before the bar.
        total: steps.
        shown: False for no bar.

    Yields:
        A function to call after each step.
    """
    try:
        from rich.console import Console
        from rich.progress import Progress, TimeRemainingColumn
    except ImportError:
        shown = False
    if not shown:
        yield lambda: None
        return
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn())
    console = Console(stderr=True)
    # In a file or a pipe the bar would only leave empty lines.
    disable = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
