"""The command from end to end: files, hand-over between phases, exit codes, interruptions."""

from __future__ import annotations

import atexit
import functools
import gc
import inspect
import json
import re
import shutil
import sys
import tempfile
from dataclasses import asdict, astuple, replace
from pathlib import Path

import keras
import numpy as np
import pytest
import toyrun
from test_tracking import make_wandb

from fmnist_tf.model.backbones import BACKBONES
from fmnist_tf.results.analysis import compare_runs
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.train import describe_next, main
from fmnist_tf.training import features
from fmnist_tf.training.loop import Trainer

FILES = {
    "config.json", "provenance.json", "trainable.txt", "history.csv", "steps.csv",
    "evaluation.json", "predictions.npz", "labels.json", "model.keras", "curves.png",
    "confusion.png", "mistakes.png", "report.npz", "report.html", "README.md", "DONE.json",
}  # fmt: skip
UNSEALED = {"DONE.json", "report.html"}
LABELS = (3, 7, 20)  # neither from zero nor without gaps
TOY = ["--backbone", "toy", "--weights", "random", "--data", "toy_train.csv", "--units", "8"]
NEXT = ["--wandb", "disabled", "--batch-size", "16"]
QUICK = [*TOY, "--epochs", "2", "--batch-size", "16", "--wandb", "disabled"]


def write_csv(path: Path, n_rows: int, seed: int) -> None:
    """Write rows of three classes that differ in brightness."""
    rng = np.random.default_rng(seed)
    index = np.arange(n_rows) % 3
    pixels = index[:, None] * 80 + rng.integers(0, 60, (n_rows, 784))
    toyrun.write_csv(path, pixels, [LABELS[k] for k in index])


@pytest.fixture
def folder(tmp_path: Path, toy_spec, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "toy_train.csv", 60, seed=0)
    write_csv(tmp_path / "toy_test.csv", 21, seed=1)
    return tmp_path


def train(*words: str) -> int:
    return main([*words])


def frozen(*words: str) -> Path:
    assert train("--phase", "frozen", *QUICK, "--run", "first", *words) == 0
    return Path("runs", words[words.index("--run") + 1] if "--run" in words else "first")


def copy_frozen() -> Path:
    """Put into the current folder what `frozen()` leaves there, trained once for all tests."""
    if not (original := Path(_made_once()) / "runs").is_dir():
        frozen()
        shutil.copytree("runs", original)
    else:
        shutil.copytree(original, "runs", dirs_exist_ok=True)
    return Path("runs/first")


@functools.cache
def _made_once() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return folder


def read(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text())


def test_frozen_run_leaves_exactly_these_files(folder: Path, capsys) -> None:
    run = frozen()
    assert {path.name for path in run.iterdir() if path.name != ".lock"} == FILES
    test = read(run, "evaluation.json")["test"]
    assert test["total"] == 21
    assert np.sum(test["confusion"]) == 21
    assert test["accuracy"] == test["correct"] / 21
    *_, sources, last = capsys.readouterr().out.splitlines()
    assert sources == "data: toy (csv); backbone weights: random"
    assert last == f"runs/first  test accuracy {test['accuracy']:.4f} ({test['correct']}/21)"
    assert read(run, "labels.json") == {"0": "3", "1": "7", "2": "20"}
    assert read(run, "evaluation.json")["val"]["total"] == 6
    checksums = read(run, "DONE.json")["files"]
    assert set(checksums) == FILES - UNSEALED
    lines = (run / "history.csv").read_text().splitlines()
    assert lines[0] == "epoch,phase,loss,accuracy,val_loss,val_accuracy,learning_rate,seconds"
    assert [line.split(",")[:2] for line in lines[1:]] == [["1", "frozen"], ["2", "frozen"]]


