"""`python -m fmnist_tf.predict RUN INPUT...`: images -> the most probable classes of each.

In: a finished run; CSVs with or without labels, PNGs and JPEGs. Out: small tables on stdout and,
with --out, a CSV of all rows that spreadsheets can open safely. This module must not know how a
picture becomes pixels, nor count what is right.

Shape letters: N images, K classes, T classes named for each image.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_tf.cli.command import add_run_arguments, add_terminal_flags, run_command
from fmnist_tf.errors import UsageError, printable
from fmnist_tf.system.files import check_target, write_atomically

if TYPE_CHECKING:
    import numpy as np

    from fmnist_tf.model.inference import RunBatches
    from fmnist_tf.pipeline.saved_run import SavedRun

SHOWN_ROWS = 10
"""Rows of a CSV that the terminal gets."""
_PROBABILITIES_AT_ONCE = 1 << 24  # in memory, 64 MB
_NAME_WIDTH = 24
_CELL_LENGTH = 32_000  # spreadsheets cut longer ones
# A cell that begins with one of these is a formula to a spreadsheet (OWASP, "CSV Injection").
_FORMULA = tuple("=+-@＝＋－＠")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.predict",
        description="Name the most probable classes of images: CSV rows of 784 grey pixels, with "
        "or without labels, and pictures (PNG, JPEG) of any size, told apart by their first "
        "bytes. Pictures are made like the run's training images, and how is said. Where some "
        "inputs cannot be read, the others are predicted all the same; the bad ones are named at "
        "the end, and the exit code is 2.",
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument("inputs", metavar="INPUT", nargs="+", type=Path, help="CSV, PNG or JPEG")
    parser.add_argument(
        "--top", metavar="K", type=int, default=3, help="classes for each image (default: 3)"
    )
    parser.add_argument(
        "--out", metavar="FILE.csv", type=Path, help="write all rows; an existing file is replaced"
    )
    parser.add_argument(
        "--label-column",
        metavar="NAME",
        help="name of the label's column in CSVs (default: the run's, else found by the header)",
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_predict, build_parser().parse_args(argv))


@dataclass(frozen=True)
class Source:
    """The images of one input.

    Attributes:
        name: the file as the user named it.
        pixels: (N, 784) uint8; of a CSV mapped from disk.
        first_line: the line of row 0 in a CSV; None for a picture.
        label_index: (N,) places in `truths`, or None without labels.
        truths: what the labels mean: the run's name of the class, or what the run does not know.
    """

    name: str
    pixels: np.ndarray
    first_line: int | None = None
    label_index: np.ndarray | None = None
    truths: tuple[str, ...] = ()

    def truth(self, row: int) -> str:
        """Return the true class of a row; empty without labels."""
        return "" if self.label_index is None else self.truths[self.label_index[row]]


@dataclass(frozen=True)
class Ranked:
    """The guesses for rows `first`, `first + 1`, ... of a source, the most probable class first.

    Attributes:
        source: whose rows.
        first: row number.
        classes: (N, T) class indices.
        probabilities: (N, T) float32.
    """

    source: Source
    first: int
    classes: np.ndarray
    probabilities: np.ndarray


def _predict(flags: argparse.Namespace) -> None:
    _check_flags(flags)
    with tempfile.TemporaryDirectory() as store_dir:  # of parsed CSVs; nothing is left behind
        _predict_all(flags, store_dir)


def _predict_all(flags: argparse.Namespace, store_dir: str) -> None:
    from fmnist_tf.cli.terminal import boxed, warn
    from fmnist_tf.pipeline.saved_run import compile_saved_model, find_run, read_saved_run
    from fmnist_tf.system.startup import import_tensorflow

    run = read_saved_run(find_run(flags.run, flags.runs_dir))
    for caveat in run.caveats:
        warn(boxed(f"WARNING, this model: {caveat}."))
    sources: list[Source] = []
    faults: list[str] = []
    for path in flags.inputs:
        try:
            sources.append(_read_source(path, run, flags.label_column, store_dir))
        except UsageError as fault:
            faults.append(str(fault))
    if sources:
        top = min(flags.top, len(run.class_names))
        with _open_table(flags.out, top, run.class_names, sources) as write:
            import_tensorflow()
            run_batches = compile_saved_model(run)
            for ranked in _rank_all(run_batches, sources, len(run.class_names), top):
                width = shutil.get_terminal_size().columns
                for line in format_ranked(ranked, run.class_names, width):
                    print(line)
                write(ranked)
    if faults:
        done = f"the other {len(sources)} were predicted" if sources else "nothing was predicted"
        faults.append(f"{len(faults)} of {len(flags.inputs)} inputs cannot be read; {done}")
        raise UsageError("\n".join(faults))


def _check_flags(flags: argparse.Namespace) -> None:
    if flags.top < 1:
        raise UsageError(f"--top {flags.top}: expected a whole number from 1")
    if flags.out is None:
        return
    check_target("--out", flags.out)
    if flags.out.exists() and any(
        path.exists() and flags.out.samefile(path) for path in flags.inputs
    ):
        raise UsageError(
            f"--out {printable(str(flags.out), 200)}: expected another file than the inputs; it "
            "would be replaced"
        )


def _read_source(path: Path, run: SavedRun, label_column: str | None, store_dir: str) -> Source:
    from fmnist_tf.cli.terminal import say, warn
    from fmnist_tf.data.csv.table import read_csv
    from fmnist_tf.data.labels import index_classes
    from fmnist_tf.data.photos import find_polarity, is_picture, read_picture
    from fmnist_tf.pipeline.saved_run import read_with_label

    shown = printable(str(path), 200)
    facts = run.provenance["data"]
    if is_picture(path):
        if "background" not in facts or "content_side" not in facts:
            raise UsageError(
                f"{shown}: expected a run that says how its training images look, found one of an "
                "older version; train it again, or predict from CSV"
            )
        picture = read_picture(
            path, background=facts["background"], content_side=facts["content_side"]
        )
        say(f"{shown}: {'; '.join(picture.decisions)}")
        return Source(str(path), picture.pixels[None])

    table = read_with_label(
        lambda column: read_csv(path, store_dir, label_column=column), run, label_column
    )
    for decision in table.decisions:
        say(f"{shown}: {decision}")
    if "background" in facts and (sentence := find_polarity(table.pixels, facts["background"])):
        warn(f"{shown}: {sentence}")
    places = index_classes(run.class_names)
    truths = [
        run.class_names[places[text]] if text in places else text for text in table.label_values
    ]
    return Source(str(path), table.pixels, table.first_line, table.label_index, tuple(truths))


def _rank_all(
    run_batches: RunBatches, sources: Sequence[Source], n_classes: int, top: int
) -> Iterator[Ranked]:
    """Yield the guesses in the order of the sources, never more at once than fit into memory."""
    import numpy as np

    rows_at_once = max(1, _PROBABILITIES_AT_ONCE // n_classes)
    for is_csv, group in itertools.groupby(sources, lambda source: source.first_line is not None):
        if is_csv:
            for source in group:
                for first in range(0, len(source.pixels), rows_at_once):
                    pixels = source.pixels[first : first + rows_at_once]
                    yield Ranked(source, first, *_rank(run_batches, pixels, top))
        else:
            pictures = list(group)  # all at once, because a call costs more than an image
            pixels = np.concatenate([source.pixels for source in pictures])
            classes, probabilities = _rank(run_batches, pixels, top)
            for row, source in enumerate(pictures):
                yield Ranked(source, 0, classes[row : row + 1], probabilities[row : row + 1])


def _rank(run_batches: RunBatches, pixels: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return classes and probabilities (N, T); of equals the first class goes first."""
    import numpy as np

    from fmnist_tf.cli.terminal import progress_bar
    from fmnist_tf.model.inference import run_all

    with progress_bar("predict", "image") as show:
        (probabilities,) = run_all(run_batches, pixels, show)
    classes = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return classes, np.take_along_axis(probabilities, classes, axis=1)


