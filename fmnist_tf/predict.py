"""`python -m fmnist_tf.predict RUN INPUT...`: the most probable classes of images.

Reads tables of images, with or without labels, and pictures. Prints small tables; `--out` writes
all rows to a CSV that spreadsheets can open safely, `--save-crops` what was made of each picture.

N images, K classes, T classes shown for each image.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_tf.cli.command import add_run_arguments, add_terminal_flags, run_command
from fmnist_tf.cli.parser import CommandParser
from fmnist_tf.errors import UsageError, printable
from fmnist_tf.system.files import check_folder, check_target, write_atomically

if TYPE_CHECKING:
    from fmnist_tf.data.images import PixelRows
    from fmnist_tf.pipeline.run_data import Images
    from fmnist_tf.pipeline.saved_run import SavedRun

SHOWN_ROWS = 10
"""Rows of a CSV that are printed."""
_NAME_WIDTH = 24
_CELL_LENGTH = 32_000  # spreadsheets cut longer ones
# A cell that begins with one of these is a formula to a spreadsheet (OWASP, "CSV Injection").
_FORMULA = tuple("=+-@＝＋－＠")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = CommandParser(
        "predict",
        "Print the most probable classes of images: tables of 28x28 grey pixels (CSV, "
        "IDX, NPY, Parquet, or a zip with one), with or without labels, and pictures (PNG, JPEG, "
        "WebP, GIF, TIFF, BMP) of any size, told apart by their first bytes. Pictures are "
        "converted to what the run's training images look like. If some inputs cannot be read, the "
        "others are still predicted; the bad ones are named at the end and the exit code is 2.",
    )
    add_run_arguments(parser)
    parser.add_argument("inputs", metavar="INPUT", nargs="+", type=Path, help="table or picture")
    parser.add_argument(
        "--top", metavar="K", type=int, default=3, help="classes for each image (default: 3)"
    )
    parser.add_argument(
        "--out", metavar="FILE.csv", type=Path, help="write all rows; an existing file is replaced"
    )
    parser.add_argument(
        "--save-crops",
        metavar="DIR",
        type=Path,
        help="write the 28x28 PNG that the network saw of each picture; existing ones are replaced",
    )
    parser.add_argument(
        "--label-column",
        metavar="COLUMN",
        help="label column in CSVs: a name, a number from 1, first or last (default: the run's, "
        "else found)",
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_predict, build_parser().parse_args(argv))


Prediction = list[tuple[str, float]]
"""Names and probabilities of the T most probable classes of an image, the most probable first."""


def _predict(flags: argparse.Namespace) -> None:
    from fmnist_tf.pipeline.run_data import read_inputs
    from fmnist_tf.pipeline.saved_run import open_run

    _check_flags(flags)
    run = open_run(flags.run, flags.runs_dir)
    sources: list[Images] = []
    errors: list[str] = []
    n_bad = 0
    for path in flags.inputs:
        try:
            sources += read_inputs(run, path, flags.label_column)
        except UsageError as error:
            errors.extend(error.args)
            n_bad += 1
    if flags.save_crops is not None:
        _save_crops(sources, flags.save_crops)
    if sources:
        top = min(flags.top, len(run.class_names))
        is_labelled = any(source.true_labels is not None for source in sources)
        width = shutil.get_terminal_size().columns
        target = write_atomically(flags.out.resolve()) if flags.out else nullcontext(io.BytesIO())
        with target as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
            # Quotes around every text: some spreadsheets split a line at semicolons too.
            writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            writer.writerow(_header(top, is_labelled))
            for source in sources:
                pixels = source.pixels[:SHOWN_ROWS] if flags.out is None else source.pixels
                shown = []
                for row, prediction in enumerate(_run_model(run, pixels, top)):
                    writer.writerow(_csv_row(source, row, prediction, is_labelled))
                    if row < SHOWN_ROWS:
                        shown.append(prediction)
                print("\n".join(format_predictions(source, shown, width)))
    if errors:
        n_good = len(flags.inputs) - n_bad
        done = f"the other {n_good} were predicted" if n_good else "nothing was predicted"
        raise UsageError(*errors, f"{n_bad} of {len(flags.inputs)} inputs cannot be read; {done}")


def _check_flags(flags: argparse.Namespace) -> None:
    if flags.top < 1:
        raise UsageError(f"--top {flags.top}: expected a whole number from 1")
    if flags.save_crops is not None:
        check_folder("--save-crops", flags.save_crops)
    if flags.out is None:
        return
    from fmnist_tf.data.files import split_member
    from fmnist_tf.data.locate import list_parts

    check_target("--out", flags.out)
    paths: list[Path] = []
    for pattern in flags.inputs if flags.out.exists() else ():
        with suppress(UsageError):  # said when it is read
            paths += [split_member(part)[0] for part in list_parts(pattern)]
    if any(p.exists() and flags.out.samefile(p) for p in paths):
        raise UsageError(
            f"--out {flags.out}: expected another file than the inputs; it would be replaced"
        )


def _save_crops(sources: Sequence[Images], folder: Path) -> None:
    """Write the pictures among the sources as 28x28 PNGs: `digit.jpg` as `digit-28x28.png`.

    A second picture of that name gets `digit-28x28-2.png`. No source is replaced.
    """
    from PIL import Image

    from fmnist_tf.cli.terminal import say

    folder.mkdir(parents=True, exist_ok=True)
    taken = {Path(source.name).resolve() for source in sources}
    pictures = [source for source in sources if source.first_line is None]
    for source in pictures:
        name, number = f"{Path(source.name).stem}-28x28", 1
        path = (folder / f"{name}.png").resolve()
        while path in taken:
            number += 1
            path = (folder / f"{name}-{number}.png").resolve()
        taken.add(path)
        with write_atomically(path) as file:
            Image.fromarray(source.pixels[0].reshape(28, 28)).save(file, "PNG")
    say(f"--save-crops {folder}: {len(pictures)} pictures of 28x28 pixels")


def _run_model(run: SavedRun, pixels: PixelRows, top: int) -> Iterator[Prediction]:
    """Yield the prediction of each image, batch by batch; of equals the first class comes first."""
    import numpy as np

    from fmnist_tf.cli.terminal import progress_bar

    run_batches = run.run_scaled
    with progress_bar("predict", "image") as show:
        for probabilities, *_ in run_batches(pixels, show):
            order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
            for row, classes in zip(probabilities.tolist(), order.tolist(), strict=True):
                yield [(run.class_names[k], row[k]) for k in classes]


def format_predictions(source: Images, shown: Sequence[Prediction], width: int) -> list[str]:
    """Return lines, at most `width` characters wide, for the first images of a source.

    A picture gets one line per class. A CSV gets one line per image with as many classes as fit,
    at least one.
    """
    title = printable(source.name, width)
    if source.first_line is None:
        room = max(8, width - 10)
        return [title, *(f"  {p:.4f}  {printable(name, room)}" for name, p in shown[0])]
    numbers = range(source.first_line, source.first_line + len(shown))
    columns = [_align(["line", *map(str, numbers)], ">")]
    if source.true_labels is not None:
        labels = [printable(name, _NAME_WIDTH) for name in source.true_labels[: len(shown)]]
        columns.append(_align(["true label", *labels]))
    n_fixed = len(columns)
    for place in range(len(shown[0])):
        names = _align([printable(prediction[place][0], _NAME_WIDTH) for prediction in shown])
        cells = (f"{name} {p[place][1]:.4f}" for name, p in zip(names, shown, strict=True))
        columns.append(_align(["" if place else "prediction", *cells]))
    while len(columns) > n_fixed + 1 and len("  ".join(column[0] for column in columns)) > width:
        columns.pop()
    lines = [title, *("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))]
    if more := len(source.pixels) - len(shown):
        lines.append(printable(f"... and {more:,} more; --out FILE.csv writes all", width))
    return lines


def _align(cells: Sequence[str], side: str = "<") -> list[str]:
    width = max(map(len, cells))
    return [f"{cell:{side}{width}}" for cell in cells]


def _header(top: int, is_labelled: bool) -> list[str]:
    header = ["file", "line", "prediction", "probability"]
    header += [f"{what}_{k}" for k in range(2, top + 1) for what in ("prediction", "probability")]
    return [*header, "true_label"] if is_labelled else header


def _csv_row(
    source: Images, row: int, prediction: Prediction, is_labelled: bool
) -> list[str | int]:
    line = "" if source.first_line is None else source.first_line + row
    cells = [safe_cell(source.name), line]
    for name, probability in prediction:
        cells += [safe_cell(name), f"{probability:.6f}"]
    if is_labelled:
        cells.append(safe_cell(source.true_labels[row]) if source.true_labels else "")
    return cells


@functools.lru_cache
def safe_cell(text: str) -> str:
    """Return text as a CSV cell that no spreadsheet takes for a formula.

    Control characters, tabs and line ends are escaped. Text that begins like a formula gets an
    apostrophe in front, unless it is a whole number.
    """
    from fmnist_tf.data.csv.cells import is_whole

    shown = printable(text, _CELL_LENGTH)
    return "'" + shown if shown.startswith(_FORMULA) and not is_whole(shown) else shown


if __name__ == "__main__":
    sys.exit(main())
