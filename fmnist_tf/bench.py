"""`python -m fmnist_tf.bench`: what the stored, folded frozen part is worth on this machine.

In: nothing but the machine; images and weights are made. Out: on stdout a table for each stage,
ours beside plain Keras, OpenVINO and torch.compile, all measured in this one run; with --json the
same as JSON. This module must not know how anything is measured.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fmnist_tf.cli.command import add_terminal_flags, run_command
from fmnist_tf.errors import UsageError
from fmnist_tf.system.files import check_target, write_atomically

LEAST_SIDE, MOST_SIDE = 32, 1024


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.bench",
        description="Measure the stages of training here, beside plain Keras, OpenVINO and "
        "torch.compile (pip install -e '.[bench]') in alternating rounds. Takes far longer "
        "than with --quick.",
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
        help="side that images are resized to (default: 224, with --quick 64)",
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_bench, build_parser().parse_args(argv))


def _bench(flags: argparse.Namespace) -> None:
    side = flags.image_size
    if side is not None and not LEAST_SIDE <= side <= MOST_SIDE:
        raise UsageError(
            f"--image-size {side}: expected a whole number from {LEAST_SIDE} to {MOST_SIDE}"
        )
    if flags.json is not None:
        check_target("--json", flags.json)

    import json
    import tempfile

    from fmnist_tf.benchmark.plan import plan_settings
    from fmnist_tf.benchmark.suite import run_benchmark
    from fmnist_tf.benchmark.table import format_result
    from fmnist_tf.cli.terminal import progress_bar, say

    settings = plan_settings(quick=flags.quick, image_size=side)
    with tempfile.TemporaryDirectory(prefix="fmnist_tf-bench-") as folder:
        with progress_bar("bench", "step") as show:
            result = run_benchmark(settings, Path(folder), say=say, show=show)
    # Printed first: a disk that is full by now does not cost the result.
    print(format_result(result, shutil.get_terminal_size().columns), flush=True)
    if flags.json is not None:
        with write_atomically(flags.json) as file:
            file.write(json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    sys.exit(main())
