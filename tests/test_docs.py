"""What the documentation names exists, and what it shows runs."""

from __future__ import annotations

import configparser
import contextlib
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import benchmarks.__main__ as benchmarks
from fmnist_tf import __version__
from fmnist_tf.__main__ import COMMANDS
from fmnist_tf.data.tables import read_table
from fmnist_tf.errors import DataError

ROOT = Path(__file__).parents[1]
SITE = sorted(ROOT.glob("docs/*.md"))
SHOWN = [ROOT / "README.md", *SITE]  # what shows commands
PAGES = [*SHOWN, *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG"))]
PAGES.append(ROOT / "data/README.md")
MODULES = {name: importlib.import_module(f"fmnist_tf.{name}") for name in COMMANDS}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
shown = pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of each block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the headings as GitHub and MkDocs link them; those on which they differ are absent."""
    titles = [re.sub(r"[`*]", "", t) for t in re.findall(r"^#+ (.+)", prose(page), re.MULTILINE)]
    kept = {re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles}
    return {re.sub(r"\s", "-", title) for title in kept if "  " not in title}


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of this package among the lines of a shell block."""
    for line in text.replace("\\\n", " ").splitlines():
        if match := re.match(
            r"(?:\w+=.* |srun .*)?(?:fmnist-tf |python -m fmnist_tf[. ])(.*)", line
        ):
            yield shlex.split(match[1], comments=True)


def inline_commands(page: Path) -> Iterator[list[str]]:
    named = "|".join(COMMANDS)
    for text in re.findall(
        rf"`(?:fmnist-tf |python -m fmnist_tf[. ])?((?:{named}) [^`]+)`", prose(page)
    ):
        yield shlex.split(text.removesuffix(" ..."))


def all_flags() -> set[str]:
    parsers = [module.build_parser() for module in (*MODULES.values(), benchmarks)]
    return {o for parser in parsers for action in parser._actions for o in action.option_strings}


@pages
def test_every_link_and_anchor_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@shown
def test_every_command_parses(page: Path) -> None:
    found = [
        words for language, text in blocks(page) if language == "sh" for words in commands(text)
    ]
    for name, *words in [*found, *inline_commands(page)]:
        if words not in (["--help"], ["..."]):
            MODULES[name].build_parser().parse_args(words)


@shown
def test_every_flag_and_make_target_exists(page: Path) -> None:
    theirs = r"(^(docker|tensorboard|srun|#SBATCH)|--build-arg|--gpus).*(\\\n.*)*"
    ours = re.sub(theirs, "", page.read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) <= all_flags()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join([*re.findall("`(make [^`]+)`", ours), *(text for _, text in blocks(page))])
    assert set(re.findall(r"^make ([a-z-]+)", code, re.MULTILINE)) <= targets


def test_readme_is_short_and_maps_the_package() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 200
    files = text[text.index("| in `fmnist_tf/` |") + 20 : text.index("`benchmarks/`")]
    named = set(re.findall(r"`([a-z_]+(?:\.py|/))`", files))
    package = ROOT / "fmnist_tf"
    expected = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert named == expected | {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(COMMANDS)


def test_the_run_directory_table_is_complete() -> None:
    import test_train

    named = set(re.findall(r"`([\w.]+)`", (ROOT / "docs/runs.md").read_text()))
    assert test_train.FILES <= named


def test_the_error_shown_is_the_one_printed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = ["1", *(["0"] * 784)]
    lines = [",".join(row)] * 1042
    lines[0] = ",".join(["label", *(f"pixel{i}" for i in range(1, 785))])
    row[316] = "300"
    lines[1041] = ",".join(row)
    Path("my_train.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as caught:
        read_table("my_train.csv", tmp_path / "store")
    for page in (ROOT / "README.md", ROOT / "docs/data.md"):
        assert ("", f"{caught.value}\n") in blocks(page)


def test_versions_agree() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pinned = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.M))
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    extras = dict(setup["options.extras_require"])
    wanted = [
        setup["options"]["install_requires"],
        *(extras[name] for name in extras if name not in ("gpu", "bench", "demo")),
    ]
    for line in "\n".join(wanted).split("\n"):
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), line
    supported = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    workflow = (ROOT / ".github/workflows/check.yml").read_text()
    assert f"python: {json.dumps(supported)}\n" in workflow
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def answer_as_a_server(body: bytes) -> Any:
    """Return what TensorFlow Serving's answer would hold, of the signature exported here."""
    import tensorflow as tf

    model = tf.saved_model.load("runs/first/export/saved_model/1")
    images = tf.constant(json.loads(body)["instances"], tf.uint8)
    said = model.signatures["serving_default"](images)
    rows = [{"name": name.decode()} for name in said["name"].numpy()]
    for row, probability in zip(rows, said["probability"].numpy(), strict=True):
        row["probability"] = float(probability)
    return contextlib.nullcontext(io.StringIO(json.dumps({"predictions": rows})))


