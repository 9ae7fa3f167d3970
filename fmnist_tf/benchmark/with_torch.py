"""The feature pass in PyTorch, compiled by `torch.compile` with frozen weights.

In: a `Job`, weights in Keras' layout. Out: the stage, in channels-last memory, on the GPU if
TensorFlow computes there. The network is Keras' ResNet50 version 1 (He et al. 2015, table 1), which
has its stride in a block's first 1x1 convolution, biases in its convolutions, and epsilon 1.001e-5.
TensorFlow is not imported here. This module must not know other networks.

Shape letters: B batch, S side of the resized image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.benchmark.bounds import Conv, MatMul, find_fastest
from fmnist_tf.benchmark.plan import IMAGES, N_CHECKED, N_IMAGES, WEIGHTS, Job

torch: Any = import_module("torch")

_STAGES = ((2, 3, 1), (3, 4, 2), (4, 6, 2), (5, 3, 2))  # number, blocks, stride of the first
_CAFFE = (-103.939, -116.779, -123.68)  # minus ImageNet's mean blue, green and red
_EPSILON = 1.001e-5


class ConvNorm(torch.nn.Module):  # type: ignore[misc]
    """A convolution and its BatchNorm, with the weights of Keras' layers of this name."""

    def __init__(self, arrays: Mapping[str, np.ndarray], name: str, *, stride: int = 1) -> None:
        super().__init__()
        kernel, bias = (torch.from_numpy(arrays[f"{name}_conv/{i}"]) for i in range(2))
        n_out, n_in, size = kernel.shape[3], kernel.shape[2], kernel.shape[0]
        self.conv = torch.nn.Conv2d(n_in, n_out, size, stride, padding=size // 2)
        self.conv.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
        self.conv.bias.data = bias
        self.norm = torch.nn.BatchNorm2d(n_out, eps=_EPSILON)
        gamma, beta, mean, variance = (torch.from_numpy(arrays[f"{name}_bn/{i}"]) for i in range(4))
        self.norm.weight.data, self.norm.bias.data = gamma, beta
        self.norm.running_mean, self.norm.running_var = mean, variance

    def forward(self, x: Any) -> Any:
        """Return the normed convolution."""
        return self.norm(self.conv(x))


class Block(torch.nn.Module):  # type: ignore[misc]
    """Three convolutions and a shortcut, which the first block of a stage convolves too."""

    def __init__(self, arrays: Mapping[str, np.ndarray], name: str, *, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(arrays, f"{name}_1", stride=stride)
        self.second = ConvNorm(arrays, f"{name}_2")
        self.third = ConvNorm(arrays, f"{name}_3")
        has_shortcut = f"{name}_0_conv/0" in arrays
        self.shortcut = (
            ConvNorm(arrays, f"{name}_0", stride=stride) if has_shortcut else torch.nn.Identity()
        )

    def forward(self, x: Any) -> Any:
        """Return the block's output."""
        relu = torch.nn.functional.relu
        y = self.third(relu(self.second(relu(self.first(x)))))
        return relu(y + self.shortcut(x))


class ResNet50(torch.nn.Module):  # type: ignore[misc]
    """(B, 28, 28) uint8 -> (B, H*W*2048) float32, features in Keras' order."""

    def __init__(self, arrays: Mapping[str, np.ndarray], side: int) -> None:
        super().__init__()
        self.side = side
        self.stem = ConvNorm(arrays, "conv1", stride=2)
        self.blocks = torch.nn.Sequential(
            *(
                Block(arrays, f"conv{number}_block{block}", stride=stride if block == 1 else 1)
                for number, n_blocks, stride in _STAGES
                for block in range(1, n_blocks + 1)
            )
        )

    def forward(self, images: Any) -> Any:
        """Return the features."""
        functional = torch.nn.functional
        grey = images[:, None].float()
        grey = functional.interpolate(grey, (self.side, self.side), mode="bilinear")
        offset = grey.new_tensor(_CAFFE).reshape(1, 3, 1, 1)
        x = (grey + offset).to(self.stem.conv.weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        x = functional.relu(self.stem(x))
        x = self.blocks(functional.max_pool2d(x, 3, 2, padding=1))
        return x.permute(0, 2, 3, 1).flatten(1).float()


class FeaturePass:
    """Batches of images through the compiled network."""

    def __init__(self, job: Job) -> None:
        torch._inductor.config.freezing = True
        self._job = job
        if job.on_gpu and not torch.cuda.is_available():
            raise RuntimeError("the others compute on a GPU, which this PyTorch does not see")
        self._device = torch.device("cuda" if job.on_gpu else "cpu")
        self._dtype = getattr(torch, job.precision)
        with np.load(Path(job.folder) / IMAGES) as arrays:
            self._images = arrays["images"]
        with np.load(Path(job.folder) / WEIGHTS) as arrays:
            network = ResNet50(dict(arrays), job.image_size)
        network = network.eval().to(self._device, self._dtype, memory_format=torch.channels_last)
        self._network = torch.compile(network)
        self._compute(0)  # compiles

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the row has to tell."""
        return {
            "precision": self._job.precision,
            "batch_size": self._job.batch_size,
            "device": str(self._device),
        }

    def outputs(self) -> np.ndarray:
        """Return the checked images' features."""
        n_batches = -(-N_CHECKED // self._job.batch_size)
        return np.concatenate([self._compute(batch) for batch in range(n_batches)])[:N_CHECKED]

    def measure(self, units: int) -> int:
        """Compute `units` batches."""
        return sum(len(self._compute(batch)) for batch in range(units))

    def probe(self) -> float | None:
        """Return the highest rate of one large product."""
        return find_fastest(self._build_product)

    def _compute(self, batch: int) -> np.ndarray:
        size = self._job.batch_size
        rows = np.arange(batch * size, (batch + 1) * size) % N_IMAGES
        with torch.no_grad():  # freezing wants it
            images = torch.from_numpy(self._images[rows]).to(self._device)
            return self._network(images).cpu().numpy()

    def _build_product(self, product: MatMul | Conv) -> Callable[[], None]:
        if isinstance(product, MatMul):
            first, second = (self._random(product.side, product.side) for _ in range(2))

            def multiply() -> Any:
                return torch.matmul(first, second)
        else:
            layout = torch.channels_last
            kernel, n_in = product.kernel, product.channels
            x = self._random(product.batch_size, n_in, product.side, product.side)
            x = x.contiguous(memory_format=layout)
            weights = self._random(product.filters, n_in, kernel, kernel)
            weights = weights.contiguous(memory_format=layout)

            def multiply() -> Any:
                return torch.nn.functional.conv2d(x, weights, padding=kernel // 2)

        def run() -> None:
            with torch.no_grad():
                multiply().flatten()[0].item()  # a GPU has to finish first

        return run

    def _random(self, *shape: int) -> Any:
        return torch.randn(*shape, device=self._device).to(self._dtype)


def open_stage(job: Job) -> FeaturePass:
    """Return the feature pass in PyTorch."""
    return FeaturePass(job)