def test_the_saved_model_computes_what_was_recorded(folder: Path) -> None:
    run = copy_frozen()
    labels, probabilities = RunDir(run).read_predictions()
    model = keras.saving.load_model(run / "model.keras", safe_mode=True)
    pixels = np.loadtxt("toy_test.csv", delimiter=",", skiprows=1, dtype=np.uint8)[:, 1:]
    found = model.predict(pixels.reshape(-1, 28, 28), verbose=0)
    np.testing.assert_allclose(found, probabilities, atol=1e-5)
    assert list(labels[:3]) == [0, 1, 2]
    agreement = read(run, "evaluation.json")["val"]["agreement"]
    assert agreement["images"] == agreement["same_class"] == 6
    assert 0 <= agreement["largest_difference"] < 0.01
    if sys.platform == "linux":  # which tells
        provenance = read(run, "provenance.json")
        assert 1e8 < provenance["peak_anonymous_bytes"] <= provenance["peak_memory_bytes"] * 1.01


def test_fewer_test_images_are_said_everywhere(folder: Path, capsys) -> None:
    run = frozen("--limit-test", "9")
    labels, _ = RunDir(run).read_predictions()
    assert np.bincount(labels).tolist() == [3, 3, 3]
    assert capsys.readouterr().out.splitlines()[-1].endswith("/9)")
    assert read(run, "evaluation.json")["test"]["total"] == 9
    assert "9 of the 21" in read(run, "provenance.json")["data"]["warnings"][-1]
    for page in ("README.md", "report.html"):
        assert "9 of the 21 test images" in (run / page).read_text()


def test_a_run_without_a_test_does_not_pretend(folder: Path, capsys) -> None:
    copy_frozen()
    words = ["--phase", "finetune", "--epochs", "1", *NEXT, "--run", "second", "--no-test"]
    assert train(*words) == 0
    run, last = Path("runs/second"), capsys.readouterr().out.splitlines()[-1]
    evaluation = read(run, "evaluation.json")
    assert evaluation["test"] is None
    assert last == f"runs/second  val accuracy {evaluation['val']['accuracy']:.4f} (" + (
        f"{evaluation['val']['correct']}/6)"
    )
    untested = FILES - {"predictions.npz", "confusion.png", "mistakes.png"}
    assert {path.name for path in run.iterdir() if path.name != ".lock"} == untested
    assert "validation accuracy" in (run / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "commands"),
    [
        ({}, ["predict r PICTURE.png", "train --phase finetune --from r"]),
        ({"phase": "finetune", "parent": "p"}, ["predict r PICTURE.png", "report p r"]),
        ({"phase": "scratch", "limit_test": 0}, ["predict r PICTURE.png", "evaluate r"]),
    ],
)
def test_the_end_says_what_comes_next(settings: dict, commands: list[str]) -> None:
    for runs_dir, where in (("runs", ""), ("o f", " --runs-dir 'o f'")):
        page, *lines = describe_next(RunDir(Path(runs_dir, "r")), RunConfig(**settings))
        assert page.endswith(f" {runs_dir}/r/report.html")
        for line, command in zip(lines, commands, strict=True):
            assert line.endswith(f" fmnist-tf {command}{where}")


def test_finetune_continues_the_newest_frozen_run(folder: Path, capsys) -> None:
    first = copy_frozen()
    words = ["--epochs", "2", "--batch-size", "16", "--wandb", "disabled", "--run", "second"]
    # What the parent used may be repeated.
    words += ["--dropout", "0.25", "--image-size", "16", "--units", "8"]
    assert train("--phase", "finetune", *words) == 0
    second = Path("runs/second")
    assert {path.name for path in second.iterdir() if path.name != ".lock"} == FILES
    said = capsys.readouterr().err
    assert "backbone = toy  (inherited from first)" in said
    assert "dropout = 0.25  (overrides 0.5 of first)" in said
    config = read(second, "config.json")
    assert (config["parent"], config["backbone"], config["dropout"]) == ("first", "toy", 0.25)
    assert (config["image_size"], config["unfreeze"]) == (16, ["conv2"])
    provenance = [read(run, "provenance.json") for run in (first, second)]
    assert provenance[0]["data"]["split_sha256"] == provenance[1]["data"]["split_sha256"]
    assert provenance[1]["weights"] == provenance[0]["weights"]
    model = keras.saving.load_model(second / "model.keras")
    assert model.get_layer("dropout").rate == 0.25
    trained = {
        line.split("\t")[0]
        for line in (second / "trainable.txt").read_text().splitlines()
        if "\ttrained\t" in line
    }
    assert {"conv2_conv/kernel", "hidden/kernel"} <= trained
    assert "stem_conv/kernel" not in trained
    # The test images are the parent's, so the two are compared.
    entry, runs = read(second, "evaluation.json")["parent"], [RunDir(first), RunDir(second)]
    labels = runs[0].read_predictions()[0]
    expected = compare_runs(labels, *(run.read_predictions()[1] for run in runs))
    assert entry == {"run": "first", "mcnemar": asdict(expected)}
    # Only a frozen run can be continued.
    assert train("--phase", "finetune", *NEXT, "--from", "second") == 2


