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
"""The demonstration from end to end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paddle

from w4afp8._extension import BUILD_COMMAND, build_info
from w4afp8.demo.errors import DemoError
from w4afp8.demo.inputs import DemoInputs, load_copy, load_inputs, save_copy
from w4afp8.demo.measure import NUM_STEPS, Result, measure
from w4afp8.demo.report import format_table, write_plot
from w4afp8.demo.sentences import DEFAULT_SENTENCES, read_sentences
from w4afp8.quant import Rounding


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for.

    Attributes:
        text: file of sentences, None for the default ones.
        out: folder for the table and the plot.
        device: "cpu" or "gpu".
        dtype: "bfloat16" or "float16", of the quantised blocks' inputs and outputs.
        rounding: int4's rule for the scale (`w4afp8.quant.quantize`).
        copy: read model and sentences from this file (see `save_copy`).
        save_copy: write that file and stop.
    """

    text: Path | None = None
    out: Path = Path("demo_out")
    device: str = "cpu"
    dtype: str = "bfloat16"
    rounding: Rounding = "absmax/7"
    copy: Path | None = None
    save_copy: Path | None = None


def run_demo(options: DemoOptions) -> list[Result]:
    """Runs the demonstration, printing its table and writing table and plot to `options.out`.

    Returns:
        The float encoder's result, then one for each format; empty with `options.save_copy`.

    Raises:
        DemoError: something is missing or wrong; the message says what to do.
    """
    place = find_place(options.device)
    inputs = _load(options)
    if options.save_copy is not None:
        save_copy(inputs, options.save_copy)
        print(f"wrote {options.save_copy}")
        return []
    with _device_for_encoder(place), progress(NUM_STEPS) as on_step:
        results = measure(
            inputs, place=place, dtype=options.dtype, rounding=options.rounding, on_step=on_step
        )
    _write(results, inputs, options)
    return results


def _load(options: DemoOptions) -> DemoInputs:
    if options.copy is not None:
        if options.text is not None:
            raise DemoError("--copy already holds its sentences: leave out --text")
        return load_copy(options.copy)
    sentences = DEFAULT_SENTENCES if options.text is None else read_sentences(options.text)
    return load_inputs(sentences)


def _write(results: list[Result], inputs: DemoInputs, options: DemoOptions) -> None:
    table = format_table(results)
    print(
        f"all-MiniLM-L6-v2, {len(inputs.sentences)} sentences, {options.device}, "
        f"{options.dtype} blocks, int4 by {options.rounding}"
    )
    print(table)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "demo.md").write_text(table + "\n", encoding="utf-8")
        write_plot(results, options.out / "demo.png")
    except OSError as error:
        raise DemoError(f"cannot write to {options.out}: {error.strerror or error}") from error
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return
    print(f"wrote {options.out / 'demo.md'} and {options.out / 'demo.png'}")


def find_place(device: str) -> paddle.base.core.Place:
    """The place that `device` ("cpu" or "gpu") stands for on this machine.

    Raises:
        DemoError: no GPU is visible to Paddle, or the CUDA kernels were not built.
    """
    if device == "cpu":
        return paddle.CPUPlace()
    if device != "gpu":
        raise DemoError(f'device: expected "cpu" or "gpu", got "{device}"')
    found = _find_gpu()
    if found is None:
        raise DemoError("no GPU is visible to Paddle; leave out --device gpu to run on the CPU")
    if not build_info()["cuda"]:
        raise DemoError(f"the CUDA kernels were not built; run with nvcc: {BUILD_COMMAND}")
    return found


def _find_gpu() -> paddle.base.core.Place | None:
    if paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0:
        return paddle.CUDAPlace(0)
    custom = paddle.device.get_all_custom_device_type()
    return paddle.CustomPlace(custom[0], 0) if custom else None


@contextmanager
def _device_for_encoder(place: paddle.base.core.Place) -> Iterator[None]:
    """Runs the float parts where Paddle has kernels: a custom device has none of its own."""
    before = paddle.device.get_device()
    paddle.device.set_device("gpu:0" if place.is_gpu_place() else "cpu")
    try:
        yield
    finally:
        paddle.device.set_device(before)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on standard error, or lines of text without rich.

    Yields:
        A function to call with the title of each step as it starts.
    """
    try:
        from rich.console import Console
        from rich.progress import Progress, TimeElapsedColumn
    except ImportError:
        yield lambda title: print(title, file=sys.stderr)
        return
    columns = (*Progress.get_default_columns()[:2], TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=total)
        started = 0

        def on_step(title: str) -> None:
            nonlocal started
            bar.update(task, completed=started, description=title)
            started += 1

        yield on_step
        bar.update(task, completed=total, description="done")