def format_ranked(ranked: Ranked, class_names: Sequence[str], width: int) -> list[str]:
    """Return what the terminal shows of these guesses, lines at most `width` wide.

    A picture gets a line a class; a CSV one line a row, `SHOWN_ROWS` in all, each with as many
    classes as fit, one at least.
    """
    source = ranked.source
    if ranked.first:
        return []
    title = printable(source.name, width)
    if source.first_line is None:
        guesses = zip(ranked.classes[0], ranked.probabilities[0], strict=True)
        room = max(8, width - 10)
        return [title, *(f"  {p:.4f}  {printable(class_names[k], room)}" for k, p in guesses)]
    n_shown = min(SHOWN_ROWS, len(ranked.classes))
    columns = [_right(["line", *(str(source.first_line + row) for row in range(n_shown))])]
    if source.label_index is not None:
        truths = (printable(source.truth(row), _NAME_WIDTH) for row in range(n_shown))
        columns.append(_left(["truth", *truths]))
    least = len(columns) + 1
    for place in range(ranked.classes.shape[1]):
        names = [printable(class_names[k], _NAME_WIDTH) for k in ranked.classes[:n_shown, place]]
        chances = ranked.probabilities[:n_shown, place]
        cells = (f"{name} {p:.4f}" for name, p in zip(_left(names), chances, strict=True))
        columns.append(_left(["" if place else "guess", *cells]))
    while len(columns) > least and len("  ".join(column[0] for column in columns)) > width:
        columns.pop()
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    more = len(source.pixels) - n_shown
    rest = [f"... and {more:,} more; --out FILE.csv writes all"] if more else []
    return [title, *lines, *(printable(line, width) for line in rest)]


