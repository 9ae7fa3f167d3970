"""`python -m fmnist_tf.sweep`: train with many settings, compare them on the validation rows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fmnist_tf.cli.command import add_terminal_flags, run_command
from fmnist_tf.cli.parser import CommandParser
from fmnist_tf.pipeline.resolve import Request
from fmnist_tf.settings.backbones import find_name
from fmnist_tf.settings.config import check_value
from fmnist_tf.settings.flags import add_flags
from fmnist_tf.train import add_recipe, add_run_flags


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags; a setting that is not given is absent from the result."""
    parser = CommandParser(
        "sweep",
        "Train with many settings and compare them on the validation rows. The flags "
        "of fmnist_tf.train set what the trials have in common.",
        usage="%(prog)s [FLAG ...]",
        epilog="The same command with the same --run continues a sweep, and tries failed trials "
        "again. Several processes, on several machines with a shared disk, may run it at the same "
        "time.",
    )
    group = parser.add_argument_group("trials")
    group.add_argument(
        "--grid",
        metavar="SETTING=VALUE,VALUE SETTING=...",
        default="",
        help="what to vary, e.g. 'learning_rate=1e-4,3e-4 units=0,512 augment=none,flip+erasing'; "
        "with --random or --tpe also ranges: 'learning_rate=1e-5..1e-2:log dropout=0..0.7'",
    )
    sampler = group.add_mutually_exclusive_group()
    sampler.add_argument(
        "--random",
        metavar="N",
        type=int,
        help="train N random points instead of the whole grid; a trial whose validation accuracy "
        "is below the median of at least 5 others after the same epoch is pruned, from epoch 2 on",
    )
    sampler.add_argument(
        "--tpe",
        metavar="N",
        type=int,
        help="the same with N points of which all but the first 10 are chosen by the results so "
        "far (tree-structured Parzen estimator)",
    )
    group.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        help="train each point with N seeds from --seed on, and give mean and standard deviation; "
        "without --grid each is a finished run, tested once (default: 1)",
    )
    add_recipe(parser.add_argument_group("settings from a file"))
    add_flags(parser)
    group = parser.add_argument_group("where")
    group.add_argument("--run", metavar="NAME", help="name of the sweep (default: the time)")
    add_run_flags(group)
    group.add_argument(
        "--dry-run", action="store_true", help="check the settings and list the trials"
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda flags: _sweep(flags, arguments), build_parser().parse_args(arguments))


def _sweep(flags: argparse.Namespace, arguments: Sequence[str]) -> None:
    given = Request.of(flags).given
    for name, value in given.items():
        check_value(name, value)
    if "backbone" in given:
        find_name(given["backbone"])
    from fmnist_tf.pipeline.sweeping import run_sweep  # imports Optuna and pandas, which is slow

    run_sweep(flags, arguments)


if __name__ == "__main__":
    sys.exit(main())
