"""How commands are called, and the parser of their flags, whose errors are one line."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fmnist_tf.cli.terminal import RED, warn
from fmnist_tf.errors import did_you_mean, printable

_INVALID_CHOICE = re.compile(
    r"argument (.*): invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL
)


def name_command(name: str = "") -> str:
    """Return how to call a command (without name: the program) as this process was called."""
    path = Path(sys.argv[0])
    if path.parent.name != "fmnist_tf":
        program = "fmnist-tf"
    elif path.name == "__main__.py" or not name:
        program = "python -m fmnist_tf"
    else:
        return f"python -m fmnist_tf.{name}"
    return f"{program} {name}".strip()


def runs_dir_words(runs_dir: Path) -> list[str]:
    """Return the words that name the folder of runs to a command; none for the default."""
    return [] if runs_dir == Path("runs") else ["--runs-dir", str(runs_dir)]


class CommandParser(argparse.ArgumentParser):
    """The parser of a command; wrong usage is one line with a suggestion, and exit code 2.

    Args:
        name: of the command.
        description: for --help.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, name: str, description: str, **options: Any) -> None:
        # An abbreviation would change its meaning as flags are added.
        super().__init__(
            prog=name_command(name), description=description, allow_abbrev=False, **options
        )

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Return the values of the flags."""
        words = list(sys.argv[1:] if args is None else args)
        known = [flag for action in self._actions for flag in action.option_strings]
        for word in itertools.takewhile(lambda word: word != "--", words):
            flag = word.partition("=")[0]
            # A negative number, a lone dash and what has spaces are values, as in argparse.
            if re.match(r"--?[A-Za-z]", flag) and " " not in flag and flag not in known:
                hint = did_you_mean(flag, known) or f"`{self.prog} --help` lists the flags"
                self.error(f"unknown flag {printable(flag, 200)}; {hint}")
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit."""
        if found := _INVALID_CHOICE.fullmatch(message):
            flag, value, choices = found[1], found[2], found[3].replace("'", "").split(", ")
            hint = did_you_mean(value, choices)
            message = f"{flag} {value}: expected {', '.join(choices)}{hint and '; '}{hint}"
        elif "required" in message:
            message += f"; see `{self.prog} --help`"
        elif any(Path(word).is_file() for word in message.split()[2:]):  # unrecognized arguments
            message += "; put a pattern of files in quotes: 'train-*.csv'"
        warn(message.removeprefix("argument "), RED)
        self.exit(2)
