"""The feature pass in OpenVINO's runtime on the processor.

In: a `Job`, the forward pass as a SavedModel. Out: the stage, through an asynchronous queue with
the throughput hint. TensorFlow is not imported here: OpenVINO reads the SavedModel itself. This
module must not know how the network looks.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.benchmark.bounds import Conv, MatMul, find_fastest
from fmnist_tf.benchmark.plan import IMAGES, N_CHECKED, N_IMAGES, SAVED_MODEL, Job

openvino: Any = import_module("openvino")

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class FeaturePass:
    """Batches of images through a queue of as many requests as OpenVINO finds best."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._core = openvino.Core()
        self._config = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": _HINTS[job.precision],
        }
        with np.load(Path(job.folder) / IMAGES) as arrays:
            grey = arrays["images"]
        self._images = np.repeat(grey[..., np.newaxis], 3, axis=-1)  # (N, 28, 28, 3)
        model = openvino.convert_model(str(Path(job.folder) / SAVED_MODEL))
        model.reshape([job.batch_size, *self._images.shape[1:]])
        self._queue = openvino.AsyncInferQueue(self._core.compile_model(model, "CPU", self._config))
        self._features: dict[int, np.ndarray] = {}
        self._queue.set_callback(self._keep)

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the row has to tell."""
        return {"precision": self._job.precision, "batch_size": self._job.batch_size}

    def outputs(self) -> np.ndarray:
        """Return the checked images' features."""
        n_batches = -(-N_CHECKED // self._job.batch_size)
        self._infer(n_batches, n_kept=n_batches)
        return np.concatenate([self._features[batch] for batch in sorted(self._features)])[
            :N_CHECKED
        ]

    def measure(self, units: int) -> int:
        """Compute as many batches as fill the queue, `units` times."""
        return self._infer(units * len(self._queue), n_kept=len(self._queue))

    def probe(self) -> float | None:
        """Return the highest rate of one large product."""
        return find_fastest(self._build_product)

    def _infer(self, n_batches: int, *, n_kept: int) -> int:
        size = self._job.batch_size
        for batch in range(n_batches):
            rows = np.arange(batch * size, (batch + 1) * size) % N_IMAGES
            self._queue.start_async({0: self._images[rows]}, batch % n_kept)
        self._queue.wait_all()
        return n_batches * size

    def _keep(self, request: Any, place: int) -> None:
        # A copy, as whoever stores features needs one: the request's memory is used again.
        features = request.get_output_tensor(0).data
        if place not in self._features:
            self._features[place] = np.empty_like(features)
        np.copyto(self._features[place], features)

    def _build_product(self, product: MatMul | Conv) -> Callable[[], None]:
        operators = import_module("openvino.opset13")
        rng = np.random.default_rng(0)
        if isinstance(product, MatMul):
            shape: tuple[int, ...] = (product.side, product.side)
            x = operators.parameter(shape, np.float32)
            weights = rng.standard_normal(shape, np.float32)
            y = operators.matmul(x, operators.constant(weights), False, False)
        else:
            shape = (product.batch_size, product.channels, product.side, product.side)
            kernel = (product.filters, product.channels, product.kernel, product.kernel)
            x = operators.parameter(shape, np.float32)
            weights = rng.standard_normal(kernel, np.float32)
            margin = product.kernel // 2
            y = operators.convolution(
                x, operators.constant(weights), [1, 1], [margin] * 2, [margin] * 2, [1, 1]
            )
        model = openvino.Model([y], [x])
        # One product alone has all cores for itself.
        compiled = self._core.compile_model(
            model, "CPU", {**self._config, "PERFORMANCE_HINT": "LATENCY"}
        )
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(rng.standard_normal(shape, np.float32)))
        return lambda: request.infer()


def open_stage(job: Job) -> FeaturePass:
    """Return the feature pass in OpenVINO."""
    return FeaturePass(job)
