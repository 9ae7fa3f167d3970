"""W&B: what is recorded, what must never be recorded, and that W&B cannot harm a run.

The offline round trip is a real run in a real process, read back with W&B's own reader.
"""

import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import PIL.Image
import pytest
from fakerun import HOSTILE, change_json, make_run, predict, write_test

from fmnist_tf.reporting.record import RunRecord
from fmnist_tf.reporting.tracking import TrackedRun, Trackers, TrackingOptions, start_tracking
from fmnist_tf.reporting.wandb_tracker import choose_mode, start_wandb, track_comparison
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.results.temperature import measure_scaling

KEY = "canary" + "0123456789abcdef" * 2 + "xy"  # 40 characters, as W&B's keys
ARGUMENT, REMOTE, VARIABLE = "canary-argument", "canary-remote", "canary-variable"
TRACKED = TrackedRun("n", "g", "frozen", {})
SYSTEM = {"environment", "output", "output_raw", "stats"}

TRAIN = """
    import os, sys
    from pathlib import Path
    import numpy as np
    from fmnist_tf.results.history import HistoryRow
    from fmnist_tf.results.rundir import RunDir
    from fmnist_tf.reporting.tracking import *
    run_dir = Path(sys.argv[1])
    hooks = sys.exit, sys.excepthook
    config = {"seed": 7, "model": {"units": 256}}
    tracked = TrackedRun("my-run", "my-experiment", "finetune", config, None, 6, "first")
    options = TrackingOptions("auto", "--system" in sys.argv)
    tracker = start_tracking(options, run_dir, tracked)
    assert (sys.exit, sys.excepthook) == hooks
    print("canary-console")
    for epoch, val_accuracy in ((0, 0.5), (1, 0.9), (2, 0.8)):
        loss = float("nan") if epoch == 0 else 0.5 / epoch
        rate = 0.001 * epoch
        tracker.log_epoch(HistoryRow(epoch, "finetune", loss, 0.25, 1.0, val_accuracy, rate, 1.5))
        tracker.log_step(epoch + 1, 0.125 * epoch)
    if "--kill-helper" in sys.argv:
        helpers = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for helper in helpers:
            os.kill(int(helper), 9)
            os.waitpid(int(helper), 0)
    tracker.log_results(RunDir(run_dir), np.zeros((400, 784), np.uint8))
    tracker.finish()
    print(*tracker.hint, sep="\\n")
    sys.exit(5)
"""


def make_trained(
    path: Path, labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str] = "abc"
) -> RunDir:
    """Write what a run has when the trackers get its results."""
    run = make_run(path, names=names, done=False)
    write_test(run, labels, probabilities, labels, probabilities)
    calibration = measure_scaling(labels, probabilities, 2.0)
    change_json(run.file("evaluation.json"), calibration=calibration)
    PIL.Image.new("L", (8, 8)).save(run.file("curves.png"))
    run.file("model.keras").write_bytes(b"weights" * 1000)
    return run


