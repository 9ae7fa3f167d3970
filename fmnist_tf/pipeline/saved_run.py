"""A finished run, found again: its settings, its labels, its model, its data.

In: a run's name or folder. Out: a `SavedRun`, and from it the classifier and the dataset. The
architecture is built by this package and only weights are read from the run's files, after their
SHA-256 was compared: nothing in a run directory is executed. This module must not know what is done
with a run.

Shape letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fmnist_tf.data.sources import Dataset, find_source, read_dataset
from fmnist_tf.errors import DataError, UsageError, printable
from fmnist_tf.results.provenance import find_caveats
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.files import file_digest

if TYPE_CHECKING:
    import keras

    from fmnist_tf.model.backbones import BackboneSpec
    from fmnist_tf.model.inference import RunBatches

MODEL = "model.keras"

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class SavedRun:
    """A complete run, as its files tell it.

    Attributes:
        directory: of the run.
        config: its settings, all said.
        class_names: K names, by label.
        provenance: provenance.json.
        model_sha256: of model.keras, as DONE.json has it.
    """

    directory: RunDir
    config: RunConfig
    class_names: tuple[str, ...]
    provenance: dict[str, Any]
    model_sha256: str

    @property
    def data_sha256(self) -> tuple[str, ...]:
        """Of the train file and, where there was one, of the test file."""
        return tuple(file["sha256"] for file in self.provenance["data"]["files"])

    @property
    def caveats(self) -> tuple[str, ...]:
        """What nobody who uses this run's model may miss."""
        data, weights = self.provenance["data"], self.provenance["weights"]
        return find_caveats(data["kind"], weights["kind"], self.config.phase)


def find_run(name: str | Path, runs_dir: Path) -> RunDir:
    """Return the run called `name` in `runs_dir`, else the one at the path `name`.

    Raises:
        UsageError: there is neither.
    """
    named = runs_dir / name
    return RunDir.open(named if (named / "config.json").is_file() else Path(name))


def read_saved_run(directory: RunDir) -> SavedRun:
    """Read a run's JSON files.

    Raises:
        UsageError: the run is incomplete or damaged.
    """
    where = printable(str(directory.path), 200)
    if not directory.is_complete:
        raise UsageError(
            f"{where}: expected a complete run, found one without DONE.json. Let it finish, or "
            "name another"
        )
    config = RunConfig.from_json(directory.read_json("config.json"))
    labels, provenance = directory.read_json("labels.json"), directory.read_json("provenance.json")
    try:
        run = SavedRun(
            directory,
            config,
            tuple(str(labels[str(index)]) for index in range(len(labels))),
            provenance,
            str(directory.read_json("DONE.json")["files"][MODEL]["sha256"]),
        )
        # Whoever uses a run relies on these.
        _ = run.data_sha256[0], provenance["data"]["split_sha256"], run.caveats
    except (KeyError, IndexError, TypeError) as error:
        raise UsageError(
            f"{where}: expected the files of a finished run, found one without "
            f"{printable(str(error))}; the run is damaged, or of another version: repeat it"
        ) from error
    return run


def read_with_label(
    read: Callable[[str | None], _Read], run: SavedRun, named: str | None = None
) -> _Read:
    """Return what `read` makes of a file whose label column is as named, the run's, or found.

    Args:
        read: label column, or None to find it -> what is read.
        run: trained on a file with the column.
        named: the column that counts whatever the run's is, or None.

    Raises:
        DataError: the file is bad, whatever column holds its labels.
    """
    if named:
        return read(named)
    column = run.config.label_column
    if column is not None:
        try:
            return read(column)
        except DataError as error:
            if {problem.code for problem in error.problems} - {"E021", "E026"}:
                raise
    return read(None)


def load_weights(classifier: keras.Sequential, run: SavedRun) -> None:
    """Put the run's weights into a classifier of the run's architecture.

    Raises:
        UsageError: the model file is not the one that the run wrote, or an older version's.
    """
    path = run.directory.file(MODEL)
    found = file_digest(path) if path.is_file() else "no file"
    if found != run.model_sha256:
        raise UsageError(
            f"{printable(str(path), 200)}: expected SHA-256 {run.model_sha256} as DONE.json says, "
            f"found {found}: the model was changed after its run; train the run again"
        )
    try:
        classifier.load_weights(path)
    except ValueError as error:
        raise UsageError(
            f"{printable(str(path), 200)}: expected the weights of the {run.config.backbone} that "
            "there is now, found another network's, of an older version; train the run again"
        ) from error


def build_configured(
    config: RunConfig, backbone: keras.Model, spec: BackboneSpec, n_classes: int, name: str
) -> keras.Sequential:
    """Build the classifier that the settings ask for, on a backbone of this spec."""
    from fmnist_tf.model.classifier import build_classifier

    return build_classifier(
        backbone,
        spec,
        head=config.head,
        units=config.units,
        dropout=config.dropout,
        n_classes=n_classes,
        seed=config.seed,
        name=name,
    )


def build_saved_model(run: SavedRun) -> keras.Sequential:
    """Build the run's classifier, (B, 28, 28) uint8 -> (B, K) float32, with its weights.

    Raises:
        UsageError: the model file was changed, or the run's backbone is not known here.
    """
    from fmnist_tf.model.backbones import find_backbone_spec

    spec, side = find_backbone_spec(run.config.backbone, run.config.image_size)
    classifier = build_configured(
        run.config, spec.build(side), spec, len(run.class_names), "classifier"
    )
    load_weights(classifier, run)
    return classifier


def compile_saved_model(run: SavedRun) -> RunBatches:
    """Return the run's classifier as it was tested: mirror images too, where the run averaged.

    Raises:
        UsageError: as `build_saved_model`.
    """
    from fmnist_tf.model.inference import average_flips, compile_model

    run_batches = compile_model(build_saved_model(run))
    return average_flips(run_batches) if run.config.test_time_flip else run_batches


def read_run_dataset(run: SavedRun, say: Callable[[str], None]) -> Dataset:
    """Read the run's own data again, from the files that it recorded.

    Args:
        run: whose files lie where they lay, relative to the current folder.
        say: hears what takes time.

    Raises:
        UsageError: a file is gone, or not the one the run read.
    """
    config, where = run.config, printable(str(run.directory.path), 200)
    paths = [str(file["path"]) for file in run.provenance["data"]["files"]]
    source = find_source(paths[0])
    test = paths[1:]
    if source == paths[0]:
        needed = paths
    else:  # found again without a path, its test images too unless others were named
        test = needed = test if config.test_data else []
    for path in needed:
        if not Path(path).is_file():
            raise UsageError(
                f"the data of {where}: expected {printable(path, 200)}, found no such file in "
                f"{printable(str(Path.cwd()), 200)}. Call it where the run was made, or name the "
                "data with --data"
            )
    dataset = read_dataset(
        source,
        store_dir=config.cache_dir(run.directory.runs_dir) / "pixels",
        say=say,
        test_data=test[0] if test else None,
        label_column=config.label_column,
    )
    found = tuple(file.sha256 for file in dataset.files)
    if found != run.data_sha256:
        raise UsageError(
            f"the data of {where}: expected files of SHA-256 {', '.join(run.data_sha256)}, found "
            f"{', '.join(found)}. Name the data with --data"
        )
    return dataset
