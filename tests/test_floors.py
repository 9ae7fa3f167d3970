"""Imports run down only, and what must be instant does not import TensorFlow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fmnist_tf.__main__ import COMMANDS

PACKAGE = Path(__file__).parents[1] / "fmnist_tf"
# Lower floors first; `results` stands beside `model` and `training`, on data alone.
FLOORS = {
    "": 0, "errors": 0, "system": 1, "settings": 2, "cli": 2, "data": 3, "results": 3, "model": 4,
    "reporting": 5, "training": 5, "exporting": 5, "pipeline": 6,
    "api": 7, "train": 8, "report": 8, "evaluate": 8, "predict": 8, "demo": 8, "export": 8,
    "convert": 8, "clean": 8, "sweep": 9, "__main__": 10,
}  # fmt: skip
BESIDE = {("reporting", "model"), ("reporting", "training"), ("training", "reporting"),
    ("settings", "cli"), ("cli", "settings"), ("data", "results"), ("model", "results"),
    ("training", "results"), ("training", "exporting"), ("exporting", "training")}  # fmt: skip
HEAVY = {"tensorflow", "keras"}
LIGHT = sorted(
    "fmnist_tf." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for folder in ("data", "results", "reporting", "settings")
    for path in (PACKAGE / folder).rglob("*.py")
    if path.stem not in ("__init__", "batches")
)


def floor_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.partition(".")[0] in ("fmnist_tf", "benchmarks")}


# The package's own __init__.py exports the Python API, whatever floor that is on.
@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*/*.py")), ids=lambda p: p.stem)
def test_imports_run_down_only(path: Path) -> None:
    parts = ("fmnist_tf", *path.relative_to(PACKAGE).with_suffix("").parts)
    own = floor_of(".".join(part for part in parts if part != "__init__"))
    for name in imports_of(path):
        assert name.startswith("fmnist_tf"), f"{path.name} imports {name}"
        other = floor_of(name)
        if other.startswith("__"):
            continue
        assert FLOORS[other] <= FLOORS[own], f"{path.name} imports {name}"
        assert (own, other) not in BESIDE, f"{path.name} imports {name}"


def test_light_modules_do_not_import_tensorflow() -> None:
    script = f"import sys, {', '.join(LIGHT)}\nassert not {HEAVY} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_help_imports_little() -> None:
    names = [name for name in COMMANDS if name != "convert"]
    script = (
        "import contextlib, sys\nfrom fmnist_tf.__main__ import main\n"
        f"for name in {names}:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        sys.argv[1:] = name, '--help'; main()\n"
        f"assert not {HEAVY | {'numpy', 'pandas', 'wandb', 'matplotlib'}} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.count("\n  --runs-dir ") == len(names)
