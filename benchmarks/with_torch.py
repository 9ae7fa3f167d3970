"""The feature pass in PyTorch, compiled by `torch.compile` with frozen weights, channels last.

It runs on the GPU if TensorFlow computes there. TensorFlow is not imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.plan import LAYERS, N_CHECKED, N_IMAGES, Job

torch: Any = import_module("torch")


class Network(torch.nn.Module):  # type: ignore[misc]
    """(B, 28, 28) uint8 -> (B, H*W*C) float32, features in Keras' order."""

    def __init__(
        self, layers: Sequence[Mapping[str, Any]], weights: Mapping[str, np.ndarray]
    ) -> None:
        """Make a module of each Keras layer with weights; `layers` are what `prepare` writes."""
        super().__init__()
        self.layers = layers
        self.parts = torch.nn.ModuleDict()
        for layer in layers:
            own = [key for key in weights if key.rpartition("/")[0] == layer["name"]]
            if own:
                tensors = [torch.from_numpy(weights[key]) for key in own]
                self.parts[layer["name"]] = _build_part(layer, tensors)

    def forward(self, images: Any) -> Any:
        """Return the features."""
        functional = torch.nn.functional
        dtype = next(self.parts.parameters()).dtype
        outputs: dict[str, Any] = {}
        x = images[:, None].float()
        for layer in self.layers:
            settings = layer["settings"]
            inputs = [outputs.get(name, x) for name in layer["inputs"]]
            x = inputs[0]
            match layer["kind"]:
                case "Rescaling":
                    scale, offset = (
                        x.new_tensor(settings[key]).reshape(1, -1, 1, 1)
                        for key in ("scale", "offset")
                    )
                    x = x * scale + offset
                case "Resizing":
                    size = (settings["height"], settings["width"])
                    x = functional.interpolate(x, size, mode="bilinear")
                    x = x.to(dtype, memory_format=torch.channels_last)
                case "ZeroPadding2D":
                    (top, bottom), (left, right) = settings["padding"]
                    x = functional.pad(x, (left, right, top, bottom))
                case "Conv2D" | "DepthwiseConv2D":
                    stride, size = settings["strides"][0], settings["kernel_size"][0]
                    if settings["padding"] == "same" and stride > 1:  # Keras pads the far side more
                        side = x.shape[-1]
                        n = max((math.ceil(side / stride) - 1) * stride + size - side, 0)
                        x = functional.pad(x, (n // 2, n - n // 2) * 2)
                    x = self.parts[layer["name"]](x)
                case "BatchNormalization":
                    x = self.parts[layer["name"]](x)
                case "MaxPooling2D":
                    x = functional.max_pool2d(x, settings["pool_size"], settings["strides"])
                case "Activation" if settings["activation"] == "relu":
                    x = functional.relu(x)
                case "ReLU":
                    x = x.clamp(0, settings["max_value"])
                case "Add":
                    x = inputs[0] + inputs[1]
                case "Flatten":
                    x = x.permute(0, 2, 3, 1).flatten(1).float()
                case kind:
                    raise NotImplementedError(f"{kind} in PyTorch")
            outputs[layer["name"]] = x
        return x


def _build_part(layer: Mapping[str, Any], weights: Sequence[Any]) -> Any:
    """Return a convolution or BatchNorm with the weights of a Keras layer."""
    settings, first = layer["settings"], weights[0]
    if layer["kind"] == "BatchNormalization":
        part = torch.nn.BatchNorm2d(len(first), eps=settings["epsilon"])
    else:
        is_depthwise = layer["kind"] == "DepthwiseConv2D"
        size, _, n_in, n_out = first.shape
        n_out = n_in if is_depthwise else n_out
        is_same = settings["padding"] == "same" and max(settings["strides"]) == 1
        part = torch.nn.Conv2d(
            n_in, n_out, size, settings["strides"],
            padding=size // 2 if is_same else 0,
            groups=n_in if is_depthwise else 1,
            bias=len(weights) > 1,
        )  # fmt: skip
        weights = [first.permute((2, 3, 0, 1) if is_depthwise else (3, 2, 0, 1)), *weights[1:]]
    keys = ("weight", "bias", "running_mean", "running_var")
    part.load_state_dict(dict(zip(keys, weights, strict=False)), strict=False)
    return part


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
        layers = json.loads((job.folder / LAYERS).read_text())
        dtype = getattr(torch, job.system.precision)
        network = Network(layers, job.load_weights()).eval()
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
