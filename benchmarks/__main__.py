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
from itertools import product
from pathlib import Path

from benchmarks.plan import TASKS
from fmnist_tf.cli.command import add_terminal_flags, run_command
from fmnist_tf.errors import UsageError
from fmnist_tf.settings.backbones import find_name
from fmnist_tf.system.files import check_target, write_atomically

MIN_SIDE, MAX_SIDE = 28, 1024


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
        help="3 rounds of a second in place of 5 of ten seconds; ResNet50 at 64 pixels without the "
        "gap head, unless other flags say more; minutes on 2 cores",
    )
    parser.add_argument(
        "--backbone",
        nargs="+",
        metavar="NAME",
        help="networks (default: resnet50 and efficientnet-lite0)",
    )
    parser.add_argument(
        "--image-size",
        nargs="+",
        metavar="N",
        type=int,
        help="sides in pixels that images are resized to (default: 112 and 224)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        help="the backbone features, or an epoch with a head (default: all)",
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write the result; an existing file is replaced"
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_run, build_parser().parse_args(argv))


def _run(flags: argparse.Namespace) -> None:
    backbones, sides, tasks = ["resnet50", "efficientnet-lite0"], [112, 224], list(TASKS)
    rounds, round_seconds = 5, 10.0
    if flags.quick:
        backbones, sides, tasks = ["resnet50"], [64], ["features", "flatten", "finetune"]
        rounds, round_seconds = 3, 1.0
    backbones = [find_name(name) for name in flags.backbone or backbones]
    sides = flags.image_size or sides
    for side in sides:
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise UsageError(
                f"--image-size {side}: expected a whole number from {MIN_SIDE} to {MAX_SIDE}"
            )
    if flags.json is not None:
        check_target("--json", flags.json)

    from benchmarks.measure import run_benchmark
    from benchmarks.table import format_result

    cases = list(product(backbones, sides))
    result = run_benchmark(cases, flags.tasks or tasks, rounds, round_seconds)
    # Printed first: a full disk does not lose the result.
    print(format_result(result, shutil.get_terminal_size().columns), flush=True)
    if flags.json is not None:
        with write_atomically(flags.json) as file:
            file.write(json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    sys.exit(main())