@pytest.fixture
def user_folder(toy_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy run and its data under the names that the pages use."""
    from PIL import Image

    monkeypatch.setattr("urllib.request.Request", lambda url, body: body)
    monkeypatch.setattr("urllib.request.urlopen", answer_as_a_server)
    shutil.copy("runs/first/model.keras", "model.keras")
    Path("data").mkdir()
    for name in ("my", "my_train", "data/fashion-mnist_train"):
        shutil.copy("toy_train.csv", f"{name}.csv")
    for name in ("my_test", "other", "new", "labelled", "data/fashion-mnist_test"):
        shutil.copy("toy_test.csv", f"{name}.csv")
    Path("shards").mkdir()
    for part in ("train", "test"):
        rows = pd.read_csv(f"toy_{part}.csv")
        for number in range(4):
            rows[number::4].to_csv(f"shards/{part}-{number}.csv.gz", index=False)
    pixels = np.zeros((56, 56), np.uint8)
    pixels[8:48, 16:32] = 200
    for name in ("my_shirt.jpg", "bag.png", "photo.jpg", "shirt.jpg"):
        Image.fromarray(pixels).save(name)
    return toy_run


def run_command(name: str, *words: str) -> None:
    """Run a command on the toy run; `train` and `sweep` only up to the training."""
    small = {"RUN": "first", "<other>": "first", "64,112": "32"}
    said = [small.get(word, word).replace("<run>", "first") for word in words]
    # The toy run is complete, and its backbone is not a recipe's.
    expected = 3 if "--resume" in said else 2 if {"--recipe", "finetune"} <= {*said} else 0
    if name in ("train", "sweep"):
        said.append("--dry-run")
        if not {"--resume", "finetune", "auto"} & {*said}:
            said += ["--weights", "random", "--image-size", "32"]
    assert MODULES[name].main(said) == expected, shlex.join([name, *said])


@pytest.mark.slow
@shown
def test_the_code_runs(page: Path, user_folder: Path) -> None:
    images = np.zeros((2, 28, 28), np.uint8)
    found: dict[str, Any] = {"images": images, "image": images[0]}
    for language, text in blocks(page):
        if language == "python" and "from ray" not in text:
            toy = 'epochs=1, backbone="toy", weights="random", wandb="disabled"'
            for large, small in (("<run>", "first"), ("epochs=3", toy), ("conv5", "conv2")):
                text = text.replace(large, small)
            exec(text, found)
        elif language == "toml":
            Path("my.toml").write_text(text)
            run_command("train", "--recipe", "my.toml")
        elif language == "sh":
            for words in commands(text):
                if words[0] != "demo":  # it serves until Ctrl-C
                    run_command(*words)


@pytest.mark.slow
def test_the_docker_image_runs_without_root() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"]).returncode:
        pytest.skip("docker does not run here")
    subprocess.run(["docker", "build", "-t", "fmnist-tf-test", str(ROOT)], check=True)
    run = ["docker", "run", "--rm", "--network", "none", "fmnist-tf-test"]
    words = "train --data sample --backbone mlp --phase scratch --epochs 1 --wandb disabled"
    subprocess.run([*run, *words.split()], check=True)
    shown = subprocess.run([*run[:-1], "--entrypoint", "id", run[-1], "-u"], capture_output=True)
    assert int(shown.stdout) > 0