def run_offline(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run TRAIN in a world full of secrets and of settings that point elsewhere."""
    places = "HOME XDG_CACHE_HOME XDG_DATA_HOME XDG_CONFIG_HOME WANDB_DIR WANDB_DATA_DIR"
    places += " WANDB_CACHE_DIR WANDB_ARTIFACT_DIR"
    elsewhere = dict.fromkeys(places.split(), str(tmp_path / "elsewhere"))
    secrets = {"WANDB_API_KEY": KEY, "MY_TOKEN": VARIABLE, "WANDB_MODE": "offline"}
    root = str(Path(__file__).parents[2])
    (tmp_path / "work").mkdir()
    make_trained(tmp_path / "run", *predict(3, 400, 0))
    git = ["git", "-C", str(tmp_path / "work")]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "remote", "add", "origin", f"https://{REMOTE}@host/x.git"], check=True)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRAIN), str(tmp_path / "run"), ARGUMENT, *arguments],
        env={**os.environ, **elsewhere, **secrets, "PYTHONPATH": root},
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        timeout=120,
    )


def inspect(run: str, *options: str) -> str:
    """Read an offline run back with W&B's own reader."""
    wandb = Path(sys.executable).with_name("wandb")
    command = [str(wandb), "leet", "inspect", "--json", *options, run]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def find_processes(text: bytes) -> list[Path]:
    """Return the processes whose environment holds `text`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if text in (process / "environ").read_bytes():
                found.append(process)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_an_offline_run_can_be_read_back_and_holds_no_secret(tmp_path):
    done = run_offline(tmp_path)
    assert done.stderr == ""
    assert done.returncode == 5
    _, view, upload = done.stdout.splitlines()

    # The hint names commands that work on the run as it lies in the run directory.
    offline_run = view.split()[-1]
    assert Path(offline_run).parent == tmp_path / "run" / "wandb"
    assert " leet " in view
    assert " sync " in upload
    assert upload.split()[-1] == offline_run

    summary = json.loads(inspect(offline_run, "--summary"))
    assert summary["state"] == "finished"
    assert (summary["project"], summary["name"]) == ("fmnist-tf", "my-run")
    assert summary["config"] == {"seed": 7, "model": {"units": 256}}
    facts = summary["summary"]
    assert (facts["epoch/loss"], facts["epoch/accuracy"]) == (0.25, 0.25)
    assert facts["epoch/epoch"] == 8  # the phase before had 6
    assert (facts["step/step"], facts["step/loss"]) == (3, 0.25)
    assert facts["epoch/val_accuracy"] == {"max": 0.9}
    assert facts["test_accuracy"] == RunRecord(RunDir(tmp_path / "run")).metrics["test_accuracy"]
    assert facts["test_total"] == 400
    assert facts["figure/curves"]["_type"] == "image-file"
    tables = {key[6:]: facts[key] for key in facts if key.startswith("table/")}
    assert tables["confusion_matrix_table"]["nrows"] == 9
    assert (tables["worst_mistakes"]["nrows"], tables["worst_mistakes"]["ncols"]) == (100, 5)
    assert (tables["classes"]["nrows"], tables["confused_pairs"]["nrows"]) == (3, 6)
    # `wandb leet` sorts by name: curves come first.
    assert min(key for key in facts if "/" in key).startswith("epoch/")

    text = inspect(offline_run)
    records = [json.loads(line) for line in text.splitlines()]
    by_type = {kind: [r[kind] for r in records if r["type"] == kind] for kind in ("run", "history")}
    (run,) = by_type["run"]
    assert (run["run_group"], run["job_type"]) == ("my-experiment", "finetune")
    assert not run.get("host")
    curve = [entry["item"] for entry in by_type["history"] if "epoch/epoch" in entry["item"]]
    assert [item["epoch/val_accuracy"] for item in curve] == [0.5, 0.9, 0.8]
    assert [item.get("epoch/loss") for item in curve] == [None, 1 / 2, 1 / 4]
    assert [item.get("epoch/learning_rate") for item in curve] == [None, 0.001, 0.002]
    assert not {record["type"] for record in records} & SYSTEM
    artifacts = {r["artifact"]["name"]: r["artifact"] for r in records if r["type"] == "artifact"}
    *_, model = artifacts["model-my-run"]["manifest"]["contents"]
    assert json.loads(artifacts["model-my-run"]["metadata"])["classes"] == ["a", "b", "c"]
    assert model["local_path"] == str(tmp_path / "run" / "model.keras")  # not a second copy

    # Nothing secret in any byte, and no byte outside the run directory.
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 10
    for secret in (KEY, ARGUMENT, REMOTE, VARIABLE, "canary-console"):
        assert secret not in text
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert not any(path.name.startswith("requirements") for path in files)
    assert not (tmp_path / "elsewhere").exists()
    assert {path.name for path in (tmp_path / "work").iterdir()} == {".git"}
    assert find_processes(VARIABLE.encode()) == []


@pytest.mark.slow
def test_with_wandb_system_the_console_is_recorded_and_still_no_secret(tmp_path):
    done = run_offline(tmp_path, "--system")
    assert done.returncode == 5
    text = inspect(done.stdout.split("wandb leet ")[1].split()[0])
    assert {json.loads(line)["type"] for line in text.splitlines()} & SYSTEM
    assert "canary-console" in text
    assert not [secret for secret in (KEY, ARGUMENT, REMOTE, VARIABLE) if secret in text]


def test_tensorboard_gets_the_same_numbers_and_the_figures(tmp_path, capsys):
    tf = pytest.importorskip("tensorflow")
    run_dir = tmp_path / "run"
    run = make_results(run_dir)
    tracked = TrackedRun("n", "g", "finetune", {}, epochs_before=6)
    trackers = start_tracking(TrackingOptions("disabled", tensorboard=True), run_dir, tracked)
    trackers.log_step(5, 0.25)
    trackers.log_epoch(HistoryRow(0, "finetune", math.nan, math.nan, 2.0, 0.5, 0.0, 1.0))
    trackers.log_epoch(HistoryRow(1, "finetune", 1.0, 0.25, 1.5, 0.75, 0.125, 1.0))
    trackers.log_results(run, np.zeros((60, 784), np.uint8))
    trackers.finish()
    assert str(tmp_path) in trackers.hint[0]
    (path,) = (run_dir / "tensorboard").iterdir()
    seen = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            seen[value.tag, event.step] = tf.make_ndarray(value.tensor).ravel().tolist()
    assert seen["step/loss", 5] == [0.25]
    assert seen["epoch/val_accuracy", 6] == [0.5]
    assert seen["epoch/learning_rate", 7] == [0.125]
    assert not {("epoch/learning_rate", 6), ("epoch/loss", 6)} & set(seen)
    assert seen["result/test_total", 0] == [60]
    assert seen["figure/curves", 0][:2] == [b"8", b"8"]
    (run_dir / "tensorboard" / path.name).unlink()
    path.parent.rmdir()
    path.parent.write_text("a file in its place")
    start_tracking(TrackingOptions("disabled", tensorboard=True), run_dir, tracked).log_step(1, 1.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert "TensorBoard" in line


@pytest.mark.slow
def test_if_its_helper_is_killed_there_is_one_warning_and_the_exit_code_stays(tmp_path):
    done = run_offline(tmp_path, "--kill-helper")
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1


def test_disabled_does_not_import_wandb(tmp_path):
    script = """if True:
        import sys
        from pathlib import Path
        from fmnist_tf.reporting.tracking import TrackedRun, TrackingOptions, start_tracking
        tracked = TrackedRun("n", "g", "j", {})
        tracker = start_tracking(TrackingOptions("disabled"), Path(sys.argv[1]), tracked)
        tracker.log_step(1, 1.0)
        tracker.finish()
        assert tracker.hint == []
        assert not {"wandb", "tensorflow"} & set(sys.modules)
    """
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b""
    assert list(tmp_path.iterdir()) == []


def make_wandb(*failures: str, error: BaseException | None = None, logged_in: bool = True) -> Mock:
    """Replace the module; its functions that are named fail, and so does init in a mode named."""
    error = error or RuntimeError("out of\norder\x1b[31m")
    wandb = Mock(Settings=dict)
    wandb.login.return_value = logged_in
    run = wandb.run
    run.configure_mock(summary={}, name="n", url="https://host/run", dir="/x/offline-run-1/files")

    def init(mode: str, **_: object) -> Mock:
        if mode in failures:
            raise error
        run.offline = mode == "offline"
        return run

    wandb.init.side_effect = init
    for failure in failures:
        owner = wandb if failure in ("login", "teardown") else run
        getattr(owner, failure).side_effect = error
    return wandb


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Start without W&B's variables, and let what the tracker sets end with the test."""
    ours = {f"WANDB_{name}" for name in ("SILENT", "ERROR_REPORTING", "DATA_DIR", "CACHE_DIR")}
    for name in ours.union(name for name in os.environ if name.startswith("WANDB_")):
        monkeypatch.setenv(name, "")  # so that it is remembered even where it was not set
        monkeypatch.delenv(name)


@pytest.fixture
def install(monkeypatch):
    return lambda wandb: monkeypatch.setitem(sys.modules, "wandb", wandb)


def make_results(path: Path) -> RunDir:
    """Write a run with hostile names, one of them of a class without test images."""
    labels, probabilities = predict(3, 60, 0)
    return make_trained(path, np.minimum(labels, 1), probabilities, HOSTILE[2:5])


def track(run_dir: Path, mode: str = "offline", **options: bool) -> Trackers:
    """Do with a tracker what a training run does."""
    tracker = start_tracking(TrackingOptions(mode, **options), run_dir, TRACKED)
    row = HistoryRow(1, "frozen", 1.0, 0.5, 1.0, 0.5, 0.1, 1.0)
    tracker.log_epoch(row)
    tracker.log_epoch(row)
    tracker.finish()
    tracker.log_epoch(row)
    tracker.finish()
    return tracker


@pytest.mark.parametrize("error", [SystemExit("x" * 999), KeyError("x\n\x1b[3m")])
@pytest.mark.parametrize(
    ("failures", "calls"),
    [
        ("offline", ["init"]),
        ("define_metric", ["init", "run.define_metric"]),
        ("log", ["run.log", "run.finish", "teardown"]),
        ("log finish teardown", ["run.log", "run.finish", "teardown"]),
        ("finish", ["run.log", "run.log", "run.finish", "teardown"]),
        ("teardown", ["run.log", "run.log", "run.finish", "teardown"]),
    ],
)
def test_each_failure_gives_one_warning_and_silence(
    tmp_path, install, capsys, error, failures, calls
):
    wandb = make_wandb(*failures.split(), error=error)
    install(wandb)
    track(tmp_path)
    assert [name for name, *_ in wandb.mock_calls][-len(calls) :] == calls
    for call in wandb.run.finish.call_args_list:
        assert call.kwargs["exit_code"] == int("log" in failures)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"({type(error).__name__}: " in line
    assert line.isprintable()
    assert len(line) < 320


def test_results_are_recorded_as_metrics_tables_figures_and_model(tmp_path, install, capsys):
    wandb = make_wandb()
    install(wandb)
    run = RunRecord(make_results(tmp_path / "run"))
    start_wandb("offline", tmp_path, TRACKED).log_results(run, np.zeros((60, 784), np.uint8))
    track_comparison("offline", tmp_path, TRACKED, ["run"], [["one"]], tmp_path / "trials.png")
    assert "wandb leet" in capsys.readouterr().err
    summary = wandb.run.summary
    assert summary["test_accuracy"] == run.evaluation["test"]["accuracy"]
    assert {"test_loss", "test_macro_f1", "test_expected_calibration_error"} <= set(summary)
    names = ("worst_mistakes", "classes", "confused_pairs", "confusion_matrix")
    tables = [f"table/{name}" for name in names]
    logged = [name for call in wandb.run.log.call_args_list for name in call.args[0]]
    assert logged == [*tables, "figure/curves", "table/runs", "comparison"]
    mistakes, classes, pairs, _ = (c.kwargs["data"] for c in wandb.Table.call_args_list)
    assert [row[0] for row in classes] == ["\\u202egnp.exe\\u202d", "W" * 29 + "..."]
    assert sum(row[2] for row in pairs) == len(mistakes) == 60 - summary["test_correct"]
    files = [Path(c.args[0]).name for c in wandb.Artifact.return_value.add_file.call_args_list]
    assert files == ["model.keras", "labels.json"]  # and nothing that names paths or the machine
    wandb.run.log_artifact.assert_called_once()


@pytest.mark.parametrize(
    ("wandb", "mode", "inits", "hint", "n_warnings"),
    [
        (make_wandb(), "online", ["online"], "https://host/run", 0),
        (make_wandb("online"), "online", ["online", "offline"], "leet", 1),
        (make_wandb(logged_in=False), "online", ["offline"], "leet", 1),
        (make_wandb(), "offline", ["offline"], "leet", 0),
        (None, "auto", [], "", 1),
        (None, "online", [], "", 1),
        (None, "offline", [], "", 1),
    ],
)
def test_online_becomes_offline_and_a_missing_wandb_nothing(
    tmp_path, install, capsys, wandb, mode, inits, hint, n_warnings
):
    install(wandb)
    tracker = track(tmp_path, mode)
    calls = wandb.init.call_args_list if wandb else []
    assert [call.kwargs["mode"] for call in calls] == inits
    assert hint in "".join(tracker.hint)
    assert bool(tracker.hint) == bool(wandb)
    assert len(capsys.readouterr().err.splitlines()) == n_warnings


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_a_wandb_that_lacks_a_package_of_its_own_gives_one_warning(
    tmp_path, monkeypatch, capsys, mode
):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/__init__.py").write_text("import a_package_that_is_not_there")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert track(tmp_path / "run", mode).hint == []
    (line,) = capsys.readouterr().err.splitlines()
    assert "a_package_that_is_not_there" in line


def test_the_model_of_the_parent_is_an_input_where_wandb_allows_it(tmp_path, install, capsys):
    tracked = TrackedRun("n", "g", "finetune", {}, parent="first")
    for mode, failures, n_warnings in (
        ("online", (), 0),
        ("online", ("use_artifact",), 1),  # the frozen run was recorded offline
        ("offline", ("use_artifact",), 0),
    ):
        wandb = make_wandb(*failures)
        install(wandb)
        assert start_wandb(mode, tmp_path, tracked) is not None
        used = wandb.run.use_artifact.call_args_list
        assert [call.args for call in used] == [("model-first:latest",)] * (mode == "online")
        assert len(capsys.readouterr().err.splitlines()) == n_warnings


def test_wandb_is_told_to_record_nothing_else_and_not_to_stop_the_run(
    tmp_path, install, monkeypatch
):
    # Some of these settings have the same effect, and sampling starts too late for a short run to
    # show it: so each is tested by name.
    wandb = make_wandb()
    install(wandb)
    track(tmp_path)
    keywords = wandb.init.call_args.kwargs
    assert keywords["project"] == "fmnist-tf"
    settings = keywords["settings"]
    assert settings.pop("stop_fn")() is None  # by default a click in the browser sends SIGINT
    assert 0 < settings.pop("init_timeout") <= 30
    assert 0 < settings.pop("finish_timeout") <= 600
    assert settings == {
        "x_disable_meta": True, "x_disable_machine_info": True, "x_disable_stats": True,
        "disable_git": True, "disable_code": True, "finish_timeout_raises": True,
        "save_code": False, "x_save_requirements": False, "use_dot_wandb": False,
        "host": "", "console": "off", "reinit": "finish_previous",
    }  # fmt: skip
    track(tmp_path, wandb_system=True)
    settings = wandb.init.call_args.kwargs["settings"]
    assert not {"stop_fn", "console"} & set(settings)
    assert settings["x_disable_stats"] is False
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    start_tracking(TrackingOptions("offline"), tmp_path, TRACKED).finish(ok=False)
    assert wandb.init.call_args.kwargs["project"] == "mine"
    wandb.run.finish.assert_called_with(exit_code=1)
    install(make_wandb("log", error=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        track(tmp_path)


@pytest.mark.parametrize(
    ("mode", "variable", "wandb", "expected"),
    [
        ("disabled", "online", None, "disabled"),
        ("auto", "", make_wandb(), "online"),
        ("auto", "", make_wandb(logged_in=False), "offline"),
        ("auto", "disabled", make_wandb(), "disabled"),
        ("auto", "ONLINE", make_wandb(logged_in=False), "online"),
        ("auto", "nonsense", make_wandb(), "online"),
        ("auto", "", make_wandb("login", error=SystemExit(1)), "offline"),
    ],
)
def test_auto_follows_the_environment_then_the_login(
    monkeypatch, install, mode, variable, wandb, expected
):
    install(wandb)
    monkeypatch.setenv("WANDB_MODE", variable)
    assert choose_mode(mode) == expected