def test_finetune_begins_where_frozen_ended_and_never_ends_worse(folder: Path) -> None:
    first = frozen("--learning-rate", "0.01")
    Path("first").mkdir()  # --from means a run before it means a folder
    # A rate that ruins the network: the starting point has to win.
    words = [*NEXT, "--epochs", "1", "--learning-rate", "10", "--run", "second", "--from", "first"]
    assert train("--phase", "finetune", *words) == 0
    second = Path("runs/second")
    start = RunDir(second).read_history()[0]
    parent = read(first, "evaluation.json")
    assert (start.epoch, start.val_accuracy) == (0, parent["val"]["accuracy"])
    assert start.val_loss == pytest.approx(parent["val"]["loss"], rel=0.02)
    evaluation = read(second, "evaluation.json")
    assert evaluation["chosen_epoch"] == 0
    assert evaluation["val"]["correct"] == parent["val"]["correct"]
    expected, found = (RunDir(run).read_predictions()[1] for run in (first, second))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_best_epoch_is_chosen_on_val(folder: Path) -> None:
    run = frozen("--epochs", "5", "--learning-rate", "0.5")
    rows = RunDir(run).read_history()
    best = max(rows, key=lambda row: (row.val_accuracy, -row.val_loss, -row.epoch))
    evaluation = read(run, "evaluation.json")
    assert evaluation["chosen_epoch"] == best.epoch
    assert evaluation["val"]["accuracy"] == pytest.approx(best.val_accuracy)
    assert evaluation["val"]["loss"] == pytest.approx(best.val_loss, rel=1e-4)


@pytest.mark.slow
def test_same_seed_same_run_also_without_a_store(folder: Path) -> None:
    runs = [frozen("--run", "a"), frozen("--run", "b")]
    assert train(*QUICK, "--run", "c", "--seed", "1") == 0
    histories = [
        [line.split(",")[:7] for line in (run / "history.csv").read_text().splitlines()]
        for run in (*runs, Path("runs/c"))
    ]
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]
    assert train(*QUICK, "--run", "d", "--cache", "off") == 0
    stored, streamed = (RunDir(Path(f"runs/{name}")).read_history() for name in "ad")
    for one, other in zip(stored, streamed, strict=True):
        assert one.val_loss == pytest.approx(other.val_loss, rel=0.02)


def test_options_of_training_reach_the_run(folder: Path, capsys) -> None:
    run = frozen(
        "--epochs", "4", "--lr-finder", "--augment", "flip",
        "--class-weights", "balanced", "--label-smoothing", "0.1", "--ema-decay", "0.9",
        "--schedule", "cosine", "--warmup-epochs", "1", "--optimizer", "sgd", "--clip-norm", "1",
    )  # fmt: skip
    said = capsys.readouterr().err
    # A flip is a second view of all images, stored like the first; so is what finetune will read.
    assert len(list(Path("runs/.cache/features").iterdir())) == 4
    suggested = float(re.search(r"steps suggest (\S+);", said)[1])
    history = RunDir(run).read_history()
    assert history[0].learning_rate == pytest.approx(suggested, rel=0.3)  # the end of warm-up
    assert read(run, "config.json")["learning_rate"] is None
    assert read(run, "provenance.json")["peak_learning_rate"] == pytest.approx(suggested, rel=5e-3)
    lines = (run / "lr_finder.csv").read_text().splitlines()
    assert lines[0] == "rate,loss,smoothed"
    assert len(lines) > 10
    assert (run / "lr_finder.png").is_file()
    # What can be fed back gives the same run, its learning-rate finder too.
    assert train("--recipe", "runs/first/config.json", "--run", "b", "--wandb", "disabled") == 0
    again = RunDir(Path("runs/b")).read_history()
    assert [row.loss for row in again] == [row.loss for row in history]


