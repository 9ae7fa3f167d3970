"""`python -m fmnist_tf.clean`: remove what killed and abandoned runs have left.

Unfinished runs, cached backbone features that no other run has used, and temporary files are listed
with their sizes and removed after a question. Complete runs, runs in use, and what lies behind a
symbolic link are left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_tf.cli.command import add_runs_dir, add_terminal_flags, run_command
from fmnist_tf.cli.parser import CommandParser
from fmnist_tf.errors import RunExistsError, UsageError, printable

if TYPE_CHECKING:
    from fmnist_tf.results.rundir import RunDir

Group = tuple[str, list[Path]]
"""What these paths are, in the plural, and the paths."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = CommandParser(
        "clean",
        "List unfinished runs, cached backbone features that no run refers to, and "
        "temporary files of killed processes, and remove each kind after a question.",
    )
    add_runs_dir(parser)
    parser.add_argument("--yes", action="store_true", help="remove all of it without a question")
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_clean, build_parser().parse_args(argv))


def _clean(flags: argparse.Namespace) -> None:
    from fmnist_tf.system.files import remove

    if not flags.runs_dir.is_dir():
        raise UsageError(f"--runs-dir {flags.runs_dir}: expected a folder of runs, found none")
    with ExitStack() as held:
        groups = [group for group in _find(flags.runs_dir, held) if group[1]]
        for what, paths in groups:
            for path in paths:
                print(f"{_format(path):>10}  {what}  {printable(str(path), 200)}")
        if not groups:
            print(f"{flags.runs_dir}: nothing to remove")
        elif not flags.yes and not sys.stdin.isatty():
            raise UsageError("nothing was removed: there is no terminal to ask; --yes removes it")
        for what, paths in groups:
            if flags.yes or _ask(f"remove {len(paths)} {what}?"):
                for path in paths:
                    remove(path)
                n_left = sum(path.exists() for path in paths)
                print(f"{len(paths) - n_left} of {len(paths)} {what} removed")


def _ask(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _find(runs_dir: Path, held: ExitStack) -> Iterator[Group]:
    """Yield what can be removed; `held` gets the locks of the unfinished runs."""
    from fmnist_tf.results.rundir import CHECKPOINTS, CONFIG, LOCK, RunDir
    from fmnist_tf.system.files import find_leftovers

    unfinished, temporary, kept = [], find_leftovers(runs_dir), set[str]()
    is_in_use = False
    for path in _folders(runs_dir):
        trials = [RunDir(folder) for folder in _folders(path) if folder.name.startswith("trial-")]
        for run in (RunDir(path), *trials):
            is_begun = any((run.path / name).exists() for name in (CONFIG, LOCK))
            try:
                if is_begun and not run.is_complete:
                    held.enter_context(run.locked())
            except (RunExistsError, UsageError):  # in use, or with a link in it
                is_in_use = True
                continue
            # The trials of a sweep are continued by its command.
            if is_begun and run.is_unfinished and run not in trials:
                unfinished.append(run.path)
                continue
            kept |= _used_features(run)
            temporary += find_leftovers(run.path)
            if run.is_complete and (run.path / CHECKPOINTS).exists():
                temporary.append(run.path / CHECKPOINTS)
    yield "unfinished runs", unfinished
    cache = runs_dir / ".cache"
    features = [] if cache.is_symlink() else _folders(cache / "features")
    # A run in use may not have recorded yet what it uses.
    yield "cached features", [p for p in features if p.name not in kept and not is_in_use]
    for folder in () if cache.is_symlink() else (cache / "pixels", cache / "downloads", *features):
        temporary += find_leftovers(folder)
    yield "temporary files", temporary


def _used_features(run: RunDir) -> set[str]:
    with suppress(UsageError, TypeError):
        return {str(name) for name in run.read_json("provenance.json").get("features", ())}
    return set()


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, hidden ones and links left out; none behind a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(p for p in folder.glob("[!.]*") if p.is_dir() and not p.is_symlink())


def _format(path: Path) -> str:
    parts = [path, *path.rglob("*")] if path.is_dir() else [path]
    return f"{sum(part.lstat().st_size for part in parts) / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
