"""`python -m fmnist_tf.report`: tables on stdout and an HTML page, of complete runs or of data."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_tf.cli.command import add_runs_dir, add_terminal_flags, run_command
from fmnist_tf.cli.parser import CommandParser, name_command
from fmnist_tf.errors import UsageError, printable
from fmnist_tf.system.files import check_folder, check_target, require_unlinked

if TYPE_CHECKING:
    from fmnist_tf.reporting.record import RunRecord

_HEADER = ["run", "network", "val", "test", "images", "minutes"]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = CommandParser(
        "report",
        "Show complete runs: a table; the page of one run, or the comparison of "
        "several. With --data: show a data set.",
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
    from fmnist_tf.cli.terminal import say, warn
    from fmnist_tf.pipeline.saved_run import find_run, write_page
    from fmnist_tf.reporting.comparison import write_comparison
    from fmnist_tf.reporting.record import REPORT, read_complete
    from fmnist_tf.reporting.tracking import TrackedRun
    from fmnist_tf.reporting.wandb_tracker import track_comparison
    from fmnist_tf.results.rundir import describe_runs, list_runs

    runs = [find_run(name, flags.runs_dir) for name in flags.runs]
    if len(runs) == 1 and not runs[0].is_complete:
        page = flags.out or _find_page(runs[0].file(REPORT))
        write_page(runs[0], page)
        print(page)
        return
    records = [read_complete(run) for run in runs]
    for run in () if runs else list_runs(flags.runs_dir):
        try:
            if run.is_complete:
                records.append(read_complete(run))
        except UsageError as error:  # the user did not name this run
            warn(f"skipped: {error}")
    if not records:
        raise UsageError(
            f"{flags.runs_dir}: expected complete runs, found none; "
            f"{describe_runs(flags.runs_dir, '')}. `{name_command('train')}` makes one"
        )
    page, sentences = flags.out, []
    if len(runs) == 1:
        write_page(runs[0], page := page or _find_page(runs[0].file(REPORT)))
    elif runs:
        page = page or _find_page(flags.runs_dir / "comparison.html")
        sentences = write_comparison(records, page)
    _print_runs(records, flags.runs_dir)
    if sentences:
        print("", *(f"- {printable(sentence, 400)}" for sentence in sentences), sep="\n")
    if page is not None:
        print(f"\n{page}")
    else:
        say(f"`{name_command('report')} RUN` writes its page, with two runs or more a comparison")
    if len(runs) > 1:
        names = [record.name for record in records]
        title = printable(" and ".join(names), 100)
        tracked = TrackedRun(title, "comparison", "comparison", {"runs": names})
        columns = ["name", *records[0].cells]
        table = [[record.name, *record.cells.values()] for record in records]
        track_comparison(flags.wandb, flags.runs_dir, tracked, columns, table, page)


def _print_runs(records: Sequence[RunRecord], runs_dir: Path) -> None:
    """Print a table of runs, and what limits the meaning of its figures."""
    rows, notes = [], dict[str, list[str]]()
    for record in records:
        name = record.directory.name_in(runs_dir)
        config, provenance = record.config, record.provenance
        val, test = record.evaluation["val"], record.evaluation.get("test")
        figures = [f"{test['accuracy']:.4f}", f"{test['total']}"] if test else ["-", "-"]
        minutes = sum(provenance["seconds"].values()) / 60
        network = f"{config['phase']} {config['backbone']}"
        rows.append([name, network, f"{val['accuracy']:.4f}", *figures, f"{minutes:.1f}"])
        for caveat in record.caveats:
            notes.setdefault(caveat, []).append(name)
    print(format_runs(rows, shutil.get_terminal_size().columns))
    for caveat, of in notes.items():
        print(printable(f"{caveat}: {'all' if len(of) == len(rows) else ', '.join(of)}", 1000))


def format_runs(rows: Sequence[Sequence[str]], width: int) -> str:
    """Return a table of rows of `_HEADER`, at most `width` wide if the names allow it.

    Names are never cut, as they are what commands take.
    """
    from fmnist_tf.cli.terminal import align

    shown = [_HEADER, *([printable(cell, 200) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    room = max(8, width - sum(widths) + widths[1] - 2 * len(widths[1:]))
    if widths[1] > room:  # the name or the network may say the phase, too
        shown = [[row[0], printable(row[1].split()[-1], room), *row[2:]] for row in shown]
    return "\n".join(align(shown, 2))


def _find_page(path: Path) -> Path:
    """Return the path of a page that the user did not name, where only a file may be."""
    check_target("the page", require_unlinked(path))
    return path


def _show_data(flags: argparse.Namespace) -> None:
    from fmnist_tf.cli.terminal import markdown_table, say
    from fmnist_tf.data.sources import read_dataset
    from fmnist_tf.pipeline.prepare import show_decisions
    from fmnist_tf.pipeline.record import describe_dataset
    from fmnist_tf.reporting.page import write_data_page
    from fmnist_tf.reporting.render import display_names

    check_folder("--runs-dir", flags.runs_dir)
    path = flags.out or Path("data-report.html")
    if flags.out is None:
        check_target("the page", path)
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
