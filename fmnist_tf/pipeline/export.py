"""Export a saved run: convert its model, and compare the result with it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.cli.terminal import boxed, say, warn
from fmnist_tf.data.splits import subset_rows
from fmnist_tf.errors import RunExistsError, UsageError
from fmnist_tf.exporting import FORMATS
from fmnist_tf.pipeline.run_data import read_labelled_dataset
from fmnist_tf.pipeline.saved_run import MODEL, SavedRun
from fmnist_tf.results.provenance import describe_code, describe_machine
from fmnist_tf.system.files import check_folder, replacing
from fmnist_tf.system.startup import import_tensorflow

_ONNX_PACKAGES = ("tf2onnx", "onnx", "onnxruntime")
_N_CALIBRATION = 200


def export_run(
    run: SavedRun, name: str, out: Path | None = None, data: str | None = None
) -> tuple[Path, str]:
    """Write a folder with the model, its class names and export.json.

    Args:
        run: whose model is exported.
        name: of the format, one of `FORMATS`.
        out: the folder to create; None: RUN/export/FORMAT.
        data: images that calibrate int8 and that the export is checked with; None: the run's own.

    Returns:
        The folder, and the comparison with the Keras model as a table.

    Raises:
        UsageError: no such format; a package is not installed; the data cannot be had.
        RunExistsError: the folder exists.
    """
    if name not in FORMATS:
        raise UsageError(f"export format {name!r}: expected one of {', '.join(FORMATS)}")
    missing = [package for package in _ONNX_PACKAGES if find_spec(package) is None]
    if name == "onnx" and missing:
        raise UsageError(
            f"--format onnx: expected the packages {', '.join(_ONNX_PACKAGES)}, found no "
            f"{', '.join(missing)}; install them with `python -m pip install -e '.[onnx]'` in the "
            "checkout"
        )
    out = out or run.directory.output(f"export/{name}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunExistsError(
            f"{out} exists already, and an export is never overwritten; choose another --out PATH, "
            "or delete it"
        )
    check_folder("the export", out)
    for caveat in run.caveats:
        is_stopped = run.checkpoint is not None
        warn(boxed(f"WARNING, this model: {caveat}.") if is_stopped else f"note: {caveat}")
    dataset = read_labelled_dataset(run, data)
    import_tensorflow()
    from fmnist_tf.exporting.check import check_exports, find_losses, format_report
    from fmnist_tf.exporting.formats import write_exports
    from fmnist_tf.model.classifier import divide_logits
    from fmnist_tf.pipeline.network import build_saved_model

    machine = describe_machine()
    report: dict[str, Any] = {
        "run": run.directory.path.name,
        "model_sha256": run.model_sha256,
        "temperature": run.temperature,
        "format": name,
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": describe_code(),
        "machine": machine,
    }
    model = build_saved_model(run)
    divide_logits(model, run.temperature)  # so that it answers as `predict` does
    rows = subset_rows(dataset.train.labels, _N_CALIBRATION)
    calibration = np.reshape(dataset.train.pixels[rows], (-1, 28, 28))
    with replacing(out.resolve()) as folder:
        folder.mkdir()
        say(f"converting to {name}")
        if run.config.test_time_flip:
            say("note: the export is the plain network; the run's test averaged mirror images")
        threads = machine["cores"]
        exports = write_exports(name, model, run.class_names, calibration, folder, threads)
        say("checking the export")
        report |= check_exports(model, exports, dataset, folder, threads)
        path = run.directory.file(MODEL)  # a stopped run may have none
        n_bytes = path.stat().st_size if run.checkpoint is None else 4 * model.count_params()
        report["keras"]["bytes"] = n_bytes
        warnings = find_losses(report)
        files = run.provenance["data"]["files"]  # of one file, the test images are held out
        if len(files) > 1 and dataset.files[-1].sha256 == files[0]["sha256"]:
            warnings.append("the run was trained on the images checked; the accuracy is no test")
        report["warnings"] = [*run.caveats, *warnings]
        text = json.dumps(report, indent=2, allow_nan=False)
        (folder / "export.json").write_text(text + "\n")
    for warning in warnings:
        warn(boxed(f"WARNING: {warning}"))
    return out, format_report(report)
