"""The backbones by name, with their stages and blocks, without TensorFlow."""

from __future__ import annotations

import functools
import glob
import json
import os
from pathlib import Path

from fmnist_tf.errors import did_you_mean, suggest
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.settings.types import SettingError


@functools.cache
def read_table() -> dict[str, dict[str, list[str]]]:
    """Return backbone -> stage -> names of its blocks, from input to output.

    A test compares the file with keras.applications and `model.backbones`.
    """
    table = json.loads(Path(__file__).with_name("backbones.json").read_text())
    return {
        name: {stage: blocks.split() for stage, blocks in stages.items()}
        for name, stages in table.items()
    }


def find_name(name: str) -> str:
    """Return the name of a backbone as the table has it: in any case, with or without hyphens.

    One of KerasHub is returned as it is.

    Raises:
        SettingError: there is no such backbone.
    """
    if name.startswith("hub:"):  # whose names only KerasHub knows
        return name
    key = name if name in read_table() else name.lower().replace("-", "").replace("_", "")
    if key not in read_table():
        hint = suggest(key, read_table()).removeprefix("expected ")
        raise SettingError("backbone", name, f"the name of a network; {hint}")
    return key


def check_words(config: RunConfig) -> None:
    """Check the names of backbone, cut and unfrozen stages, and what may be a path or a word.

    Raises:
        SettingError: there is none of this name; or a path that does not exist is like a word.
    """
    for name, words in (("data", ("auto", "sample")), ("weights", ("auto", "imagenet", "random"))):
        value = getattr(config, name)
        hint = "" if value in words else did_you_mean(value, words)
        if hint and not os.path.lexists(value) and not glob.has_magic(value):
            raise SettingError(name, value, f"{', '.join(words)}, or a path that exists; {hint}")
    table = read_table().get(find_name(config.backbone))
    if table is None:
        return
    labels = [f"{stage}/{block}" for stage, blocks in table.items() for block in blocks]
    cut = config.cut if config.cut not in (None, "auto") else None
    if cut is not None:
        _check_names("cut", (cut,), labels, "auto")
        ends = (n for n, label in enumerate(labels, 1) if cut in (label, label.split("/")[0]))
        labels = labels[: max(ends)]
    if config.unfreeze != ("all",):
        _check_names("unfreeze", config.unfreeze, labels, "all")


def _check_names(setting: str, names: tuple[str, ...], labels: list[str], word: str) -> None:
    stages = dict.fromkeys(label.split("/")[0] for label in labels)
    for name in names:
        if name not in stages and name not in labels:
            known = [*stages, word, *(labels if "/" in name else ())]
            hint = did_you_mean(name, known)
            of_stage = [label for label in labels if label.split("/")[0] == name.split("/")[0]]
            expected = f"{word}, a stage ({', '.join(stages)}) or STAGE/BLOCK"
            if of_stage:
                expected = f"a block of {name.split('/')[0]}: {', '.join(of_stage)}"
            raise SettingError(setting, name, "; ".join(filter(None, (expected, hint))))
