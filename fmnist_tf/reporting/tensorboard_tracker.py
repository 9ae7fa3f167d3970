"""TensorBoard: event files in the run directory; `tensorboard --logdir RUNS_DIR` shows them.

Written by TensorFlow alone: the package tensorboard need not be installed where training runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.data.images import PixelRows
from fmnist_tf.reporting.record import RunRecord


class TensorBoardTracker:
    """Writes event files to `folder`; a run that continues adds a file."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        self._tf, self._writer = tf, tf.summary.create_file_writer(str(folder))
        runs_dir = shlex.quote(str(folder.parent.parent))
        self.hint: Sequence[str] = (f"TensorBoard:  tensorboard --logdir {runs_dir}",)

    def log(self, axis: str, number: int, values: Mapping[str, float]) -> None:
        """Record finite values of one "step" or "epoch"."""
        for name, value in values.items():
            self._write("scalars", name, np.float32(value), number)
        if axis == "epoch":
            self._writer.flush()

    def log_results(self, run: RunRecord, pixels: PixelRows) -> None:
        """Record the metrics of each split, and the figures."""
        for name, value in run.metrics.items():
            self._write("scalars", f"result/{name}", np.float32(value), 0)
        for path in run.figures:
            png = path.read_bytes()
            height, width, _ = self._tf.io.decode_png(png, channels=3).shape
            # https://www.tensorflow.org/api_docs/python/tf/summary/image: sides, then the pictures
            self._write("images", f"figure/{path.stem}", [str(width), str(height), png], 0)

    def finish(self, *, ok: bool) -> None:
        """Write what is left."""
        self._writer.close()

    def _write(self, plugin: str, tag: str, value: Any, step: int) -> None:
        metadata = self._tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = plugin
        with self._writer.as_default():
            self._tf.summary.write(tag, value, step=step, metadata=metadata)
