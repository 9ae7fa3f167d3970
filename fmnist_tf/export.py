"""`python -m fmnist_tf.export RUN --format F`: convert a run's model for servers and phones.

Writes a folder with the model, its class names, and export.json, which compares the export with the
Keras model on test images; prints that comparison as a table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tf.cli.command import add_run_arguments, add_terminal_flags, run_command
from fmnist_tf.errors import RunExistsError, UsageError
from fmnist_tf.system.files import check_folder, replacing

if TYPE_CHECKING:
    from fmnist_tf.data.sources import Dataset
    from fmnist_tf.pipeline.saved_run import SavedRun

FORMATS = ("saved_model", "litert", "onnx")
ONNX_PACKAGES = ("tf2onnx", "onnx", "onnxruntime")
N_CALIBRATION = 200


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.export",
        description="Export a finished run's model, and compare the export with it.",
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument(
        "--out", metavar="PATH", type=Path, help="folder to create (default: RUN/export/FORMAT)"
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
    return run_command(_export, build_parser().parse_args(argv))


def _export(flags: argparse.Namespace) -> None:
    from fmnist_tf.cli.terminal import boxed, warn
    from fmnist_tf.pipeline.run_data import read_labelled_dataset
    from fmnist_tf.pipeline.saved_run import find_run, read_saved_run

    missing = [package for package in ONNX_PACKAGES if find_spec(package) is None]
    if flags.format == "onnx" and missing:
        raise UsageError(
            f"--format onnx: expected the packages {', '.join(ONNX_PACKAGES)}, found no "
            f"{', '.join(missing)}; install them with `python -m pip install -e '.[onnx]'` in the "
            "checkout"
        )
    run = read_saved_run(find_run(flags.run, flags.runs_dir))
    out = flags.out or run.directory.output(f"export/{flags.format}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunExistsError(
            f"{out} exists already, and an export is never overwritten; choose another --out PATH, "
            "or delete it"
        )
    check_folder("the export", out)
    for caveat in run.caveats:
        is_stopped = run.checkpoint is not None
        warn(boxed(f"WARNING, this model: {caveat}.") if is_stopped else f"note: {caveat}")
    _export_to(out, flags.format, run, read_labelled_dataset(run, flags.data))


def _export_to(out: Path, name: str, run: SavedRun, dataset: Dataset) -> None:
    """Export the run's model to the folder `out`, calibrated and checked with the images."""
    import numpy as np

    from fmnist_tf.cli.terminal import boxed, say, warn
    from fmnist_tf.data.splits import subset_rows
    from fmnist_tf.pipeline.saved_run import MODEL, build_saved_model
    from fmnist_tf.results.provenance import describe_code, describe_machine
    from fmnist_tf.system.startup import import_tensorflow

    import_tensorflow()
    from fmnist_tf.exporting.check import check_exports, find_losses, format_report
    from fmnist_tf.exporting.formats import write_exports

    machine = describe_machine()
    report: dict[str, Any] = {
        "run": run.directory.path.name,
        "model_sha256": run.model_sha256,
        "format": name,
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": describe_code(),
        "machine": machine,
    }
    model = build_saved_model(run)
    rows = subset_rows(dataset.train.labels, N_CALIBRATION)
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
        if len(run.data_sha256) > 1 and dataset.files[-1].sha256 == run.data_sha256[0]:
            warnings.append("the run was trained on the images checked; the accuracy is no test")
        report["warnings"] = [*run.caveats, *warnings]
        text = json.dumps(report, indent=2, allow_nan=False)
        (folder / "export.json").write_text(text + "\n")
    for warning in warnings:
        warn(boxed(f"WARNING: {warning}"))
    print(format_report(report))
    print(out)


if __name__ == "__main__":
    sys.exit(main())
