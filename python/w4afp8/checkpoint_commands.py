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
"""The commands ``w4afp8 inspect``, ``convert`` and ``verify``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # its import costs Paddle's
    from w4afp8.checkpoint import Checkpoint

COMMANDS = ("inspect", "convert", "verify")


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Describes the three commands and their options."""
    inspect = commands.add_parser(
        "inspect",
        help="print what a checkpoint holds",
        description="Reads every expert and prints layers, formats and how the scales are spread.",
    )
    _add_source(inspect, "path", "a .safetensors file, or a folder of such")
    inspect.add_argument("--json", action="store_true", help="print JSON, not a table")

    convert = commands.add_parser(
        "convert",
        help="write a checkpoint's experts in another format, bit for bit",
        description="Writes the mixture-of-experts layers of SRC into the new folder DST. A run "
        "that was broken off is continued by the same command; DST is there when all of it is.",
    )
    _add_source(convert, "src", "a .safetensors file, or a folder of such")
    convert.add_argument("dst", type=Path, help="a folder that does not exist")
    convert.add_argument(
        "--to", choices=("native", "compressed-tensors"), default="native", help="(%(default)s)"
    )

    verify = commands.add_parser(
        "verify",
        help="compare two checkpoints bit by bit",
        description="Dequantises both checkpoints and compares every weight, bias, input scale and "
        "router. The exit status is 1 where they differ.",
    )
    _add_source(verify, "first", "a checkpoint")
    verify.add_argument("second", type=Path, help="another, of any format")
    verify.add_argument(
        "--worst",
        type=_positive,
        default=10,
        metavar="N",
        help="differences to print, the worst first (%(default)s)",
    )


def _add_source(parser: argparse.ArgumentParser, name: str, description: str) -> None:
    parser.add_argument(name, type=Path, help=description)
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    rounded = parser.add_argument_group("for BF16 and FP8 checkpoints, which are rounded to 4 bits")
    rounded.add_argument("--weight-format", choices=("int4", "mxfp4"), help="what to round to")
    rounded.add_argument("--group-size", type=int, help="weights that share a scale, -1 a channel")
    rounded.add_argument(
        "--rounding",
        choices=("absmax/7", "absmax/7.5", "mse"),
        help="rule for the scales of int4; mse searches the best",
    )
    rounded.add_argument(
        "--scale-dtype", choices=("float32", "bfloat16"), help="of the scales of int4 groups"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def run(options: argparse.Namespace) -> int:
    """Runs one of `COMMANDS`.

    Returns:
        The exit status: 0; 1 where something is wrong, which is said on standard error.
    """
    run_command = {"inspect": _inspect, "convert": _convert, "verify": _verify}[options.command]
    try:
        return run_command(options)
    except (ValueError, OSError) as error:
        print(f"w4afp8 {options.command}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        go_on = "; run it again to go on" if options.command == "convert" else ""
        print(f"w4afp8 {options.command}: interrupted{go_on}", file=sys.stderr)
    return 1


def _rounding_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("weight_format", "group_size", "rounding", "scale_dtype")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _inspect(options: argparse.Namespace) -> int:
    from w4afp8.checkpoint.detect import open_checkpoint
    from w4afp8.checkpoint.inspect import inspect

    checkpoint = open_checkpoint(options.path, **_rounding_options(options))
    summary = inspect(checkpoint, progress=not options.quiet)
    if options.json:
        print(json.dumps(dataclasses.asdict(summary), indent=2))
    else:
        from w4afp8.checkpoint.table import print_summary

        print_summary(summary)
    return 0


def _convert(options: argparse.Namespace) -> int:
    from w4afp8.checkpoint.convert import convert

    report = convert(
        options.src,
        options.dst,
        to=options.to,
        progress=not options.quiet,
        **_rounding_options(options),
    )
    reused = f", {report.reused} of them from an earlier run" if report.reused else ""
    print(f"{report.path}: {report.files} files{reused}, {report.nbytes / 1e6:.1f} MB")
    if report.float32_scales:
        print(
            f"{report.float32_scales} scale tensors are float32, being no bfloat16 numbers: "
            "programs that hold scales in bfloat16 will round them"
        )
    return 0


def _open_either(path: Path, options: argparse.Namespace) -> Checkpoint:
    """Opens a checkpoint; one that is in 4 bits already has no use for options of rounding."""
    from w4afp8.checkpoint.detect import open_checkpoint

    checkpoint = open_checkpoint(path)
    rounding = _rounding_options(options)
    rounded_here = checkpoint.format != "native" and not all(x.exact for x in checkpoint.layers)
    if rounding and rounded_here:
        return open_checkpoint(path, **rounding)
    return checkpoint


def _verify(options: argparse.Namespace) -> int:
    from w4afp8.checkpoint.verify import verify

    first, second = (_open_either(path, options) for path in (options.first, options.second))
    report = verify(first, second, progress=not options.quiet)
    if report.same:
        print(f"the same: {report.values} weights of {report.experts} experts, bit for bit")
        return 0
    for text in report.mismatches:
        print(text)
    for difference in report.differences[: options.worst]:
        print(difference)
    more = len(report.differences) - options.worst
    if more > 0:
        print(f"... and {more} more tensors that differ")
    print(f"w4afp8 verify: {options.first} and {options.second} differ", file=sys.stderr)
    return 1
