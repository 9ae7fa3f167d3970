"""`python -m fmnist_tf.report RUN...`: finished runs -> one Markdown table on stdout.

In: run directories. Out: a row per run, of what its own files say; every figure can be traced to
one of them. This module must not load a model or compute anything anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmnist_tf.errors import FmnistError, UsageError, printable
from fmnist_tf.results.rundir import RunDir, list_runs

COLUMNS = ("run", "data", "backbone weights", "trained on", "val", "test", "95 % interval", "time")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.report",
        description="Print a table of finished runs.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", type=Path, help="run directories (default: all complete)"
    )
    parser.add_argument(
        "--runs-dir", metavar="DIR", type=Path, default=Path("runs"), help="(default: runs)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    flags = build_parser().parse_args(argv)
    try:
        runs = [
            RunDir.open(path if path.is_dir() else flags.runs_dir / path) for path in flags.runs
        ]
        runs = runs or [run for run in list_runs(flags.runs_dir) if run.is_complete]
        if not runs:
            raise UsageError(
                f"{flags.runs_dir} holds no complete run; `python -m fmnist_tf.train` makes one"
            )
        table = [COLUMNS, ["---"] * len(COLUMNS), *(describe_run(run) for run in runs)]
        for row in table:
            print("| " + " | ".join(row) + " |")
    except FmnistError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    sys.stdout.flush()
    return 0


def describe_run(run: RunDir) -> list[str]:
    """Return one row, as `COLUMNS` names its cells.

    Raises:
        UsageError: the run is incomplete or damaged.
    """
    if not run.is_complete:
        raise UsageError(f"{run.path}: incomplete (no DONE.json); expected a finished run")
    config, evaluation, provenance = (
        run.read_json(name) for name in ("config.json", "evaluation.json", "provenance.json")
    )
    try:
        val, test = evaluation["val"], evaluation["test"]
        low, high = test["interval_95"]
        cells = [
            f"{config['phase']} {config['backbone']} at {config['image_size']}, {config['head']}",
            f"{evaluation['dataset']}, {val['total']:,} val, {test['total']:,} test",
            _weights(provenance["weights"]),
            _rows(config, provenance),
            f"{val['accuracy']:.4f} ({val['correct']}/{val['total']})",
            f"{test['accuracy']:.4f} ({test['correct']}/{test['total']})",
            f"{low:.4f} to {high:.4f}",
            f"{sum(provenance['seconds'].values()) / 60:.1f} min",
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{run.path}: expected the files of a finished run, found one without "
            f"{printable(str(error))}; it is damaged, or of another version"
        ) from error
    # A bar would end the cell; a class or file name is anybody's text.
    return [printable(cell, 90).replace("|", "\\|") for cell in cells]


def _weights(weights: dict[str, Any]) -> str:
    if weights["kind"] != "file":
        return str(weights["kind"])
    return f"{Path(weights['path']).name} ({weights['sha256'][:8]})"


def _rows(config: dict[str, Any], provenance: dict[str, Any]) -> str:
    stages = f", {'+'.join(config['unfreeze'])}" if config["unfreeze"] else ""
    rows = config["limit"] or provenance["data"]["files"][0]["rows"]
    return f"head{stages}; {rows:,} rows with val" if config["phase"] != "scratch" else f"{rows:,}"


if __name__ == "__main__":
    sys.exit(main())