def test_training_stops_early_after_so_many_epochs_without_a_better_one(folder: Path) -> None:
    still = ["--learning-rate", "1e-30"]  # too small for any weight to move
    run = frozen("--epochs", "9", "--early-stopping", "2", *still)
    assert [row.epoch for row in RunDir(run).read_history()] == [1, 2, 3]
    assert read(run, "evaluation.json")["chosen_epoch"] == 1


def test_the_settings_of_the_optimizer_reach_it(folder: Path) -> None:
    copy_frozen()
    words = ["--optimizer", "sgd", "--momentum", "0.3", "--weight-decay", "0.2"]
    words += ["--clip-norm", "0.05", "--layer-decay", "0.5", "--learning-rate", "0.1"]
    words += ["--epochs", "1", "--batch-size", "64", "--wandb", "disabled", "--run", "second"]
    assert train("--phase", "finetune", *words) == 0
    rates = {"hidden": 0.1, "probabilities": 0.1, "conv2_conv": 0.05, "conv2_side_conv": 0.05}
    models = [keras.saving.load_model(f"runs/{run}/model.keras") for run in ("first", "second")]
    squares = 0.0
    for old, new in zip(*(model.weights for model in models), strict=True):
        if rate := rates.get(old.path.split("/")[-2]):
            # The only step: w -> w - rate (decay w + (1 + momentum) gradient)
            decay = 0.2 if len(old.shape) > 1 else 0.0
            gradient = ((old.numpy() - new.numpy()) / rate - decay * old.numpy()) / 1.3
            squares += np.square(gradient).sum()
    assert np.sqrt(squares) == pytest.approx(0.05, rel=1e-3)


def test_finetune_continues_the_frozen_run_of_a_sweep(folder: Path, monkeypatch) -> None:
    run, wandb = copy_frozen(), make_wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    # As if it had stopped early: W&B's curve goes on where the parent's ended.
    (run / "config.json").write_text(json.dumps(read(run, "config.json") | {"epochs": 9}))
    RunDir(run).write_done()
    Path("runs/s").mkdir()
    Path("runs/s/sweep.json").write_text("{}")
    run.rename("runs/s/trial-001")
    words = ["--phase", "finetune", "--batch-size", "16", "--epochs", "1", "--run", "second"]
    assert train(*words, "--wandb", "offline") == 0
    assert read(Path("runs/second"), "config.json")["parent"] == "s/trial-001"
    assert wandb.init.call_args.kwargs["group"] == "s"
    logged = [call.args[0] for call in wandb.run.log.call_args_list]
    assert [values["epoch/epoch"] for values in logged if "epoch/epoch" in values] == [2, 3]
    config = "runs/second/config.json"
    assert train("--recipe", config, "--run", "third", "--wandb", "disabled") == 0
    rows = [RunDir(Path("runs") / name).read_history() for name in ("second", "third")]
    assert [row.val_loss for row in rows[0]] == [row.val_loss for row in rows[1]]


def test_random_augmentation_computes_features_in_each_epoch(folder: Path, capsys) -> None:
    run = frozen("--epochs", "1", "--augment", "flip,erasing", "--head", "gap", "--quiet")
    assert "--augment erasing" in capsys.readouterr().err
    assert not Path("runs/.cache/features").exists()
    images = RunDir(run).read_arrays("report.npz")["augmented"].reshape(-1, 8, 28, 28)
    assert len(images) == 8
    first, views = images[:, :1], images[:, 1:]
    alike, mirrored = ((views == of).mean(axis=(2, 3)) for of in (first, first[..., ::-1]))
    assert 0.7 < np.maximum(alike, mirrored).mean() < 1  # the rest is erased
    assert (alike == 1).any()
    assert (mirrored == 1).any()


