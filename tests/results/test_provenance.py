"""What is recorded of machine and command, and what is not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.results.provenance import (
    command_line,
    describe_code,
    describe_machine,
    find_caveats,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("--wandb-key=abc", "'[left out]'"),
        ("WANDB_API_KEY=abc", "'[left out]'"),
        ("token-abc", "'[left out]'"),
        ("my_password", "'[left out]'"),
        ("SECRET", "'[left out]'"),
        ("https://user:abc@host/x", "'[left out]'"),
        ("A Z monkeys.csv", "'A Z monkeys.csv'"),
    ],
)
def test_the_command_can_be_pasted_and_holds_no_secret(word: str, shown: str) -> None:
    assert command_line("m", ["--epochs", "3", word]) == f"python -m m --epochs 3 {shown}"


def test_versions_and_commit_are_those_in_use() -> None:
    described = describe_code()
    assert described["versions"]["numpy"] == np.__version__
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if head.returncode != 0:
        pytest.skip("not a git checkout")
    assert described["commit"] == head.stdout.strip()


def test_neither_user_nor_folder_is_recorded() -> None:
    text = json.dumps([describe_code(), describe_machine()])
    assert str(Path.home()) not in text
    assert str(ROOT) not in text


def test_random_weights_are_a_caveat_except_from_scratch() -> None:
    assert find_caveats("csv", "imagenet", "frozen") == ()
    assert len(find_caveats("sample", "random", "frozen")) == 2
    assert find_caveats("csv", "random", "scratch") == ()
