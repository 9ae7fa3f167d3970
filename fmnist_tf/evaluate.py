"""`python -m fmnist_tf.evaluate RUN`: a finished run and labelled images -> what it gets right.

In: a run, and its own test data or a labelled CSV. Out: on stdout a table of the classes, the
accuracy with counts and 95 % interval, and one last line for scripts; nothing is written to the
run. This module must not train, nor judge unlabelled images.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmnist_tf.cli.command import add_run_arguments, add_terminal_flags, run_command
from fmnist_tf.errors import DataError, Problem, UsageError, printable

if TYPE_CHECKING:
    import numpy as np

    from fmnist_tf.data.images import Table
    from fmnist_tf.pipeline.saved_run import SavedRun
    from fmnist_tf.results.evaluation import Evaluation

_NUMBERS = "{:>9}  {:>6}  {:>6}  {:>9}"  # precision, recall, F1, support


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.evaluate",
        description="Measure a finished run on its own test data, or on a labelled CSV.",
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="labelled CSV; its labels are those of the run's training data or the names of the "
        "run's classes, some may be missing (default: the run's own test data, unchanged)",
    )
    parser.add_argument(
        "--label-column",
        metavar="NAME",
        help="name of the label's column in --data (default: the run's, else found)",
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_evaluate, build_parser().parse_args(argv))


def map_labels(table: Table, class_names: Sequence[str]) -> np.ndarray:
    """Return the table's labels (N,) int64 as class indices of the run.

    Raises:
        DataError: E026 without labels; E028 for each label that is no class, at its first line.
    """
    import numpy as np

    from fmnist_tf.data.labels import index_classes

    if table.label_index is None:
        hint = "name it with --label-column; without labels use `python -m fmnist_tf.predict`"
        found = "no label column"
        raise DataError(
            [Problem("E026", table.path, None, None, None, found, "labelled images", hint)]
        )
    places = index_classes(class_names)
    problems = []
    for place, text in enumerate(table.label_values):
        if text not in places:
            line = table.first_line + int(np.argmax(table.label_index == place))
            shown = ", ".join(printable(name, 20) for name in list(places)[:10])
            expected = f"a class of the run: {shown}{', ...' if len(places) > 10 else ''}"
            found = f"the label {printable(text)}"
            field, hint = table.label_field, "the run has never seen this class"
            problems.append(Problem("E028", table.path, line, field, None, found, expected, hint))
    if problems:
        raise DataError(sorted(problems, key=lambda problem: problem.line or 0))
    of_value = np.array([places[text] for text in table.label_values], np.int64)
    return of_value[np.asarray(table.label_index)]


def _evaluate(flags: argparse.Namespace) -> None:
    from fmnist_tf.cli.terminal import boxed, progress_bar, warn
    from fmnist_tf.model.inference import run_all
    from fmnist_tf.pipeline.saved_run import compile_saved_model, find_run, read_saved_run
    from fmnist_tf.results.evaluation import Evaluation
    from fmnist_tf.system.startup import import_tensorflow

    run = read_saved_run(find_run(flags.run, flags.runs_dir))
    if flags.label_column is not None and flags.data is None:
        raise UsageError("--label-column NAME: expected with --data PATH alone")
    for caveat in run.caveats:
        warn(boxed(f"WARNING, this model: {caveat}."))
    # A stranger's CSV is parsed into a folder that goes when it was evaluated.
    with tempfile.TemporaryDirectory() as store_dir:
        name, pixels, labels = _read_images(run, flags, store_dir)
        import_tensorflow()
        run_batches = compile_saved_model(run)
        with progress_bar("evaluate", "image") as show:
            (probabilities,) = run_all(run_batches, pixels, show)
    evaluation = Evaluation.from_probabilities(labels, probabilities)
    print(format_classes(evaluation, run.class_names, shutil.get_terminal_size().columns))
    low, high = evaluation.interval_95
    print(f"\n95 % interval of the accuracy {low:.4f} to {high:.4f}; loss {evaluation.loss:.4f}")
    print(
        f"{printable(str(run.directory.path), 200)} on {printable(name, 200)}  accuracy "
        f"{evaluation.accuracy:.4f} ({evaluation.correct}/{evaluation.total})"
    )


def _read_images(
    run: SavedRun, flags: argparse.Namespace, store_dir: str
) -> tuple[str, np.ndarray, np.ndarray]:
    """Return what the images are called, their pixels (N, 784) uint8 and labels (N,) int64."""
    from fmnist_tf.cli.terminal import boxed, say, warn
    from fmnist_tf.data.csv.table import expand_path, read_csv
    from fmnist_tf.data.photos import find_polarity
    from fmnist_tf.pipeline.saved_run import read_run_dataset, read_with_label

    if flags.data is None:
        dataset = read_run_dataset(run, say)
        say(f"data: the run's own {len(dataset.test.labels):,} test images")
        return dataset.name, dataset.test.pixels, dataset.test.labels
    path = expand_path(flags.data)
    table = read_with_label(
        lambda column: read_csv(path, store_dir, label_column=column), run, flags.label_column
    )
    for decision in table.decisions:
        say(f"{printable(table.path, 200)}: {decision}")
    labels = map_labels(table, run.class_names)
    if table.sha256 == run.data_sha256[0]:
        warn(
            boxed(
                "WARNING: THE RUN WAS TRAINED ON THIS FILE.",
                "What follows measures memory and is no test.",
            )
        )
    background = run.provenance["data"].get("background")
    if background is not None and (sentence := find_polarity(table.pixels, background)):
        warn(f"{printable(table.path, 200)}: {sentence}")
    return table.path, table.pixels, labels


def format_classes(evaluation: Evaluation, class_names: Sequence[str], width: int) -> str:
    """Return the table of the classes, a line each and at most `width` wide.

    A class without examples has no recall, and a precision of nothing but strangers: "-" stands for
    its figures.
    """
    from fmnist_tf.results.analysis import score_classes

    scores = score_classes(evaluation.confusion)
    head = _NUMBERS.format("precision", "recall", "F1", "images")
    room = max(8, min(max(map(len, (*class_names, "class"))), width - len(head) - 2))
    lines = [f"{'class':{room}}  {head}"]
    for index, name in enumerate(class_names):
        support = int(scores.support[index])
        figures = (scores.precision[index], scores.recall[index], scores.f1[index])
        cells = [f"{figure:.4f}" if support else "-" for figure in figures]
        lines.append(f"{printable(name, room):{room}}  {_NUMBERS.format(*cells, f'{support:,}')}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