def test_precision_is_what_all_parts_compute_in(folder: Path, bfloat16_kernels: None) -> None:
    losses = set()
    for precision in ("float32", "bfloat16"):
        run = frozen("--epochs", "1", "--precision", precision, "--run", precision)
        assert read(run, "provenance.json")["precision"]["compute"] == precision
        losses.add(RunDir(run).read_history()[0].loss)
    assert len(losses) == 2
    assert len(list(Path("runs/.cache/features").glob("*/shard-*.bin"))) == 4  # finetune's, too


def test_a_pooled_head_averages_the_maps_that_a_flatten_head_left(folder: Path, capsys) -> None:
    def train_head(head: str, run: str) -> list[tuple[float, ...]]:
        run_dir = RunDir(frozen("--epochs", "1", "--head", head, "--run", run))
        return [astuple(row)[:7] for row in run_dir.read_history()]

    def read_shards() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path("runs/.cache/features").glob("*/shard-*")}

    expected = train_head("gap", "alone")
    own = read_shards()
    shutil.rmtree("runs/.cache/features")
    train_head("flatten", "flatten")
    maps = read_shards()
    capsys.readouterr()
    assert train_head("gap", "after") == expected
    said = capsys.readouterr().err
    assert said.count("averaging the feature maps") == said.count("computing 60 images") == 1
    assert read_shards() == own | maps


@pytest.mark.parametrize("head", ["gap", pytest.param("flatten", marks=pytest.mark.slow)])
def test_finetune_finds_the_maps_that_the_frozen_pass_kept(folder: Path, capsys, head: str) -> None:
    def train_both(keep: str) -> dict[str, object]:
        words = ["--augment", "flip", "--epochs", "1", "--no-test"]
        run = frozen("--head", head, *words, "--keep-for-finetune", keep)
        kept = read(run, "provenance.json")["features"]
        capsys.readouterr()
        assert train("--phase", "finetune", *NEXT, *words, "--run", "f") == 0
        assert ("computing 60 images" in capsys.readouterr().err) == (keep == "none")
        shards = {path: path.read_bytes() for path in Path("runs/.cache/features").glob("*/s*")}
        used = read(Path("runs/f"), "provenance.json")["features"]
        assert len(shards) == 4
        assert set(used) <= set(kept) if keep != "none" else not set(used) & set(kept)
        histories = [
            [repr(astuple(row)[:7]) for row in RunDir(Path("runs", name)).read_history()]
            for name in ("first", "f")
        ]
        shutil.rmtree("runs")
        return {"shards": shards, "histories": histories}

    assert train_both("none") == train_both("auto")


@pytest.mark.parametrize(
    ("free", "n_cached", "told"), [(0, 0, "runs/.cache/features"), (3 * 60 * 640, 1, "conv2")]
)
def test_a_small_disk_caches_what_has_room(
    folder: Path, capsys, monkeypatch, free: int, n_cached: int, told: str
) -> None:
    usage = type("Usage", (), {"free": free + 10**9})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    run = frozen("--epochs", "1", *(["--quiet"] if n_cached == 0 else []))
    assert len(read(run, "provenance.json")["features"]) == n_cached
    assert len(list(Path("runs/.cache").glob("features/*/shard-*"))) == n_cached
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("cache", "is_alive"), [("auto", False), ("off", True)])
def test_what_computed_cached_features_is_freed_before_training(
    folder: Path, monkeypatch, cache: str, is_alive: bool
) -> None:
    def find() -> list[object]:
        prefix = f"{features.build_feature_function.__qualname__}.<locals>"
        functions = filter(inspect.isfunction, gc.get_objects())
        return [each for each in functions if each.__qualname__.startswith(prefix)]

    before, wandb, n_alive = find(), make_wandb(), []
    wandb.run.log.side_effect = lambda _: n_alive.append(len(find()))  # after each step
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    frozen("--epochs", "1", "--wandb", "offline", "--cache", cache)
    assert (n_alive[0] > len(before)) == is_alive


