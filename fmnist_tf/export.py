"""`python -m fmnist_tf.export RUN --format F`: convert a run's model for servers and phones.

Writes a folder with the model, its class names, and export.json, which compares the export with the
Keras model on test images; prints that comparison as a table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fmnist_tf.cli.command import add_run_arguments, add_terminal_flags, run_command
from fmnist_tf.cli.parser import CommandParser
from fmnist_tf.exporting import FORMATS


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = CommandParser(
        "export",
        "Export a finished run's model, and compare the export with it.",
    )
    add_run_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument(
        "--out", metavar="PATH", type=Path, help="folder to create (default: RUN/export/FORMAT)"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="images to calibrate int8 and to check with (default: the run's own data)",
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_export, build_parser().parse_args(argv))


def _export(flags: argparse.Namespace) -> None:
    from fmnist_tf.pipeline.export import export_run
    from fmnist_tf.pipeline.saved_run import find_run, read_saved_run

    run = read_saved_run(find_run(flags.run, flags.runs_dir))
    out, table = export_run(run, flags.format, flags.out, flags.data)
    print(table)
    print(out)


if __name__ == "__main__":
    sys.exit(main())
