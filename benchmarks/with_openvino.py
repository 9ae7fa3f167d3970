"""The feature pass in OpenVINO's runtime on the processor.

OpenVINO reads the SavedModel itself; TensorFlow is not imported. Batches pass an asynchronous queue
with the throughput hint.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.plan import N_CHECKED, N_IMAGES, SAVED_MODEL, Job

openvino: Any = import_module("openvino")

MAX_KEPT = 64  # batches


class Pass:
    """Batches of images through a queue of as many requests as OpenVINO finds best."""

    def __init__(self, job: Job) -> None:
        self.facts: dict[str, Any] = {}
        self._batch_size = job.batch_size
        images, _ = job.load_images()
        model = openvino.convert_model(str(job.folder / SAVED_MODEL))
        channels = model.inputs[0].partial_shape[3].get_length()
        self._images = np.repeat(images[..., np.newaxis], channels, axis=-1)  # (N, 28, 28, C)
        model.reshape([job.batch_size, *self._images.shape[1:]])
        precision = {"float32": "f32", "bfloat16": "bf16"}[job.system.precision]
        hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
        self._queue = openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", hints))
        self._features: dict[int, np.ndarray] = {}
        self._queue.set_callback(self._keep)
        n_batches = math.ceil(N_CHECKED / job.batch_size)
        self._infer(n_batches)
        batches = [self._features[number] for number in range(n_batches)]
        self.outputs = np.concatenate(batches)[:N_CHECKED]

    def measure(self, units: int) -> int:
        """Compute as many batches as fill the queue, `units` times."""
        return self._infer(units * len(self._queue))

    def _infer(self, n_batches: int) -> int:
        size = self._batch_size
        for batch in range(n_batches):
            rows = np.arange(batch * size, (batch + 1) * size) % N_IMAGES
            self._queue.start_async({0: self._images[rows]}, batch)
        self._queue.wait_all()
        return n_batches * size

    def _keep(self, request: Any, batch: int) -> None:
        # A copy, which a cache of features needs too: the request's memory is reused.
        self._features[batch % MAX_KEPT] = request.get_output_tensor(0).data.copy()