@pytest.mark.parametrize("when", [1, 2])
def test_a_frozen_weight_that_moves_stops_the_run(folder: Path, capsys, monkeypatch, when) -> None:
    def stray(self, *given, **named):
        for epoch in original(self, *given, **named):
            if epoch.number == when:
                kernel = self.classifier.get_layer("toy").get_layer("stem_conv").kernel
                kernel.assign(kernel + 1)
            yield epoch

    original = Trainer.run_epochs
    monkeypatch.setattr(Trainer, "run_epochs", stray)
    assert train("--phase", "frozen", *QUICK, "--run", "first") == 1
    assert "stem_conv/kernel" in capsys.readouterr().err
    assert len(RunDir(Path("runs/first")).read_history()) == when
    assert not Path("runs/first/DONE.json").exists()


def test_the_sample_is_named_wherever_it_is_shown(folder: Path, capsys) -> None:
    words = ["--data", "sample", "--limit", "200", "--epochs", "1", "--wandb", "disabled"]
    assert train("--backbone", "toy", "--weights", "random", *words) == 0
    captured = capsys.readouterr()
    assert "WARNING: THIS IS THE BUILT-IN SAMPLE" in captured.err
    *_, sources, last = captured.out.splitlines()
    assert sources.startswith("data: sample (built-in SAMPLE of handwritten digits)")
    run = Path(last.split()[0])
    assert re.fullmatch(r"\d{8}-\d{6}-frozen-sample", run.name)
    for name in ("config.json", "provenance.json", "evaluation.json", "trainable.txt"):
        assert "sample" in (run / name).read_text(), name
    assert keras.saving.load_model(run / "model.keras").name == "toy_on_sample"
    assert read(run, "evaluation.json")["test"]["total"] == 270


def test_dry_run_writes_no_run(folder: Path, capsys) -> None:
    assert train(*QUICK, "--dry-run") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["units"] == 8
    assert not [path for path in Path("runs").iterdir() if not path.name.startswith(".")]


BAD: dict[str, tuple[list[str], str]] = {
    "no frozen run": (["--phase", "finetune"], "python -m fmnist_tf.train --phase frozen"),
    "--from in frozen": (["--from", "x"], "--from"),
    "--from nothing": (["--phase", "finetune", "--from", "x"], "x"),
    "backbone": ([*TOY, "--backbone", "vgg"], "vgg16"),
    "unfreeze": ([*TOY, "--unfreeze", "conv2"], "--unfreeze conv2"),
    "keep": ([*TOY, "--keep-for-finetune", "conv9"], "--keep-for-finetune conv9"),
    "weights": ([*TOY, "--weights", "none.h5"], "--weights none.h5"),
    "data": ([*TOY, "--data", "none.csv"], "error[E001] none.csv"),
    "range": (["--epochs", "0"], "--epochs 0"),
    "--cache is a file": ([*TOY, "--cache", "toy_test.csv"], "toy_test.csv"),
    "--runs-dir is a file": ([*TOY, "--runs-dir", "toy_test.csv"], "toy_test.csv"),
    "run name": ([*TOY, "--run", "../x"], "../x"),
    "limit": ([*TOY, "--limit", "2"], "--limit 2"),
}


@pytest.mark.parametrize(("words", "named"), BAD.values(), ids=BAD.keys())
def test_bad_input_gets_one_clear_error(folder: Path, capsys, words: list[str], named: str) -> None:
    assert train(*words, "--wandb", "disabled", "--quiet") == 2
    said = capsys.readouterr().err
    assert named in said
    assert "Traceback" not in said
    assert not list(Path().glob("runs/*/DONE.json"))


def test_finetune_refuses_other_data(folder: Path) -> None:
    copy_frozen()
    write_csv(folder / "other_train.csv", 60, seed=5)
    write_csv(folder / "other_test.csv", 21, seed=6)
    assert train("--phase", "finetune", *NEXT, "--data", "other_train.csv") == 2


@pytest.mark.filterwarnings("ignore:Skipping nested container", "ignore:A total of")
def test_a_model_of_another_network_is_bad_input(folder: Path, monkeypatch) -> None:
    copy_frozen()
    monkeypatch.setitem(BACKBONES, "toy", replace(BACKBONES["resnet8"], name="toy"))
    assert train("--phase", "finetune", *NEXT) == 2