def _left(cells: Sequence[str]) -> list[str]:
    return [cell.ljust(max(map(len, cells))) for cell in cells]


def _right(cells: Sequence[str]) -> list[str]:
    return [cell.rjust(max(map(len, cells))) for cell in cells]


@contextlib.contextmanager
def _open_table(
    path: Path | None, top: int, class_names: Sequence[str], sources: Sequence[Source]
) -> Iterator[Callable[[Ranked], None]]:
    """Yield a function that writes guesses to the CSV `path`, which appears whole at the end."""
    if path is None:
        yield lambda ranked: None
        return
    further = [f"{what}_{k}" for k in range(2, top + 1) for what in ("guess", "probability")]
    header = ["file", "line", "guess", "probability", *further]
    is_labelled = any(source.label_index is not None for source in sources)
    names = [safe_cell(name) for name in class_names]
    with (
        write_atomically(path) as file,
        io.TextIOWrapper(file, encoding="utf-8", newline="") as text,
    ):
        # Quotes around every text: some spreadsheets divide a line at semicolons too.
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([*header, "truth"] if is_labelled else header)

        def write(ranked: Ranked) -> None:
            source = ranked.source
            shown = safe_cell(source.name)
            source = replace(source, truths=tuple(safe_cell(truth) for truth in source.truths))
            rows = zip(ranked.classes.tolist(), ranked.probabilities.tolist(), strict=True)
            for row, (classes, probabilities) in enumerate(rows, ranked.first):
                line = "" if source.first_line is None else source.first_line + row
                cells = [shown, line]
                for index, probability in zip(classes, probabilities, strict=True):
                    cells += (names[index], f"{probability:.6f}")
                if is_labelled:
                    cells.append(source.truth(row))
                writer.writerow(cells)

        yield write


def safe_cell(text: str) -> str:
    """Return text as a CSV cell that no spreadsheet takes for a formula.

    Control characters are escaped, tab and carriage return too; what begins like a formula gets an
    apostrophe in front, unless it is a whole number.
    """
    from fmnist_tf.data.csv.cells import is_whole

    shown = printable(text, _CELL_LENGTH)
    return "'" + shown if shown.startswith(_FORMULA) and not is_whole(shown) else shown


if __name__ == "__main__":
    sys.exit(main())
