"""A run as its files describe it: one row of the table of runs, or all of a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.errors import UsageError, printable
from fmnist_tf.reporting.render import display_names
from fmnist_tf.results.analysis import score_classes
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.provenance import RANDOM, SAMPLE, find_caveats
from fmnist_tf.results.rundir import RunDir

REPORT = "report.html"
FACTS = ("run", "data", "backbone weights", "trained on")  # entries of `RunRecord.cells`
CAVEATS = {
    SAMPLE: "An accuracy on it shows that the pipeline works; it says nothing about other data.",
    RANDOM: "The results say nothing about pretrained weights.",
}


class RunRecord:
    """The files of a run but `report.npz`, and what tables and pages show of them.

    Attributes:
        directory: of the run.
        config, evaluation, provenance, label_map: the JSON files (the last is labels.json).
        is_tested: false after --no-test, and for a trial of a sweep.
        predictions: test labels (N,) int64 and probabilities (N, K) float32; if it is tested.
        class_names: K names for display.
        confusion: (K, K) int64 counts on the test images, else on val.
        steps: the loss of each step of the last phase, (S,) float64.
        history: the epochs of all phases; `chosen` is the one whose weights were selected.
        test_data: identifies the test images.
        split: identifies the training and the validation images.
        caveats: see `find_caveats`.
        cells: the run's row in the table of runs by column: `FACTS`, then results.

    Raises:
        UsageError: a file is missing or damaged.
    """

    def __init__(self, run: RunDir) -> None:
        with damage_is_bad_input(run):
            self.directory, self.name = run, run.path.resolve().name
            self.config, self.evaluation, self.provenance, self.label_map = (
                run.read_json(f"{name}.json")
                for name in ("config", "evaluation", "provenance", "labels")
            )
            val: dict[str, Any] = self.evaluation["val"]
            test: Any = self.evaluation.get("test")
            self.is_tested = test is not None
            self.confusion = np.array((test if self.is_tested else val)["confusion"], np.int64)
            if self.is_tested:
                self.predictions = run.read_predictions()
            n_classes = len(self.confusion)
            self.class_names = display_names([self.label_map[str(k)] for k in range(n_classes)])
            self.history = read_parent_history(self.provenance) + run.read_history()
            self.steps = run.read_steps()
            chosen = self.config["phase"], self.evaluation["chosen_epoch"]
            self.chosen = next(row for row in self.history if (row.phase, row.epoch) == chosen)
            data, weights = self.provenance["data"], self.provenance["weights"]
            files = data["files"]
            # Images held out of a single file are others than those of a file of its own.
            self.test_data = len(files), files[-1]["sha256"]
            self.split = files[0]["sha256"], data["split_sha256"]
            self.caveats = find_caveats(data["kind"], weights["kind"], self.config["phase"])
            unfrozen = f", {'+'.join(self.config['unfreeze'])}" if self.config["unfreeze"] else ""
            trained = "all" if self.config["phase"] == "scratch" else f"head{unfrozen}"
            source = weights["kind"]
            if source == "file":
                source = f"{Path(weights['path']).name} ({weights['sha256'][:8]})"
            low, high = test["interval_95"] if self.is_tested else (0, 0)
            n_test = test["total"] if self.is_tested else 0
            self.cells = {
                "run": describe_network(self.config),
                "data": f"{data['name']}, {val['total']:,} val, {n_test:,} test",
                "backbone weights": source,
                "trained on": f"{trained}; {data['n_train']:,} images",
                "val": _describe_accuracy(val),
                "test": _describe_accuracy(test) if self.is_tested else "not tested",
                "95 % interval": f"{low:.4f} to {high:.4f}" if self.is_tested else "none",
                "time": f"{sum(self.provenance['seconds'].values()) / 60:.1f} min",
            }

    @property
    def banners(self) -> list[str]:
        """The warnings that every page of the run must show."""
        return [explain_caveat(caveat) for caveat in self.caveats]

    @property
    def figures(self) -> list[Path]:
        """The PNG files that were drawn."""
        names = ("curves.png", "confusion.png", "mistakes.png")
        return [path for path in map(self.directory.file, names) if path.is_file()]

    @property
    def metrics(self) -> dict[str, float]:
        """`test_accuracy`, `val_loss` and so on, as trackers record them."""
        metrics = {}
        for split in ("val", "test") if self.is_tested else ("val",):
            found = self.evaluation[split]
            for name in ("accuracy", "loss", "correct", "total"):
                metrics[f"{split}_{name}"] = found[name]
            scores = score_classes(np.array(found["confusion"]))
            metrics[f"{split}_macro_f1"] = scores["f1"][scores["support"] > 0].mean()
        if self.is_tested:
            ece = self.evaluation["calibration"]["before"]["ece"]
            metrics["test_expected_calibration_error"] = ece
        return metrics


def read_complete(run: RunDir) -> RunRecord:
    """Read a run with a DONE.json.

    Raises:
        UsageError: the run is incomplete or damaged.
    """
    if not run.is_complete:
        raise UsageError(
            f"{run.path}: expected a complete run, found no DONE.json in it; `python -m "
            f"fmnist_tf.train --resume {run.name_in(run.runs_dir)}` finishes it"
        )
    return RunRecord(run)


@contextmanager
def damage_is_bad_input(run: RunDir) -> Iterator[None]:
    """Turn errors from missing or contradictory entries of the run's files into a UsageError."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, StopIteration) as error:
        reason = printable(f"{type(error).__name__}: {error}", 200)
        raise UsageError(
            f"{run.path}: expected the files of a complete run, found damaged ones or those of "
            f"another version ({reason}); repeat the run"
        ) from error


def read_parent_history(provenance: Mapping[str, Any]) -> list[HistoryRow]:
    """Return the epochs of the run that this one continues, if any, from its provenance."""
    return [HistoryRow(**row) for row in provenance.get("parent_history", ())]


def describe_network(config: Mapping[str, Any]) -> str:
    """Return phase, backbone, cut, image size and head in a few words."""
    flip = ", test-time flip" if config.get("test_time_flip") else ""
    network = " up to ".join(filter(None, (config["backbone"], config.get("cut"))))
    return f"{config['phase']} {network} at {config['image_size']}, {config['head']}{flip}"


def explain_caveat(caveat: str) -> str:
    """Return a caveat of `provenance.find_caveats` with what follows from it."""
    return f"{caveat[0].upper()}{caveat[1:]}: {CAVEATS[caveat]}"


def _describe_accuracy(split: Mapping[str, Any]) -> str:
    return f"{split['accuracy']:.4f} ({split['correct']}/{split['total']})"
