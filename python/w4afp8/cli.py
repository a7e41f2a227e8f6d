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
"""The command ``w4afp8``, also ``python -m w4afp8``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from w4afp8 import checkpoint_commands
from w4afp8.bench import command as bench_command


def build_parser() -> argparse.ArgumentParser:
    """Describes the commands and their options."""
    parser = argparse.ArgumentParser(
        prog="w4afp8", description="4-bit weights x FP8 activations for PaddlePaddle."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    checkpoint_commands.add_parsers(commands)
    bench_command.add_parser(commands)
    commands.add_parser("info", help="print what was built into this package")
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser(
        "demo",
        help="compare a real sentence encoder in float32 and with 4-bit feed-forward blocks",
        description="Embeds sentences with all-MiniLM-L6-v2 in float32, then with its feed-forward "
        "blocks as 4-bit mixture-of-experts layers, and prints what that costs and saves.",
    )
    demo.add_argument("--text", type=Path, help="your own sentences, one a line (at least 2)")
    demo.add_argument(
        "--out", type=Path, default=Path("demo_out"), help="folder for table and plot (%(default)s)"
    )
    demo.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="(%(default)s)")
    demo.add_argument(
        "--dtype",
        choices=("bfloat16", "float16"),
        default="bfloat16",
        help="of the quantised blocks' inputs and outputs (%(default)s)",
    )
    demo.add_argument(
        "--rounding",
        choices=("absmax/7", "absmax/7.5", "mse"),
        default="absmax/7",
        help="rule for the scales of int4; mse searches the best (%(default)s)",
    )
    demo.add_argument("--copy", type=Path, help="read model and sentences from such a file")
    demo.add_argument(
        "--save-copy",
        type=Path,
        metavar="FILE.npz",
        help="write a small FP16 copy of model and sentences, which --copy reads with numpy alone",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the arguments after the program's name; None takes the process's.

    Returns:
        The exit status: 0, or 1 where the user has something to mend (said on standard error).
    """
    options = build_parser().parse_args(argv)
    try:
        if options.command == "bench":
            return bench_command.run(options)
        if options.command in checkpoint_commands.COMMANDS:
            return checkpoint_commands.run(options)
        return _run_demo(options) if options.command == "demo" else _print_info()
    except ImportError as error:  # no Paddle, or the operators were not built
        print(f"w4afp8 {options.command}: {error}", file=sys.stderr)
        return 1


def _run_demo(options: argparse.Namespace) -> int:
    from w4afp8.demo import DemoError, DemoOptions, run_demo

    try:
        run_demo(
            DemoOptions(
                text=options.text,
                out=options.out,
                device=options.device,
                dtype=options.dtype,
                rounding=options.rounding,
                copy=options.copy,
                save_copy=options.save_copy,
            )
        )
    except DemoError as error:
        print(f"w4afp8 demo: {error}", file=sys.stderr)
        return 1
    return 0


def _print_info() -> int:
    import w4afp8

    for name, value in w4afp8.build_info().items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
