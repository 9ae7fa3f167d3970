"""A complete run as its files describe it: one row of the table of runs, or all of a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.errors import UsageError, printable
from fmnist_tf.reporting.render import display_names
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.provenance import RANDOM, SAMPLE, find_caveats
from fmnist_tf.results.rundir import RunDir

REPORT = "report.html"
COLUMNS = ("run", "data", "backbone weights", "trained on", "val", "test", "95 % interval", "time")
N_FACTS = 4  # the first of `COLUMNS`; the others are results
CAVEATS = {
    SAMPLE: "An accuracy on it shows that the pipeline works; it says nothing about other data.",
    RANDOM: "The results say nothing about pretrained weights.",
}


class RunRecord:
    """The files of a run but `report.npz`, and what tables and pages show of them.

    Attributes:
        config, evaluation, provenance, label_map: the JSON files (the last is labels.json).
        is_tested: false after --no-test, and for a trial of a sweep.
        predictions: test labels (N,) int64 and probabilities (N, K) float32; if it is tested.
        class_names: K names for display.
        confusion: (K, K) int64 counts on the test images, else on val.
        steps: the loss of each step of the last phase, (S,) float64.
        history: the epochs of all phases; `chosen` is the one whose weights were selected.
        test_data: identifies the test images.
        split: identifies the training and the validation images.
        banners: warnings that every page of the run must show.
        cells: the run's row in the table of runs, a cell for each of `COLUMNS`.

    Raises:
        UsageError: a file is missing or damaged.
    """

    def __init__(self, run: RunDir) -> None:
        with damage_is_bad_input(run):
            self.name = run.path.resolve().name
            self.config = run.read_json("config.json")
            self.evaluation = run.read_json("evaluation.json")
            self.provenance = run.read_json("provenance.json")
            self.label_map = run.read_json("labels.json")
            val, test = self.evaluation["val"], self.evaluation.get("test")
            self.is_tested = test is not None
            self.confusion = np.array((val if test is None else test)["confusion"], np.int64)
            if self.is_tested:
                self.predictions = run.read_predictions()
            n_classes = len(self.confusion)
            self.class_names = display_names([self.label_map[str(k)] for k in range(n_classes)])
            before = [HistoryRow(**row) for row in self.provenance.get("parent_history", ())]
            self.history = before + run.read_history()
            self.steps = run.read_steps()
            chosen = self.config["phase"], self.evaluation["chosen_epoch"]
            self.chosen = next(row for row in self.history if (row.phase, row.epoch) == chosen)
            data = self.provenance["data"]
            files = data["files"]
            # Images held out of a single file are others than those of a file of its own.
            self.test_data = len(files), files[-1]["sha256"]
            self.split = files[0]["sha256"], data["split_sha256"]
            self.banners = describe_caveats(self.config, self.provenance)
            figures = [f"{val['accuracy']:.4f} ({val['correct']}/{val['total']})"]
            if test is not None:
                low, high = test["interval_95"]
                figures.append(f"{test['accuracy']:.4f} ({test['correct']}/{test['total']})")
                figures.append(f"{low:.4f} to {high:.4f}")
            else:
                figures += ["not tested", "none"]
            counts = val["total"], 0 if test is None else test["total"]
            self.cells = describe_run(self.config, self.provenance, counts, figures)


def describe_run(
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    counts: tuple[int, int],
    figures: Sequence[str],
) -> list[str]:
    """Return a cell for each of `COLUMNS`.

    Args:
        config: config.json.
        provenance: provenance.json.
        counts: of val and test images.
        figures: the cells of val, test and 95 % interval.
    """
    data, weights = provenance["data"], provenance["weights"]
    stages = f", {'+'.join(config['unfreeze'])}" if config["unfreeze"] else ""
    trained = "all" if config["phase"] == "scratch" else f"head{stages}"
    flip = ", test-time flip" if config.get("test_time_flip") else ""
    network = " up to ".join(filter(None, (config["backbone"], config.get("cut"))))
    source = weights["kind"]
    if source == "file":
        source = f"{Path(weights['path']).name} ({weights['sha256'][:8]})"
    return [
        f"{config['phase']} {network} at {config['image_size']}, {config['head']}{flip}",
        f"{data['name']}, {counts[0]:,} val, {counts[1]:,} test",
        source,
        f"{trained}; {data['n_train']:,} images",
        *figures,
        f"{sum(provenance['seconds'].values()) / 60:.1f} min",
    ]


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
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
        reason = printable(f"{type(error).__name__}: {error}", 200)
        raise UsageError(
            f"{run.path}: expected the files of a complete run, found damaged ones or those of "
            f"another version ({reason}); repeat the run"
        ) from error


def describe_caveats(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
    """Return the warnings that every page of a run must show, from its config and provenance."""
    kinds = provenance["data"]["kind"], provenance["weights"]["kind"]
    return [explain_caveat(caveat) for caveat in find_caveats(*kinds, config["phase"])]


def explain_caveat(caveat: str) -> str:
    """Return a caveat of `provenance.find_caveats` with what follows from it."""
    return f"{caveat[0].upper()}{caveat[1:]}: {CAVEATS[caveat]}"
