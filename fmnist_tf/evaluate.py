"""`python -m fmnist_tf.evaluate RUN`: measure a finished run on labelled images.

Prints precision, recall and F1 of each class, the accuracy with counts and 95 % interval, and one
last line for scripts. Writes nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmnist_tf.cli.command import add_run_arguments, add_terminal_flags, run_command
from fmnist_tf.cli.parser import CommandParser
from fmnist_tf.errors import UsageError, printable

if TYPE_CHECKING:
    from fmnist_tf.results.evaluation import Evaluation


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = CommandParser(
        "evaluate",
        "Measure a finished run on its own test data, or on labelled images.",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="labelled images, in any form that train reads; their labels are those of the run's "
        "training data or the names of the run's classes, some may be missing (default: the run's "
        "own test data, unchanged)",
    )
    parser.add_argument("--labels", metavar="PATH", help="file of the labels of --data")
    parser.add_argument(
        "--label-column",
        metavar="COLUMN",
        help="label column in --data: a name, a number from 1, first or last (default: the run's, "
        "else found)",
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_evaluate, build_parser().parse_args(argv))


def _evaluate(flags: argparse.Namespace) -> None:
    from fmnist_tf.pipeline.run_data import evaluate_run
    from fmnist_tf.pipeline.saved_run import open_run
    from fmnist_tf.results.temperature import describe_scaling

    if flags.data is None and (flags.label_column, flags.labels) != (None, None):
        raise UsageError("--label-column and --labels: expected together with --data PATH")
    run = open_run(flags.run, flags.runs_dir)
    name, evaluation, scaling = evaluate_run(run, flags.data, flags.label_column, flags.labels)
    print(format_classes(evaluation, run.class_names, shutil.get_terminal_size().columns))
    low, high = evaluation.interval_95
    print(f"\n95 % interval of the accuracy {low:.4f} to {high:.4f}; loss {evaluation.loss:.4f}")
    print(describe_scaling(scaling))
    print(
        f"{printable(str(run.directory.path), 200)} on {printable(name, 200)}  accuracy "
        f"{evaluation.accuracy:.4f} ({evaluation.correct}/{evaluation.total})"
    )


def format_classes(evaluation: Evaluation, class_names: Sequence[str], width: int) -> str:
    """Return a table with a line for each class, at most `width` characters wide.

    A class without images has no recall, and no image that its precision could count as correct:
    its figures are shown as "-".
    """
    from fmnist_tf.cli.terminal import align
    from fmnist_tf.results.analysis import score_classes

    scores = score_classes(evaluation.confusion)
    room = max(8, width - 29 - max(len("images"), len(f"{evaluation.total:,}")))
    rows = [["class", "precision", "recall", "F1", "images"]]
    figures = zip(scores.precision, scores.recall, scores.f1, scores.support, strict=True)
    for name, (*fractions, support) in zip(class_names, figures, strict=True):
        shown = [f"{fraction:.4f}" if support else "-" for fraction in fractions]
        rows.append([printable(name, room), *shown, f"{int(support):,}"])
    return "\n".join(align(rows))


if __name__ == "__main__":
    sys.exit(main())
