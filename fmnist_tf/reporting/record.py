"""A complete run as its files describe it: one row of the table of runs, or all of a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from fmnist_tf.errors import UsageError, printable
from fmnist_tf.reporting.render import display_names
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.provenance import RANDOM, SAMPLE, find_caveats
from fmnist_tf.results.rundir import RunDir

REPORT = "report.html"
COLUMNS = ("run", "data", "backbone weights", "trained on", "val", "test", "95 % interval", "time")
CAVEATS = {
    SAMPLE: "An accuracy on it shows that the pipeline works; it says nothing about other data.",
    RANDOM: "The results say nothing about pretrained weights.",
}


class RunRecord:
    """The files of a run; `label_map` is labels.json."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self.name = run.path.resolve().name
        self.config = run.read_json("config.json")
        self.evaluation = run.read_json("evaluation.json")
        self.provenance = run.read_json("provenance.json")
        self.label_map = run.read_json("labels.json")

    def read_all(self) -> RunRecord:
        """Read everything but report.npz now, so that an error is known to be of this run."""
        for name in ("cells", "banners", "class_names", "confusion", "chosen", "split"):
            getattr(self, name)
        return self

    @cached_property
    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Test labels (N,) int64 and probabilities (N, K) float32."""
        return self._run.read_predictions()

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of report.npz."""
        return self._run.read_arrays("report.npz")

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """K names for display."""
        n_classes = self.predictions[1].shape[1]
        return display_names([self.label_map[str(k)] for k in range(n_classes)])

    @cached_property
    def confusion(self) -> np.ndarray:
        """(K, K) int64 counts on the test images."""
        return np.array(self.evaluation["test"]["confusion"], np.int64)

    @cached_property
    def history(self) -> list[HistoryRow]:
        """The epochs of all phases."""
        before = [HistoryRow(**row) for row in self.provenance.get("parent_history", ())]
        return before + self._run.read_history()

    @cached_property
    def chosen(self) -> HistoryRow:
        """The epoch whose weights were selected."""
        epoch, phase = self.evaluation["chosen_epoch"], self.config["phase"]
        return next(row for row in self.history if (row.phase, row.epoch) == (phase, epoch))

    @property
    def test_data(self) -> tuple[int, str]:
        """How many data files there were, and the SHA-256 of the last, which has the test images.

        Test images that were held out of a single file are others than those of a file of its own.
        """
        files = self.provenance["data"]["files"]
        return len(files), files[-1]["sha256"]

    @property
    def split(self) -> tuple[str, str]:
        """SHA-256 of the training file, and of its split into training and validation rows."""
        data = self.provenance["data"]
        return data["files"][0]["sha256"], data["split_sha256"]

    @property
    def banners(self) -> list[str]:
        """Warnings that every page of the run must show."""
        kinds = self.provenance["data"]["kind"], self.provenance["weights"]["kind"]
        return [explain_caveat(caveat) for caveat in find_caveats(*kinds, self.config["phase"])]

    @property
    def cells(self) -> list[str]:
        """The run's row in the table of runs, a cell for each of `COLUMNS`."""
        config, data, weights = self.config, self.provenance["data"], self.provenance["weights"]
        val, test = self.evaluation["val"], self.evaluation["test"]
        low, high = test["interval_95"]
        stages = f", {'+'.join(config['unfreeze'])}" if config["unfreeze"] else ""
        trained = "all" if config["phase"] == "scratch" else f"head{stages}"
        flip = ", test-time flip" if config.get("test_time_flip") else ""
        source = weights["kind"]
        if source == "file":
            source = f"{Path(weights['path']).name} ({weights['sha256'][:8]})"
        return [
            f"{config['phase']} {config['backbone']} at {config['image_size']}, "
            f"{config['head']}{flip}",
            f"{self.evaluation['dataset']}, {val['total']:,} val, {test['total']:,} test",
            source,
            f"{trained}; {data['n_train']:,} images",
            f"{val['accuracy']:.4f} ({val['correct']}/{val['total']})",
            f"{test['accuracy']:.4f} ({test['correct']}/{test['total']})",
            f"{low:.4f} to {high:.4f}",
            f"{sum(self.provenance['seconds'].values()) / 60:.1f} min",
        ]


def describe_run(run: RunDir) -> list[str]:
    """Return the run's row in the table of runs, a cell for each of `COLUMNS`.

    Raises:
        UsageError: the run is incomplete or damaged.
    """
    check_complete(run)
    with damage_is_bad_input(run):
        return RunRecord(run).cells


def check_complete(run: RunDir) -> None:
    """Raise UsageError for a run without DONE.json."""
    if not run.is_complete:
        raise UsageError(f"{run.path}: expected a complete run, found no DONE.json in it")


@contextmanager
def damage_is_bad_input(run: RunDir) -> Iterator[None]:
    """Turn errors from missing or contradictory entries of the run's files into a UsageError."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
        reason = printable(f"{type(error).__name__}: {error}", 200)
        raise UsageError(
            f"{run.path}: expected the files of a complete run, found damaged ones or those of "
            f"another version ({reason}); repeat the run"
        ) from error


def explain_caveat(caveat: str) -> str:
    """Return a caveat of `provenance.find_caveats` with what follows from it."""
    return f"{caveat[0].upper()}{caveat[1:]}: {CAVEATS[caveat]}"
