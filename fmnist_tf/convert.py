"""`python -m fmnist_tf.convert INPUT OUTPUT.csv`: mend a file of images, and write it as a CSV.

Reads what `train` reads. Writes the columns `label` (if there are labels) and `pixel1` ...
`pixel784`, a line for each image, in their order.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fmnist_tf.cli.command import add_terminal_flags, run_command
from fmnist_tf.cli.parser import CommandParser
from fmnist_tf.errors import UsageError
from fmnist_tf.system.files import check_target, write_atomically


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = CommandParser(
        "convert",
        "Mend a file of images, and write it as a CSV. The steps are done in this "
        "order: scale, negate, transpose, flip.",
    )
    parser.add_argument("input", metavar="INPUT", type=Path, help="images, with or without labels")
    parser.add_argument("output", metavar="OUTPUT.csv", type=Path, help="the CSV; must not exist")
    parser.add_argument(
        "--label-column",
        metavar="COLUMN",
        help="label column in INPUT: a name, a number from 1, first or last (default: found)",
    )
    parser.add_argument(
        "--scale",
        metavar="F",
        type=float,
        default=1.0,
        help="multiply the grey levels, and clip them to 255: 255 for pixels of 0 and 1, 17 for "
        "0..15 (default: 1)",
    )
    parser.add_argument(
        "--negate",
        action="store_true",
        help="exchange dark and bright: subtract from 255, or from 15 for 0..15, and so on",
    )
    parser.add_argument(
        "--transpose", action="store_true", help="exchange rows and columns, for EMNIST's files"
    )
    parser.add_argument("--flip-rows", action="store_true", help="exchange top and bottom")
    parser.add_argument("--flip-columns", action="store_true", help="exchange left and right")
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_convert, build_parser().parse_args(argv))


def _convert(flags: argparse.Namespace) -> None:
    import numpy as np
    import pandas as pd

    from fmnist_tf.cli.terminal import say
    from fmnist_tf.data.compare import transform
    from fmnist_tf.data.locate import pick_table
    from fmnist_tf.data.tables import read_table

    if not 0 < flags.scale <= 255:
        raise UsageError(f"--scale {flags.scale}: expected a number above 0 and up to 255")
    check_target("OUTPUT.csv", flags.output)
    if flags.output.exists():
        raise UsageError(f"{flags.output} exists already; name another output")
    with tempfile.TemporaryDirectory() as folder:
        table = read_table(pick_table(flags.input), Path(folder), label_column=flags.label_column)
        for decision in table.decisions:
            say(f"{flags.input}: {decision}")
        pixels = transform(
            table.pixels[:],
            scale=flags.scale,
            negate=flags.negate,
            transpose=flags.transpose,
            flip_rows=flags.flip_rows,
            flip_columns=flags.flip_columns,
        )
    frame = pd.DataFrame(pixels, columns=[f"pixel{k}" for k in range(1, pixels.shape[1] + 1)])
    if table.label_index is not None:
        frame.insert(0, "label", np.array(table.label_values)[table.label_index])
    with write_atomically(flags.output) as file:
        frame.to_csv(file, index=False, lineterminator="\n")
    print(f"{flags.output}  {len(pixels):,} images")


if __name__ == "__main__":
    sys.exit(main())
