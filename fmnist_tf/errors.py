"""The errors a person can cause or meet, each with the exit code a script can rely on."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass


class FmnistError(Exception):
    """Base of every error that ends a command with a clear message and no traceback.

    Each argument is one line of the message: what was expected, what was found, where, what to do.
    The text of the error has them escaped, so that they may quote what was found as it is.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(escape(str(line)) for line in self.args)


class UsageError(FmnistError):
    """Wrong usage or bad input: exit code 2."""

    exit_code = 2


class RunExistsError(FmnistError):
    """The run directory exists already or is in use: exit code 3."""

    exit_code = 3


def escape(text: str) -> str:
    """Return `text` as one terminal line: control and bidi characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(text: str, limit: int = 60) -> str:
    """Return `text` escaped, and cut to `limit` characters."""
    shown = escape(text)
    return shown if len(shown) <= limit else shown[: max(limit - 3, 0)] + "..."[:limit]


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return a question that names what of `known` is most like `name`; empty if nothing is."""
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.65)
    return f"did you mean {' or '.join(near)}?" if near else ""


def suggest(name: str, known: Collection[str]) -> str:
    """Return `did_you_mean`, or all known names if none is like `name`."""
    return did_you_mean(name, known) or f"expected {', '.join(sorted(known))}"


@dataclass(frozen=True)
class Problem:
    """One fault of one file.

    Attributes:
        code: stable machine code, `E001`..`E046`.
        path: the file as the user named it.
        line: 1-based line of the file, header included; None where a line has no meaning.
        column: 1-based field of that line, or None.
        column_name: the header's name of that field, or None.
        found: what the file has there.
        expected: what it should have there.
        hint: what to do about it; may be empty.
    """

    code: str
    path: str
    line: int | None
    column: int | None
    column_name: str | None
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        numbers = (number for number in (self.line, self.column) if number is not None)
        where = ":".join(map(str, (self.path, *numbers)))
        name = f" ({printable(self.column_name)})" if self.column_name else ""
        hint = f". hint: {self.hint}" if self.hint else ""
        return escape(
            f"error[{self.code}] {where}{name}: {self.found}; expected {self.expected}{hint}"
        )


class DataError(UsageError):
    """One or more faults in a data file.

    Attributes:
        problems: the first faults in file order, at most `SHOWN` of each code; never empty.
        totals: how many faults of each code the file has, `problems` included.
    """

    SHOWN = 5

    def __init__(self, problems: list[Problem], totals: Mapping[str, int] | None = None) -> None:
        self.problems = problems
        self.totals = Counter(totals or (problem.code for problem in problems))
        lines = [str(problem) for problem in problems]
        for code, total in self.totals.items():
            shown = sum(problem.code == code for problem in problems)
            if total > shown:
                lines.append(f"... and {total - shown:,} more {code}")
        super().__init__(*lines)


def file_error(code: str, path: str, found: str, expected: str, hint: str = "") -> DataError:
    """Return the error of a whole file, without line or column."""
    return DataError([Problem(code, path, None, None, None, found, expected, hint)])
