"""What is recorded of machine and command, and what is not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from fmnist_tf.pipeline.run import describe_devices
from fmnist_tf.results.provenance import command_line, describe_code, describe_machine

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "secret",
    [
        "--wandb-key=abc", "WANDB_API_KEY=abc", "token-abc", "my_password", "SECRET",
        "https://user:abc@host/x",
    ],
)  # fmt: skip
def test_words_that_may_be_secret_are_left_out(secret: str) -> None:
    shown = command_line("fmnist_tf.train", ["--epochs", "3", secret])
    assert shown == "python -m fmnist_tf.train --epochs 3 '[left out]'"


def test_the_command_can_be_pasted() -> None:
    shown = command_line("fmnist_tf.train", ["--data", "A Z monkeys.csv"])
    assert shown == "python -m fmnist_tf.train --data 'A Z monkeys.csv'"


def test_versions_and_commit_are_those_in_use() -> None:
    described = describe_code()
    assert described["versions"]["numpy"] == np.__version__
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if head.returncode != 0:
        pytest.skip("not a git checkout")
    assert described["commit"] == head.stdout.strip()


def test_nothing_says_who_or_where(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps([describe_code(), describe_machine()])
    for word in (str(Path.home()), str(ROOT)):
        assert word not in text


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ({"CPU": [None]}, ["CPU"]),
        ({"CPU": [None], "GPU": ["NVIDIA H200"]}, ["GPU: NVIDIA H200"]),
        ({"CPU": [None], "GPU": ["A", "B"]}, ["GPU: A", "GPU: B"]),
    ],
)
def test_a_gpu_is_what_a_run_computes_on_where_there_is_one(
    machine: dict[str, list[str | None]], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_devices(kind: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(device_type=kind, model=model) for model in machine.get(kind, [])]

    def describe(device: SimpleNamespace) -> dict[str, str]:
        return {} if device.model is None else {"device_name": device.model}

    monkeypatch.setattr(tf.config, "list_physical_devices", list_devices)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", describe)
    assert describe_devices() == expected
