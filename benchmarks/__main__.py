"""`python -m benchmarks`: what caching folded backbone features is worth on this machine.

Images and weights are generated. A table for each stage of training goes to stdout; `--json` writes
the same figures to a file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fmnist_tf.cli.command import add_terminal_flags, run_command
from fmnist_tf.errors import UsageError
from fmnist_tf.system.files import check_target, write_atomically

MIN_SIDE, MAX_SIDE = 32, 1024


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the stages of training on this machine in alternating rounds: this "
        "project beside plain Keras, OpenVINO and torch.compile (pip install -e '.[bench]').",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few short rounds on smaller images, without the gap head; minutes on 2 cores",
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write the result; an existing file is replaced"
    )
    parser.add_argument(
        "--image-size",
        metavar="N",
        type=int,
        help="side in pixels that images are resized to (default: 224, with --quick 64)",
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_run, build_parser().parse_args(argv))


def _run(flags: argparse.Namespace) -> None:
    side = flags.image_size
    if side is not None and not MIN_SIDE <= side <= MAX_SIDE:
        raise UsageError(
            f"--image-size {side}: expected a whole number from {MIN_SIDE} to {MAX_SIDE}"
        )
    if flags.json is not None:
        check_target("--json", flags.json)

    from benchmarks.measure import run_benchmark
    from benchmarks.plan import FULL, QUICK
    from benchmarks.table import format_result

    settings = QUICK if flags.quick else FULL
    result = run_benchmark(replace(settings, image_size=side or settings.image_size))
    # Printed first: a full disk does not lose the result.
    print(format_result(result, shutil.get_terminal_size().columns), flush=True)
    if flags.json is not None:
        with write_atomically(flags.json) as file:
            file.write(json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    sys.exit(main())
