"""The devices that a run records."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tensorflow as tf

from fmnist_tf.system.devices import describe_devices


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ({"CPU": [None]}, ["CPU"]),
        ({"CPU": [None], "GPU": ["A", "B"]}, ["GPU: A", "GPU: B"]),
    ],
)
def test_gpus_are_recorded_where_there_are_some(
    machine: dict[str, list[str | None]], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_devices(kind: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(device_type=kind, model=model) for model in machine.get(kind, [])]

    def describe(device: SimpleNamespace) -> dict[str, str]:
        return {} if device.model is None else {"device_name": device.model}

    monkeypatch.setattr(tf.config, "list_physical_devices", list_devices)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", describe)
    assert describe_devices() == expected
