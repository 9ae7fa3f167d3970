"""What README.md names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import benchmarks.__main__ as benchmarks
from fmnist_tf import convert, evaluate, export, predict, report, sweep, train
from fmnist_tf.data.tables import read_table as read_csv
from fmnist_tf.errors import DataError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = "\n".join(path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))


def test_every_flag_exists() -> None:
    known = {
        option
        for command in (benchmarks, convert, evaluate, export, predict, report, sweep, train)
        for action in command.build_parser()._actions
        for option in action.option_strings
    }
    ours = re.sub(r"^docker(.*\\\n)*.*", "", DOCS, flags=re.MULTILINE)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours))
    assert named
    assert named <= known


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README)) - {"makes"}
    assert {"train", "test", "check", "test-real"} <= named
    assert named <= targets


def test_every_link_and_module_exists() -> None:
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    reading = README[README.index("## Reading the code") :]
    reading = reading[: reading.index("`benchmarks/`")]
    for name in re.findall(r"`([a-z_]+\.py)`", reading):
        assert (ROOT / "fmnist_tf" / name).is_file(), name
    for name in re.findall(r"`([a-z]+/)`", reading):
        assert (ROOT / "fmnist_tf" / name).is_dir(), name
    modules = {path.name for path in (ROOT / "fmnist_tf").glob("*.py")} - {"__init__.py"}
    assert modules <= set(re.findall(r"`([a-z_]+\.py)`", reading))


def test_the_run_directory_table_is_complete() -> None:
    import test_train

    table = DOCS[DOCS.index("| file | what |") :].split("\n\n")[0]
    named = set(
        re.findall(r"`([a-z_]+\.(?:json|csv|npz|png|txt|keras|html))`", table.split("by `")[0])
    )
    rest = set(re.findall(r"^\| (.+?) \|", table, re.MULTILINE))
    named |= {name for cell in rest for name in re.findall(r"`([\w.]+)`", cell)}
    assert test_train.FILES - {"DONE.json"} <= named


def test_the_error_shown_is_the_one_printed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = ["1", *(["0"] * 784)]
    lines = [",".join(row)] * 1042
    lines[0] = ",".join(["label", *(f"pixel{i}" for i in range(1, 785))])
    row[316] = "300"
    lines[1041] = ",".join(row)
    Path("my_train.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as caught:
        read_csv("my_train.csv", tmp_path / "store")
    assert f"```\n{caught.value}\n```" in README
