"""Load a run: its settings, class names and model; of a stopped run, its best epoch so far.

This package builds the architecture and reads only weights from the run's files, after it has
compared their SHA-256: nothing in a run directory is executed.

B batch, K classes.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tf.errors import UsageError
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.provenance import find_caveats
from fmnist_tf.results.rundir import CHECKPOINTS, CONFIG, RunDir
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.files import require_unlinked
from fmnist_tf.training.checkpoint import Checkpoint, CheckpointDir

if TYPE_CHECKING:
    import keras
    import numpy as np

    from fmnist_tf.data.images import PixelRows
    from fmnist_tf.model.backbones import BackboneSpec
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
        temperature: that its logits are divided by wherever its probabilities are shown or served;
            1 of a run without one, see `results.temperature`.
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
        labels = (file.get("labels_sha256") for file in files)
        return (*(file["sha256"] for file in files), *filter(None, labels))

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

    @property
    def best_epoch(self) -> int:
        """Of a stopped run, the epoch whose weights are used."""
        return int(self.checkpoint.state["best_epoch"]) if self.checkpoint else 0


def resume_command(directory: RunDir) -> str:
    """Return the command that finishes a run."""
    words = ["python", "-m", "fmnist_tf.train", "--resume", directory.name_in(directory.runs_dir)]
    words += [] if directory.runs_dir == Path("runs") else ["--runs-dir", str(directory.runs_dir)]
    return shlex.join(words)


def find_run(name: str | Path, runs_dir: Path) -> RunDir:
    """Return the run called `name` in `runs_dir`, else the one at the path `name`.

    Raises:
        UsageError: there is neither.
    """
    named, path = runs_dir / name, Path(name)
    is_path = os.path.lexists(path / CONFIG) or not (path.parent == Path() or named.parent.is_dir())
    return RunDir.open(path if is_path and not os.path.lexists(named / CONFIG) else named)


def read_saved_run(directory: RunDir) -> SavedRun:
    """Read a run's files, but not its model.

    Raises:
        UsageError: the run is damaged, or was stopped before its first checkpoint.
    """
    checkpoint = None if directory.is_complete else _find_checkpoint(directory)
    temperature = 1.0
    config = RunConfig.from_json(directory.read_json(CONFIG))
    labels, provenance = directory.read_json("labels.json"), directory.read_json("provenance.json")
    try:
        if checkpoint is None:
            sha256 = str(directory.done["files"][MODEL]["sha256"])
            history = directory.read_history()
            calibration = directory.read_json("evaluation.json").get("calibration", {})
            temperature = float(calibration.get("temperature", 1))
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
        _ = run.data_sha256[0], provenance["data"]["split_sha256"], run.caveats
    except (KeyError, IndexError, TypeError) as error:
        raise UsageError(
            f"{directory.path}: expected the files of a finished run, found one without {error}; "
            "the run is damaged, or of another version: repeat it"
        ) from error
    return run


def _find_checkpoint(directory: RunDir) -> Checkpoint:
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


def load_weights(classifier: keras.Model, run: SavedRun) -> None:
    """Load the run's weights into a classifier of the run's architecture.

    Raises:
        UsageError: the model file is not the one that the run wrote, or of an older version; or
            the weights that a stopped run began with are not there.
    """
    if run.checkpoint is not None:
        from fmnist_tf.model.classifier import use_statistics

        classifier.set_weights(_rebuild(run, run.checkpoint).get_weights())
        use_statistics(classifier)
        return
    path = run.directory.file(MODEL)
    with run.directory.reading(MODEL):
        try:
            classifier.load_weights(path)
        except ValueError as error:
            raise UsageError(
                f"{path}: expected the weights of the {run.config.backbone} that there is now, "
                "found another network's, of an older version; train the run again"
            ) from error


def _rebuild(run: SavedRun, checkpoint: Checkpoint) -> keras.Model:
    """Build the network of a stopped run as it began, with what its best epoch changed."""
    from fmnist_tf.pipeline.prepare import build_network
    from fmnist_tf.training.loop import changing_variables

    config, runs_dir = run.config, run.directory.runs_dir
    parent = read_saved_run(find_run(config.parent, runs_dir)) if config.parent else None
    network = build_network(config, len(run.class_names), parent)
    expected = run.provenance["weights"]["sha256"]
    if network.weights.sha256 != expected:
        raise UsageError(
            f"{run.directory.path}: expected the backbone weights that the run began with, SHA-256 "
            f"{expected}, found {network.weights.sha256}"
        )
    best = [variable.value for variable in changing_variables(network.classifier)]
    try:
        checkpoint.restore({"best": best})
    except UsageError:  # a run in training removes all but its newest ones
        newest = _find_checkpoint(run.directory)
        if newest.path == checkpoint.path:
            raise
        newest.restore({"best": best})
    return network.classifier


def build_configured(
    config: RunConfig, backbone: keras.Model, spec: BackboneSpec, n_classes: int, name: str
) -> keras.Model:
    """Build the classifier that the settings ask for, on a backbone of this spec, cut as they say.

    Raises:
        UsageError: the backbone has no such stage or block.
    """
    from fmnist_tf.model.blocks import cut_backbone
    from fmnist_tf.model.classifier import build_classifier

    return build_classifier(
        cut_backbone(backbone, config.cut) if config.cut else backbone,
        spec.value_range,
        head=config.head,
        units=config.units,
        dropout=config.dropout,
        n_classes=n_classes,
        seed=config.seed,
        standardize=config.standardize == "features",
        name=name,
    )


def build_saved_model(run: SavedRun) -> keras.Model:
    """Build the run's classifier, (B, 28, 28) uint8 -> (B, K) float32, with its weights.

    Raises:
        UsageError: the model file was changed, or the run's backbone is not known here.
    """
    from fmnist_tf.model.backbones import build_backbone, find_backbone_spec

    spec, side = find_backbone_spec(run.config.backbone, run.config.side)
    backbone, n_classes = build_backbone(spec, side), len(run.class_names)
    classifier = build_configured(run.config, backbone, spec, n_classes, "classifier")
    load_weights(classifier, run)
    return classifier


def compile_saved_model(run: SavedRun, *, scaled: bool = True) -> RunBatches:
    """Return the run's classifier as it was tested, with the mean over mirror images if it had.

    Args:
        run: complete, or stopped after its first checkpoint.
        scaled: divide the logits by the run's temperature.
    """
    from fmnist_tf.model.inference import average_flips, compile_model
    from fmnist_tf.results.temperature import scale

    run_batches = compile_model(build_saved_model(run))
    if run.config.test_time_flip:
        run_batches = average_flips(run_batches)
    temperature = run.temperature if scaled else 1.0

    def run_scaled(images: PixelRows, show: Progress | None) -> Iterator[list[np.ndarray]]:
        for probabilities, *others in run_batches(images, show):
            yield [scale(probabilities, temperature), *others]

    return run_scaled
