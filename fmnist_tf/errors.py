"""The errors a person can cause or meet, each with the exit code a script can rely on.

In: what was expected, what was found, where, what to do. Out: exceptions whose text is the whole
message. This module must not know who raises or prints them.
"""

from __future__ import annotations

from dataclasses import dataclass


class FmnistError(Exception):
    """Base of every error that ends a command with one clear message and no traceback."""

    exit_code = 1


class UsageError(FmnistError):
    """Wrong usage or bad input: exit code 2."""

    exit_code = 2


class RunExistsError(FmnistError):
    """The run directory exists already or is in use: exit code 3."""

    exit_code = 3


def printable(text: str, limit: int = 60) -> str:
    """Return `text` fit for one terminal line: control and bidi characters escaped, then cut."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= limit else shown[: max(limit - 3, 0)] + "..."[:limit]


@dataclass(frozen=True)
class Problem:
    """One fault of one file.

    Attributes:
        code: stable machine code, `E001`..`E044`.
        path: the file as the user named it.
        line: 1-based line of the file, header included; None where a line has no meaning.
        column: 1-based field of that line, or None.
        column_name: the header's name of that field, or None.
        found: what stands there.
        expected: what should stand there.
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
        where = printable(self.path, 200)
        where += "".join(f":{number}" for number in (self.line, self.column) if number is not None)
        name = f" ({printable(self.column_name)})" if self.column_name else ""
        hint = f". hint: {self.hint}" if self.hint else ""
        return f"error[{self.code}] {where}{name}: {self.found}; expected {self.expected}{hint}"


class DataError(UsageError):
    """One or more faults in a data file.

    Attributes:
        problems: the first faults in file order, at most `SHOWN`; never empty.
        total: how many faults the file has, `problems` included.
    """

    SHOWN = 20

    def __init__(self, problems: list[Problem], total: int | None = None) -> None:
        self.problems = problems[: self.SHOWN]
        self.total = len(problems) if total is None else total
        lines = [str(problem) for problem in self.problems]
        if self.total > len(self.problems):
            lines.append(f"... and {self.total - len(self.problems)} more")
        super().__init__("\n".join(lines))
