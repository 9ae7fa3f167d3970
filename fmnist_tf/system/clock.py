"""Wall time per named stage of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class StageClock:
    """Seconds of wall time per named stage, rounded to milliseconds."""

    _ended: dict[str, float] = field(default_factory=dict)
    _running: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the stage."""
        self._running[name] = time.perf_counter()
        try:
            yield
        finally:
            self._ended[name] = self.seconds[name]
            del self._running[name]

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each stage, so far if it has not ended."""
        now, seconds = time.perf_counter(), dict(self._ended)
        for name, started in self._running.items():
            seconds[name] = round(seconds.get(name, 0.0) + now - started, 3)
        return seconds

    def add(self, earlier: Mapping[str, float]) -> None:
        """Add the seconds of an earlier process."""
        for name, seconds in earlier.items():
            self._ended[name] = round(self._ended.get(name, 0.0) + seconds, 3)
