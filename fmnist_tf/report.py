"""`python -m fmnist_tf.report`: tables on stdout and an HTML page, of complete runs or of data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_tf.cli.command import add_runs_dir, add_terminal_flags, run_command
from fmnist_tf.errors import UsageError, printable
from fmnist_tf.system.files import check_folder, check_target, require_unlinked

if TYPE_CHECKING:
    from fmnist_tf.results.rundir import RunDir


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.report",
        description="Show complete runs: a table; the page of one run, or the comparison of "
        "several. With --data: show a data set.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="runs or their folders (default: all, table only)"
    )
    add_runs_dir(parser)
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        type=Path,
        help="the page (default: RUN/report.html, RUNS_DIR/comparison.html or data-report.html)",
    )
    parser.add_argument(
        "--wandb",
        choices=("auto", "online", "offline", "disabled"),
        default="disabled",
        help="also record a comparison of runs in Weights & Biases (default: disabled)",
    )
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="{auto,sample,PATH}", help="show this data set, no run")
    group.add_argument("--test-data", metavar="PATH", help="labelled CSV of the test images")
    group.add_argument("--labels", metavar="PATH", help="file of the training labels")
    group.add_argument("--label-column", metavar="COLUMN", help="name, number, first or last")
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_report, build_parser().parse_args(argv))


def _report(flags: argparse.Namespace) -> None:
    if flags.out is not None:
        if flags.out.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--out {flags.out}: expected a name that ends in .html")
        if not flags.runs and flags.data is None:
            raise UsageError("--out: expected a RUN or --data; name a RUN")
        check_target("--out", flags.out)
    if flags.wandb != "disabled" and len(flags.runs) < 2:
        raise UsageError(f"--wandb {flags.wandb}: expected two runs or more, as it records them")
    if flags.data is None:
        if any(flag is not None for flag in (flags.test_data, flags.labels, flags.label_column)):
            raise UsageError("--test-data, --labels and --label-column: expected --data, too")
        _show_runs(flags)
    elif flags.runs:
        raise UsageError("--data: expected no RUN; run the command twice to show both")
    else:
        _show_data(flags)


def _show_runs(flags: argparse.Namespace) -> None:
    from fmnist_tf.cli.terminal import markdown_table, warn
    from fmnist_tf.pipeline.saved_run import find_run
    from fmnist_tf.reporting.page import write_comparison, write_report
    from fmnist_tf.reporting.record import COLUMNS, REPORT, read_complete
    from fmnist_tf.reporting.tracking import TrackedRun
    from fmnist_tf.reporting.wandb_tracker import track_comparison
    from fmnist_tf.results.rundir import list_runs

    runs = [find_run(name, flags.runs_dir) for name in flags.runs]
    if len(runs) == 1 and not runs[0].is_complete:
        _show_stopped(runs[0], flags.out or _find_page(runs[0].file(REPORT)))
        return
    rows = [read_complete(run).cells for run in runs]
    if not runs:
        for run in list_runs(flags.runs_dir):
            try:
                if run.is_complete:
                    rows.append(read_complete(run).cells)
            except UsageError as error:  # the user did not name this run
                warn(f"skipped: {error}")
    if not rows:
        raise UsageError(
            f"{flags.runs_dir}: expected complete runs, found none; make one with "
            "`python -m fmnist_tf.train`"
        )
    page, sentences = flags.out, []
    if len(runs) == 1:
        write_report(runs[0], page := page or _find_page(runs[0].file(REPORT)))
    elif runs:
        page = page or _find_page(flags.runs_dir / "comparison.html")
        sentences = write_comparison(runs, page)
    print(markdown_table(COLUMNS, rows))
    if sentences:
        print("", *(f"- {printable(sentence, 400)}" for sentence in sentences), sep="\n")
    if page is not None:
        print(f"\n{page}")
    if len(runs) > 1:
        names = [run.path.resolve().name for run in runs]
        title = printable(" and ".join(names), 100)
        tracked = TrackedRun(title, "comparison", "comparison", {"runs": names})
        table = [[name, *row] for name, row in zip(names, rows, strict=True)]
        columns = ["name", *COLUMNS]
        track_comparison(flags.wandb, flags.runs_dir, tracked, columns, table, page)


def _find_page(path: Path) -> Path:
    """Return the path of a page that the user did not name, where only a file may be."""
    check_target("the page", require_unlinked(path))
    return path


def _show_stopped(directory: RunDir, path: Path) -> None:
    from fmnist_tf.cli.terminal import boxed, markdown_table, warn
    from fmnist_tf.pipeline.saved_run import read_saved_run, resume_command
    from fmnist_tf.reporting.page import write_stopped_report
    from fmnist_tf.reporting.record import COLUMNS

    run = read_saved_run(directory)
    warn(boxed(f"WARNING, this run: {run.caveats[-1]}."))
    command, best = resume_command(directory), run.best_epoch
    cells = write_stopped_report(directory, run.history, best, command, path)
    print(f"{markdown_table(COLUMNS, [cells])}\n\n{path}")


def _show_data(flags: argparse.Namespace) -> None:
    from fmnist_tf.cli.terminal import markdown_table, say
    from fmnist_tf.data.sources import read_dataset
    from fmnist_tf.pipeline.prepare import describe_dataset, show_decisions
    from fmnist_tf.reporting.page import write_data_page
    from fmnist_tf.reporting.render import display_names

    check_folder("--runs-dir", flags.runs_dir)
    dataset = read_dataset(
        flags.data,
        test_data=flags.test_data,
        label_column=flags.label_column,
        labels=flags.labels,
        store_dir=flags.runs_dir / ".cache" / "pixels",
        say=say,
        to_train=False,
    )
    show_decisions(dataset)
    summary, names = dataset.summary, dataset.train.class_names
    path = flags.out or Path("data-report.html")
    write_data_page(describe_dataset(dataset), summary, names, path)
    counts = zip(display_names(names), summary.train_counts, summary.test_counts, strict=True)
    rows = [(name, f"{train:,}", f"{test:,}") for name, train, test in counts]
    print(markdown_table(("class", "training images", "test images"), rows))
    in_train, in_test, in_both = summary.duplicates
    print(
        f"\nduplicates: {in_train:,} training and {in_test:,} test images; "
        f"{in_both:,} test images are also training images\n\n{path}"
    )


if __name__ == "__main__":
    sys.exit(main())
