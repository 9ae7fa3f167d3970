"""`python -m fmnist_tf.report`: finished runs, or a data set, -> tables and an HTML page.

In: run directories, or CSVs. Out: Markdown tables on stdout, and one page whose path is printed.
Every figure is made of what the runs' own files say. This module must not load a model.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from fmnist_tf.cli.command import add_runs_dir, add_terminal_flags, run_command
from fmnist_tf.errors import UsageError, printable
from fmnist_tf.system.files import check_folder, check_target


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.report",
        description="Show finished runs: a table; of one run its page, of several a comparison; "
        "or, with --data, a data set.",
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
        help="record a comparison of runs in Weights & Biases too (default: disabled)",
    )
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="{auto,sample,PATH}", help="show this data set and no run")
    group.add_argument("--test-data", metavar="PATH", help="labelled CSV of the test images")
    group.add_argument("--label-column", metavar="NAME", help="name of the label's column")
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_report, build_parser().parse_args(argv))


def _report(flags: argparse.Namespace) -> None:
    if flags.out is not None and flags.out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(
            f"--out {printable(str(flags.out), 200)}: expected a name that ends in .html"
        )
    if flags.out is not None:
        check_target("--out", flags.out)
    if flags.wandb != "disabled" and len(flags.runs) < 2:
        raise UsageError(
            f"--wandb {flags.wandb}: expected with two runs or more; a run has its own"
        )
    if flags.data is not None:
        if flags.runs:
            raise UsageError("--data shows a data set: expected no RUN beside it")
        _show_data(flags)
        return
    if flags.test_data is not None or flags.label_column is not None:
        raise UsageError("--test-data and --label-column: expected with --data alone")
    if flags.out is not None and not flags.runs:
        raise UsageError("--out: expected with a RUN or with --data; name a RUN")
    _show_runs(flags)


def _show_runs(flags: argparse.Namespace) -> None:
    from fmnist_tf.cli.terminal import warn
    from fmnist_tf.pipeline.saved_run import find_run
    from fmnist_tf.reporting import page
    from fmnist_tf.results.rundir import list_runs

    runs = [find_run(name, flags.runs_dir) for name in flags.runs]
    rows = [page.describe_run(run) for run in runs]
    if not runs:
        for run in list_runs(flags.runs_dir):
            try:
                if run.is_complete:
                    rows.append(page.describe_run(run))
            except UsageError as error:  # nobody asked for this one
                warn(f"left out: {error}")
    if not rows:
        raise UsageError(
            f"{printable(str(flags.runs_dir), 200)} holds no complete run; "
            "`python -m fmnist_tf.train` makes one"
        )
    _print_table(page.COLUMNS, rows)
    if len(runs) == 1:
        path = flags.out or runs[0].file(page.REPORT)
        page.write_report(runs[0], path)
        print(f"\n{path}")
    elif runs:
        path = flags.out or flags.runs_dir / "comparison.html"
        print()
        for sentence in page.write_comparison(runs, path):
            print(f"- {_in_markdown(sentence)}")
        print(f"\n{path}")
        names = [run.path.resolve().name for run in runs]
        _track_comparison(flags, names, ["name", *page.COLUMNS], rows, path)


def _track_comparison(
    flags: argparse.Namespace,
    names: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    path: Path,
) -> None:
    from fmnist_tf.cli.terminal import say, warn
    from fmnist_tf.reporting.tracking import start_tracking

    tracker = start_tracking(
        flags.wandb,
        flags.runs_dir,
        group="comparison",
        job_type="comparison",
        name=printable(" and ".join(names), 100),
        config={"runs": list(names)},
        warn=warn,
    )
    tracker.log_comparison(
        columns, [[name, *row] for name, row in zip(names, rows, strict=True)], path
    )
    tracker.finish()
    for line in tracker.hint:
        say(line)


def _show_data(flags: argparse.Namespace) -> None:
    from fmnist_tf.cli.terminal import boxed, say, warn
    from fmnist_tf.data.sources import read_dataset
    from fmnist_tf.reporting import page

    check_folder("--runs-dir", flags.runs_dir)
    dataset = read_dataset(
        flags.data,
        test_data=flags.test_data,
        label_column=flags.label_column,
        store_dir=flags.runs_dir / ".cache" / "pixels",
        say=say,
        to_train=False,
    )
    for line in dataset.decisions:
        say(line)
    for warning in dataset.warnings:
        warn(boxed(*warning.split("\n")) if warning.startswith("WARNING") else warning)
    summary, names = dataset.summary, dataset.train.class_names
    path = flags.out or Path("data-report.html")
    facts = {
        "name": dataset.name,
        "kind": dataset.kind,
        "files": [dataclasses.asdict(file) for file in dataset.files],
        "decisions": dataset.decisions,
        "warnings": dataset.warnings,
        "background": dataset.background,
    }
    page.write_data_page(facts, summary, names, path)
    counts = zip(page.show_names(names), summary.train_counts, summary.test_counts, strict=True)
    _print_table(
        ("class", "training images", "test images"),
        [(name, f"{train:,}", f"{test:,}") for name, train, test in counts],
    )
    in_train, in_test, in_both = summary.duplicates
    print(
        f"\nrepeated: {in_train:,} training and {in_test:,} test images; "
        f"{in_both:,} test images are training images too\n\n{path}"
    )


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (columns, ["---"] * len(columns), *rows):
        print("| " + " | ".join(map(_in_markdown, row)) + " |")


def _in_markdown(text: str) -> str:
    # A bar would end the cell; a class or file name is anybody's text.
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
