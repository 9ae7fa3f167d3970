"""Find and load a run: its settings, class names and model; of a stopped run, its best epoch.

This package builds the architecture and reads only weights from the run's files, after it has
compared their SHA-256: nothing in a run directory is executed.

B batch, K classes.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tf.cli.parser import runs_dir_words
from fmnist_tf.cli.terminal import boxed, warn
from fmnist_tf.data.convention import Convention
from fmnist_tf.errors import UsageError
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.provenance import find_caveats
from fmnist_tf.results.rundir import CHECKPOINTS, CONFIG, RunDir
from fmnist_tf.results.temperature import scale
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.files import require_unlinked
from fmnist_tf.system.startup import import_tensorflow
from fmnist_tf.training.checkpoint import Checkpoint, CheckpointDir

if TYPE_CHECKING:
    import keras

    from fmnist_tf.data.images import PixelRows
    from fmnist_tf.model.inference import Progress, RunBatches

MODEL = "model.keras"


@dataclass(frozen=True)
class SavedRun:
    """A run, as its files tell it.

    Attributes:
        directory: of the run.
        config: its settings, complete.
        class_names: K names, by label.
        provenance: provenance.json.
        model_sha256: of model.keras, as DONE.json has it; of a stopped run, of its checkpoint.
        history: one row for each epoch.
        temperature: that its logits are divided by wherever its probabilities are shown or served,
            see `results.temperature`; 1 of a stopped run.
        checkpoint: of a stopped run; None if the run is complete.
    """

    directory: RunDir
    config: RunConfig
    class_names: tuple[str, ...]
    provenance: dict[str, Any]
    model_sha256: str
    history: tuple[HistoryRow, ...]
    temperature: float = 1.0
    checkpoint: Checkpoint | None = None

    @property
    def pixels_dir(self) -> Path:
        """The folder for parsed files: beside the run, whatever its settings name.

        Raises:
            UsageError: it, or the folder above it, is a link.
        """
        cache = require_unlinked(self.directory.runs_dir / ".cache")
        return require_unlinked(cache / "pixels")

    @property
    def data_sha256(self) -> tuple[str, ...]:
        """See `Dataset.sha256`."""
        files = self.provenance["data"]["files"]
        labels = (file["labels_sha256"] for file in files)
        return (*(file["sha256"] for file in files), *filter(None, labels))

    @property
    def convention(self) -> Convention:
        """What its training images look like."""
        return Convention.from_record(self.provenance["data"])

    @property
    def caveats(self) -> tuple[str, ...]:
        """The warnings that everybody who uses the model must see."""
        data, weights = self.provenance["data"], self.provenance["weights"]
        caveats = find_caveats(data["kind"], weights["kind"], self.config.phase)
        if self.checkpoint is None:
            return caveats
        stopped = (
            f"STOPPED after {self.history[-1].epoch} of {self.config.epochs} epochs, best so far "
            f"epoch {self.best_epoch}; `{resume_command(self.directory)}` finishes it"
        )
        return (*caveats, stopped)

    @cached_property
    def model(self) -> keras.Model:
        """The classifier, (B, 28, 28) uint8 -> (B, K) float32, as trained; raises `UsageError`."""
        import_tensorflow()
        from fmnist_tf.pipeline.network import build_saved_model

        return build_saved_model(self)

    @cached_property
    def run_batches(self) -> RunBatches:
        """Yields the outputs of `model`, with the mean over mirror images if it was tested so."""
        from fmnist_tf.model.inference import compile_model

        return partial(compile_model(self.model), flips=self.config.test_time_flip)

    @cached_property
    def run_scaled(self) -> RunBatches:
        """As `run_batches`, with the logits divided by the temperature."""
        run_batches = self.run_batches

        def run_scaled(images: PixelRows, show: Progress | None) -> Iterator[list[np.ndarray]]:
            for probabilities, *others in run_batches(images, show):
                yield [scale(probabilities, self.temperature), *others]

        return run_scaled

    @property
    def best_epoch(self) -> int:
        """Of a stopped run, the epoch whose weights are used."""
        return int(self.checkpoint.state["best_epoch"]) if self.checkpoint else 0


def resume_command(directory: RunDir) -> str:
    """Return the command that finishes a run."""
    words = ["python", "-m", "fmnist_tf.train", "--resume", directory.name_in(directory.runs_dir)]
    return shlex.join([*words, *runs_dir_words(directory.runs_dir)])


def find_run(name: str | Path, runs_dir: Path) -> RunDir:
    """Return the run called `name` in `runs_dir`, else the one at the path `name`.

    Raises:
        UsageError: there is neither.
    """
    named, path = runs_dir / name, Path(name)
    is_path = os.path.lexists(path / CONFIG) or not (path.parent == Path() or named.parent.is_dir())
    return RunDir.open(path if is_path and not os.path.lexists(named / CONFIG) else named)


def open_run(name: str, runs_dir: Path) -> SavedRun:
    """Read a run, see `find_run`, and print the warnings that everybody who uses it must see."""
    run = read_saved_run(find_run(name, runs_dir))
    for caveat in run.caveats:
        warn(boxed(f"WARNING, this model: {caveat}."))
    return run


def read_saved_run(directory: RunDir) -> SavedRun:
    """Read a run's files, but not its model.

    Raises:
        UsageError: the run is damaged, or was stopped before its first checkpoint.
    """
    checkpoint = None if directory.is_complete else find_checkpoint(directory)
    temperature = 1.0
    config = RunConfig.from_json(directory.read_json(CONFIG))
    labels, provenance = directory.read_json("labels.json"), directory.read_json("provenance.json")
    try:
        if checkpoint is None:
            sha256 = str(directory.done["files"][MODEL]["sha256"])
            history = directory.read_history()
            calibration = directory.read_json("evaluation.json")["calibration"]
            temperature = float(calibration["temperature"])
        else:
            sha256 = checkpoint.sha256
            history = [HistoryRow(**row) for row in checkpoint.state["history"]]
        run = SavedRun(
            directory,
            config,
            tuple(str(labels[str(index)]) for index in range(len(labels))),
            provenance,
            sha256,
            tuple(history),
            temperature,
            checkpoint,
        )
        # Whoever uses a run relies on these.
        _ = run.data_sha256[0], run.convention, provenance["data"]["split_sha256"], run.caveats
    except (KeyError, IndexError, TypeError) as error:
        raise UsageError(
            f"{directory.path}: expected the files of a finished run, found one without {error}; "
            "the run is damaged, or of another version: repeat it"
        ) from error
    return run


def find_checkpoint(directory: RunDir) -> Checkpoint:
    """Return the newest checkpoint of a stopped run that has a best epoch."""
    checkpoints = CheckpointDir(directory.file(CHECKPOINTS))
    problems = checkpoints.find()
    found = checkpoints.newest
    if found is None or found.state.get("best_epoch") is None:
        raise UsageError(
            *problems,
            f"{directory.path}: expected a complete run, or one with a checkpoint after an epoch, "
            f"found neither; `{resume_command(directory)}` continues the run",
        )
    return found


def write_page(directory: RunDir, path: Path) -> None:
    """Write the page of a run; of a stopped one that of its training so far, with a warning.

    Raises:
        UsageError: a file is missing or damaged, or the run was stopped before its first epoch.
    """
    from fmnist_tf.reporting.page import write_report, write_stopped_report

    if directory.is_complete:
        write_report(directory, path)
        return
    run = read_saved_run(directory)
    warn(boxed(f"WARNING, this run: {run.caveats[-1]}."))
    command = resume_command(directory)
    write_stopped_report(directory, run.history, run.best_epoch, command, path)
