"""`python -m fmnist_tf.export RUN --format F`: a run's model for servers, phones and runtimes.

In: a finished run, and images to calibrate and to check with. Out: a folder with the model, its
labels, and export.json, which says how the model answers beside the Keras model; the same as a
table on stdout. What a format looks like inside is `model.exporting`'s business, not this module's.

N images, K classes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tf.cli.command import add_run_arguments, add_terminal_flags, run_command
from fmnist_tf.errors import FmnistError, RunExistsError, UsageError, printable
from fmnist_tf.system.files import check_folder

if TYPE_CHECKING:
    import keras
    import numpy as np

    from fmnist_tf.data.images import Pixels
    from fmnist_tf.data.sources import Dataset
    from fmnist_tf.exporting.formats import Classify
    from fmnist_tf.pipeline.saved_run import SavedRun

FORMATS = ("saved_model", "litert", "onnx")
ONNX_PACKAGES = ("tf2onnx", "onnx", "onnxruntime")
REPORT = "export.json"
N_CALIBRATION, N_CHECKED = 200, 1000
N_WARM_UP, N_TIMED = 5, 50
# Float arithmetic in another order moves a probability by 1e-6 or so; where the two best classes
# are this close, either is right.
TIE = 1e-3
INT8_LOSS = 0.005  # of accuracy; more is warned of
CHECK_BATCH = 50


@dataclass(frozen=True)
class Export:
    """One exported model.

    Attributes:
        path: its file or folder.
        arithmetic: float32, or int8 and what it was calibrated with.
        classify: runs it.
    """

    path: Path
    arithmetic: str
    classify: Classify


@dataclass(frozen=True)
class Agreement:
    """How an exported model answers beside the Keras model, on the same N images.

    Attributes:
        total: N.
        same: images with the same most probable class.
        differ_clearly: of the others, those where Keras' two best classes are `TIE` or more apart.
        largest_difference: of any probability.
        correct: right answers of the export.
        keras_correct: right answers of the Keras model.
    """

    total: int
    same: int
    differ_clearly: int
    largest_difference: float
    correct: int
    keras_correct: int


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.export",
        description="Export a finished run's model, and check the export against it.",
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=Path,
        help="the folder to make (default: RUN/export/FORMAT)",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="images to calibrate int8 and to check with (default: the run's own data)",
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    flags = build_parser().parse_args(argv)
    return run_command(_export, flags)


def _export(flags: argparse.Namespace) -> None:
    from fmnist_tf.cli.terminal import warn
    from fmnist_tf.pipeline.saved_run import find_run, read_saved_run

    if flags.format == "onnx":
        _require_onnx()
    run = read_saved_run(find_run(flags.run, flags.runs_dir))
    out = flags.out or run.directory.file("export") / flags.format
    _require_free(out)
    for caveat in run.caveats:
        warn(f"note: {caveat}")
    with tempfile.TemporaryDirectory() as store_dir:
        _export_with(run, _read_data(run, flags.data, store_dir), flags.format, out)


def _export_with(run: SavedRun, dataset: Dataset, name: str, out: Path) -> None:
    """Export the run's model to the folder `out`, calibrated and checked with the images."""
    from fmnist_tf.cli.terminal import boxed, say, warn
    from fmnist_tf.pipeline.saved_run import build_saved_model
    from fmnist_tf.results.provenance import describe_code, describe_machine
    from fmnist_tf.system.startup import import_tensorflow

    about: dict[str, Any] = {
        "run": run.directory.path.name,
        "model_sha256": run.model_sha256,
        "format": name,
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": describe_code(),
        "machine": describe_machine(),
    }

    import_tensorflow()
    model = build_saved_model(run)
    with _appearing(out) as folder:
        say(f"converting to {name}")
        if run.config.test_time_flip:
            say("note: this is the plain network; the run's test averaged over mirror images")
        threads = about["machine"]["cores"]
        exports = _write(name, model, run.class_names, dataset.train, folder, threads)
        say("checking what was written")
        checked = _check(model, exports, dataset, folder, threads)
        checked["keras"]["bytes"] = run.directory.file("model.keras").stat().st_size
        warnings = [*run.caveats, *_find_losses(checked)]
        if len(run.data_sha256) > 1 and dataset.files[-1].sha256 == run.data_sha256[0]:
            warnings.append("the images checked with trained the run: the accuracies are no test")
        report = {**about, **checked, "warnings": warnings}
        (folder / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    for warning in warnings[len(run.caveats) :]:
        warn(boxed(f"WARNING: {warning}"))
    print(_to_table(checked))
    print(out)


def _require_onnx() -> None:
    missing = [package for package in ONNX_PACKAGES if find_spec(package) is None]
    if missing:
        raise UsageError(
            f"--format onnx: expected the packages {', '.join(ONNX_PACKAGES)}, found no "
            f"{', '.join(missing)}; install them with `python -m pip install -e '.[onnx]'` in the "
            "checkout"
        )


def _require_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunExistsError(
            f"{printable(str(out), 200)} exists already, and an export is never overwritten; "
            "choose another --out PATH, or delete it"
        )
    check_folder("the export", out)


def _read_data(run: SavedRun, data: str | None, store_dir: str) -> Dataset:
    """Read the images to calibrate and to check with, their labels as the run counts them.

    Raises:
        UsageError: they are not there, or show a class that the run does not know.
    """
    import numpy as np

    from fmnist_tf.cli.terminal import say
    from fmnist_tf.data.labels import index_classes
    from fmnist_tf.data.sources import read_dataset
    from fmnist_tf.pipeline.saved_run import read_run_dataset, read_with_label

    if data is None:
        return read_run_dataset(run, say)
    dataset = read_with_label(
        lambda column: read_dataset(data, store_dir=Path(store_dir), say=say, label_column=column),
        run,
    )
    places, names = index_classes(run.class_names), dataset.train.class_names
    if unknown := [name for name in names if name not in places]:
        raise UsageError(
            f"{printable(dataset.files[0].path, 200)}: expected the run's classes "
            f"({printable(', '.join(places), 100)}), found {printable(', '.join(unknown), 100)}; "
            "name other data with --data"
        )
    place_of = np.array([places[name] for name in names])
    train, test = (
        replace(part, labels=place_of[part.labels], class_names=run.class_names)
        for part in (dataset.train, dataset.test)
    )
    return replace(dataset, train=train, test=test)


def _images(source: Pixels, rows: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.reshape(source.pixels[rows], (-1, 28, 28))


def _write(
    name: str,
    model: keras.Model,
    class_names: Sequence[str],
    train: Pixels,
    folder: Path,
    threads: int,
) -> list[Export]:
    """Write the model into `folder`, and read it back from there."""
    from fmnist_tf.data.splits import subset_rows
    from fmnist_tf.exporting import formats as ex

    (folder / ex.LABELS).write_text(ex.labels_text(class_names), encoding="utf-8")
    if name == "saved_model":
        # TensorFlow Serving looks for folders of numbers, the versions of a model.
        version = folder / "1"
        ex.write_saved_model(model, class_names, version)
        return [Export(version, "float32", ex.read_saved_model(version))]
    if name == "onnx":
        path = folder / "model.onnx"
        ex.write_onnx(model, class_names, path)
        return [Export(path, "float32", ex.read_onnx(path, threads))]
    calibration = _images(train, subset_rows(train.labels, N_CALIBRATION))
    exact, small = folder / "model.tflite", folder / "model-int8.tflite"
    ex.write_litert(model, class_names, exact)
    ex.write_litert(model, class_names, small, calibration)
    return [
        Export(exact, "float32", ex.read_litert(exact, threads)),
        Export(small, f"int8, {len(calibration)} images", ex.read_litert(small, threads)),
    ]


def _check(
    model: keras.Model, exports: Sequence[Export], dataset: Dataset, folder: Path, threads: int
) -> dict[str, Any]:
    """Run the Keras model and each export on the same test images.

    Returns:
        What export.json says of it.

    Raises:
        FmnistError: a float export answers otherwise than the Keras model.
    """
    from fmnist_tf.cli.terminal import progress_bar
    from fmnist_tf.data.splits import subset_rows
    from fmnist_tf.model.inference import run_model

    rows = subset_rows(dataset.test.labels, N_CHECKED)
    images, labels = _images(dataset.test, rows), dataset.test.labels[rows]
    with progress_bar("Keras", "image") as show:
        expected = run_model(model, images, show)[0]
    entries = []
    for export in exports:
        with progress_bar(export.path.name, "image") as show:
            found = _classify_all(export.classify, images, show)
        agreement = compare(expected, found, labels)
        if export.arithmetic == "float32" and agreement.differ_clearly:
            raise FmnistError(
                f"{export.path.name}: expected the answers of model.keras, found another class for "
                f"{agreement.differ_clearly} of {agreement.total} images that are no ties; "
                "nothing was exported. Please report it, with the versions of tensorflow and keras"
            )
        entries.append(
            {
                "path": export.path.relative_to(folder).as_posix(),
                "arithmetic": export.arithmetic,
                **asdict(agreement),
                "latency_ms": measure_latency(export.classify, images),
                "bytes": _count_bytes(export.path),
            }
        )
    return {
        "checked": {
            "dataset": dataset.name,
            "file_sha256": dataset.files[-1].sha256,
            "images": len(rows),
            "of": len(dataset.test.labels),
        },
        "latency": {"images": 1, "calls": N_TIMED, "median": True, "threads": threads},
        "keras": {
            "correct": int((expected.argmax(axis=1) == labels).sum()),
            "latency_ms": measure_latency(model.predict_on_batch, images),
        },
        "exports": entries,
    }


def _find_losses(checked: dict[str, Any]) -> list[str]:
    total, of_keras = checked["checked"]["images"], checked["keras"]["correct"]
    return [
        f"{entry['path']} loses {(of_keras - entry['correct']) / total:.2%} of accuracy: "
        f"{entry['correct']} of {total} test images right, the Keras model {of_keras}"
        for entry in checked["exports"]
        if of_keras - entry["correct"] > INT8_LOSS * total
    ]


def _to_table(checked: dict[str, Any]) -> str:
    """Return what was found as a Markdown table, with a line on what was looked at."""
    images, of = checked["checked"]["images"], checked["checked"]["of"]

    def cells(name: str, same: str, difference: str, entry: dict[str, Any]) -> str:
        accuracy = f"{entry['correct'] / images:.4f} ({entry['correct']}/{images})"
        measured = f"{entry['latency_ms']:.1f} ms | {entry['bytes'] / 1e6:.1f} MB"
        return f"| {name} | {same} | {difference} | {accuracy} | {measured} |"

    rows = [
        cells(
            "SavedModel" if entry["path"] == "1" else entry["path"],
            f"{entry['same']}/{images}",
            f"{entry['largest_difference']:.1e}",
            entry,
        )
        for entry in checked["exports"]
    ]
    return "\n".join(
        [
            f"{printable(checked['checked']['dataset'])}, {images:,} of {of:,} test images; "
            f"latency of one image, median of {N_TIMED} calls, "
            f"{checked['latency']['threads']} threads",
            "",
            "| model | same class | largest difference | accuracy | latency | size |",
            "| --- | --- | --- | --- | --- | --- |",
            cells("model.keras", "", "", checked["keras"]),
            *rows,
            "",
        ]
    )


def compare(expected: np.ndarray, found: np.ndarray, labels: np.ndarray) -> Agreement:
    """Compare an export's probabilities with the Keras model's.

    Args:
        expected: (N, K) floats, of the Keras model; K at least 2.
        found: (N, K) floats, of the export.
        labels: (N,) integers 0..K-1, the truth.
    """
    import numpy as np

    best, other_best = expected.argmax(axis=1), found.argmax(axis=1)
    second, first = np.partition(expected, -2, axis=1)[:, -2:].T
    differs = best != other_best
    return Agreement(
        total=len(labels),
        same=int((~differs).sum()),
        differ_clearly=int((differs & (first - second >= TIE)).sum()),
        largest_difference=float(np.abs(expected - found).max()),
        correct=int((other_best == labels).sum()),
        keras_correct=int((best == labels).sum()),
    )


def measure_latency(classify: Classify, images: np.ndarray) -> float:
    """Return the median milliseconds of a call with one image, after a warm-up."""
    import numpy as np

    seconds = []
    for number in range(N_WARM_UP + N_TIMED):
        image = images[number % len(images)][np.newaxis]
        started = time.perf_counter()
        classify(image)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[N_WARM_UP:])


def _classify_all(
    classify: Classify, images: np.ndarray, show: Callable[[int, int], None]
) -> np.ndarray:
    import numpy as np

    parts = []
    for first in range(0, len(images), CHECK_BATCH):
        parts.append(classify(images[first : first + CHECK_BATCH]))
        show(first + len(parts[-1]), len(images))
    return np.concatenate(parts)


def _count_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` at the end; on an error nothing is left."""
    target = target.resolve()
    temporary = target.with_name(f".{target.name}.tmp-{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.sync()  # else a power cut can leave the name without the content
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
