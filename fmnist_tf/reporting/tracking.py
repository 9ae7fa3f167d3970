"""Trackers: copies of a run's results to look at; the files on disk are what counts.

A tracker never ends, delays for long, or changes a training run: whatever fails in it gives one
warning, and from then on it records nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fmnist_tf.cli.terminal import warn
from fmnist_tf.data.images import PixelRows
from fmnist_tf.errors import printable
from fmnist_tf.reporting.record import RunRecord
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import RunDir


@dataclass(frozen=True)
class TrackingOptions:
    """Which trackers a run has.

    Attributes:
        wandb: auto, online, offline or disabled.
        wandb_system: W&B records system metrics and console output too, and its stop button works.
        tensorboard: write event files.
    """

    wandb: str = "auto"
    wandb_system: bool = False
    tensorboard: bool = False

    @classmethod
    def of(cls, flags: Any) -> TrackingOptions:
        """Return the options among the flags of a command, or in a `Request`."""
        return cls(flags.wandb, flags.wandb_system, flags.tensorboard)


@dataclass(frozen=True)
class TrackedRun:
    """How trackers know a run."""

    name: str
    group: str  # of the phases that belong together
    job_type: str  # the phase, "sweep" or "comparison"
    config: Mapping[str, Any]  # JSON values, no secrets
    wandb_id: str | None = None  # of the run that this one may continue
    epochs_before: int = 0  # of the phase before, so that the curves of a group join
    parent: str | None = None  # name of the run that this one continues


class Tracker(Protocol):
    """Records one run; what a method raises ends the tracker, not the run."""

    name: str
    hint: Sequence[str]  # lines that say how to look at what was recorded

    def log(self, axis: str, number: int, values: Mapping[str, float]) -> None:
        """Record finite values, named `AXIS/...`, of one "step" or "epoch"."""

    def log_results(self, run: RunRecord, pixels: PixelRows) -> None:
        """Record what there is at the end of a run; see `Trackers.log_results`."""

    def finish(self, *, ok: bool) -> None:
        """End the recording; `ok` is whether the run succeeded."""


class Trackers:
    """All trackers of a run; each is given up at its first failure."""

    def __init__(self, *trackers: Tracker, epochs_before: int = 0) -> None:
        self._active, self._epochs_before = list(trackers), epochs_before
        self.hint = [line for tracker in trackers for line in tracker.hint]

    def log_step(self, step: int, loss: float) -> None:
        """Record the loss of one step, numbered over all epochs."""
        self._each(lambda tracker: tracker.log("step", step, {"step/loss": loss}))

    def log_epoch(self, row: HistoryRow) -> None:
        """Record the numbers of one epoch; a starting point (epoch 0) has no learning rate."""
        left_out = {"phase", "epoch"} | ({"learning_rate"} if row.epoch == 0 else set())
        numbers = {name: x for name, x in asdict(row).items() if name not in left_out}
        values = {f"epoch/{name}": x for name, x in numbers.items() if math.isfinite(x)}
        epoch = row.epoch + self._epochs_before
        self._each(lambda tracker: tracker.log("epoch", epoch, values))

    def log_results(self, run: RunDir, pixels: PixelRows) -> None:
        """Record what the files of a run hold at its end; pixels are (N, 784) uint8, of test."""
        self._each(lambda tracker: tracker.log_results(RunRecord(run), pixels))

    def finish(self, *, ok: bool = True) -> None:
        """End all trackers."""
        while self._active:
            tracker = self._active.pop()
            try:
                tracker.finish(ok=ok)
            except (Exception, SystemExit) as error:
                warn_of_failure(f"{tracker.name} did not finish", error)

    def _each(self, record: Callable[[Tracker], None]) -> None:
        for tracker in list(self._active):
            try:
                record(tracker)
            except (Exception, SystemExit) as error:
                self._active.remove(tracker)
                warn_of_failure(f"{tracker.name} stopped recording", error)
                with contextlib.suppress(Exception, SystemExit):
                    tracker.finish(ok=False)


def start_tracking(options: TrackingOptions, run_dir: Path, tracked: TrackedRun) -> Trackers:
    """Start the trackers that `options` name; one that cannot start gives one line."""
    trackers: list[Tracker] = []
    if options.wandb != "disabled":
        from fmnist_tf.reporting.wandb_tracker import start_wandb

        wandb = start_wandb(options.wandb, run_dir, tracked, system=options.wandb_system)
        trackers += [wandb] if wandb else []
    if options.tensorboard:
        from fmnist_tf.reporting.tensorboard_tracker import TensorBoardTracker

        try:
            trackers.append(TensorBoardTracker(run_dir / "tensorboard"))
        except Exception as error:
            warn_of_failure("TensorBoard is not recording", error)
    return Trackers(*trackers, epochs_before=tracked.epochs_before)


def warn_of_failure(outcome: str, error: BaseException) -> None:
    """Print one line on a failure inside a tracker."""
    reason = printable(" ".join(str(error).split()), 200)
    warn(f"{outcome} ({type(error).__name__}: {reason}); the run itself is not affected")
