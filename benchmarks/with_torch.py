"""The feature pass in PyTorch, compiled by `torch.compile` with frozen weights, channels last.

The network is Keras' ResNet50 version 1 (He et al. 2015, table 1), with its stride in a block's
first 1x1 convolution, biases in its convolutions, and epsilon 1.001e-5. It runs on the GPU if
TensorFlow computes there. TensorFlow is not imported.

Shape letters: B batch, S side of the resized image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.plan import N_CHECKED, N_IMAGES, Job

torch: Any = import_module("torch")

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}  # of each stage
CAFFE_OFFSET = (-103.939, -116.779, -123.68)  # minus ImageNet's mean blue, green and red
EPSILON = 1.001e-5


def conv_norm(weights: Mapping[str, np.ndarray], name: str, stride: int) -> Any:
    """Return the convolution and the BatchNorm that Keras calls `name`."""
    kernel, bias = (torch.from_numpy(weights[f"{name}_conv/{number}"]) for number in range(2))
    size, _, n_in, n_out = kernel.shape
    conv = torch.nn.Conv2d(n_in, n_out, size, stride, padding=size // 2)
    conv.load_state_dict({"weight": kernel.permute(3, 2, 0, 1), "bias": bias})
    norm = torch.nn.BatchNorm2d(n_out, eps=EPSILON)
    keys = ("weight", "bias", "running_mean", "running_var")
    arrays = {key: weights[f"{name}_bn/{number}"] for number, key in enumerate(keys)}
    norm.load_state_dict(
        {key: torch.from_numpy(array) for key, array in arrays.items()}, strict=False
    )
    return torch.nn.Sequential(conv, norm)


class ResNet50(torch.nn.Module):  # type: ignore[misc]
    """(B, 28, 28) uint8 -> (B, H*W*2048) float32, features in Keras' order."""

    def __init__(self, weights: Mapping[str, np.ndarray], side: int) -> None:
        super().__init__()
        self.side = side
        names = [key.removesuffix("_conv/0") for key in weights if key.endswith("_conv/0")]
        strided = {"conv1"} | {
            f"conv{stage}_block1_{place}" for stage in (3, 4, 5) for place in (0, 1)
        }
        self.parts = torch.nn.ModuleDict(
            {name: conv_norm(weights, name, 2 if name in strided else 1) for name in names}
        )

    def forward(self, images: Any) -> Any:
        """Return the features."""
        functional, parts = torch.nn.functional, self.parts
        grey = functional.interpolate(
            images[:, None].float(), (self.side, self.side), mode="bilinear"
        )
        x = grey + grey.new_tensor(CAFFE_OFFSET).reshape(1, 3, 1, 1)
        x = x.to(parts["conv1"][0].weight.dtype, memory_format=torch.channels_last)
        x = functional.max_pool2d(functional.relu(parts["conv1"](x)), 3, 2, padding=1)
        for stage, n_blocks in BLOCKS.items():
            for block in range(1, n_blocks + 1):
                name = f"conv{stage}_block{block}"
                y = functional.relu(parts[f"{name}_1"](x))
                y = parts[f"{name}_3"](functional.relu(parts[f"{name}_2"](y)))
                x = functional.relu(y + (parts[f"{name}_0"](x) if block == 1 else x))
        return x.permute(0, 2, 3, 1).flatten(1).float()


class Pass:
    """Batches of images through the compiled network."""

    def __init__(self, job: Job) -> None:
        torch._inductor.config.freezing = True
        if job.on_gpu and not torch.cuda.is_available():
            raise RuntimeError("the others compute on a GPU, which this PyTorch does not see")
        self.facts: dict[str, Any] = {}
        self._batch_size = job.batch_size
        self._device = torch.device("cuda" if job.on_gpu else "cpu")
        self._images, _ = job.load_images()
        network = ResNet50(job.load_weights(), job.image_size).eval()
        dtype = getattr(torch, job.system.precision)
        network = network.to(self._device, dtype, memory_format=torch.channels_last)
        self._network = torch.compile(network)
        n_batches = math.ceil(N_CHECKED / job.batch_size)
        self.outputs = np.concatenate([self._compute(b) for b in range(n_batches)])[:N_CHECKED]

    def measure(self, units: int) -> int:
        """Compute `units` batches."""
        return sum(len(self._compute(batch)) for batch in range(units))

    def _compute(self, batch: int) -> np.ndarray:
        rows = np.arange(batch * self._batch_size, (batch + 1) * self._batch_size) % N_IMAGES
        with torch.no_grad():  # required by freezing
            images = torch.from_numpy(self._images[rows]).to(self._device)
            return self._network(images).cpu().numpy()
