"""The W&B mirror: what it records, what it must never record, and that it can do no harm.

The offline round trip is a real run in a real process, read back with W&B's own reader.
"""

import json
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.reporting.tracking import Tracker, choose_mode, start_tracking
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.history import HistoryRow

KEY = "canary" + "0123456789abcdef" * 2 + "xy"  # 40 characters, as W&B's keys
ARGUMENT, REMOTE, VARIABLE = "canary-argument", "canary-remote", "canary-variable"

TRAIN = """
    import os, sys
    from pathlib import Path
    import numpy as np
    from PIL import Image
    from fmnist_tf.results.evaluation import Evaluation
    from fmnist_tf.results.history import HistoryRow
    from fmnist_tf.reporting.tracking import start_tracking
    run_dir = Path(sys.argv[1])
    hooks = sys.exit, sys.excepthook
    tracker = start_tracking(
        "auto", run_dir, group="my-experiment", job_type="frozen", name="my-run",
        config={"seed": 7, "model": {"units": 256}}, warn=lambda text: print("WARN", text),
        epochs_before=6,
    )
    assert (sys.exit, sys.excepthook) == hooks
    print("canary-console")
    for epoch, val_accuracy in ((1, 0.5), (2, 0.9), (3, 0.8)):
        loss = float("nan") if epoch == 1 else 1 / epoch
        row = HistoryRow(epoch, "frozen", loss, 0.25 * epoch, 2 / epoch, val_accuracy, 1e-3, 1.5)
        tracker.log_epoch(row)
    if "--kill-helper" in sys.argv:
        helpers = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for helper in helpers:
            os.kill(int(helper), 9)
            os.waitpid(int(helper), 0)
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 400)
    probabilities = random.dirichlet(np.ones(3), 400).astype(np.float32)
    evaluation = Evaluation.from_probabilities(labels, probabilities)
    Image.new("L", (8, 8)).save(run_dir / "curves.png")
    (run_dir / "model.keras").write_bytes(b"weights" * 1000)
    tracker.log_results(
        {"val": evaluation, "test": evaluation}, class_names=["a", "b", "c"],
        pixels=random.integers(0, 256, (400, 784), dtype=np.uint8),
        labels=labels, probabilities=probabilities, mistakes=999,
        figures=[run_dir / "curves.png"],
        model_files=[run_dir / "model.keras"], model_facts={"classes": ["a", "b", "c"]},
    )
    tracker.finish()
    print(evaluation.accuracy)
    print(*tracker.hint, sep="\\n")
    sys.exit(5)
"""


def run_offline(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run TRAIN in a world full of secrets and of settings that point elsewhere."""
    elsewhere = {
        name: str(tmp_path / "elsewhere")
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "WANDB_DIR")
    }
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR"):
        elsewhere[name] = str(tmp_path / "elsewhere")
    secrets = {"WANDB_API_KEY": KEY, "MY_TOKEN": VARIABLE, "WANDB_MODE": "offline"}
    root = str(Path(__file__).parents[2])
    (tmp_path / "work").mkdir()
    (tmp_path / "run").mkdir()
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


def test_an_offline_run_can_be_read_back_and_holds_no_secret(tmp_path):
    done = run_offline(tmp_path)
    assert done.stderr == ""
    assert done.returncode == 5
    _, accuracy, view, upload = done.stdout.splitlines()

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
    assert facts["epoch/loss"] == 1 / 3
    assert facts["epoch/val_loss"] == 2 / 3
    assert facts["epoch/accuracy"] == 0.75
    assert facts["epoch/learning_rate"] == 1e-3
    assert facts["epoch/epoch"] == 9  # the phase before had 6
    assert facts["epoch/val_accuracy"] == {"max": 0.9}
    assert facts["test_accuracy"] == facts["val_accuracy"] == float(accuracy)
    assert facts["test_total"] == 400
    assert facts["figure/curves"]["_type"] == "image-file"
    assert facts["confusion_matrix_table"]["nrows"] == 9
    assert (facts["worst_mistakes"]["nrows"], facts["worst_mistakes"]["ncols"]) == (200, 5)
    assert (facts["classes"]["nrows"], facts["confused_pairs"]["nrows"]) == (3, 6)
    assert 0 < facts["test_expected_calibration_error"] < 1
    assert 0 < facts["test_macro_f1"] < 1

    text = inspect(offline_run)
    records = [json.loads(line) for line in text.splitlines()]
    by_type = {kind: [r[kind] for r in records if r["type"] == kind] for kind in ("run", "history")}
    (run,) = by_type["run"]
    assert (run["run_group"], run["job_type"]) == ("my-experiment", "frozen")
    assert not run.get("host")
    curve = [entry["item"] for entry in by_type["history"] if "epoch/epoch" in entry["item"]]
    assert [item["epoch/val_accuracy"] for item in curve] == [0.5, 0.9, 0.8]
    assert [item.get("epoch/loss") for item in curve] == [None, 1 / 2, 1 / 3]
    kinds = {record["type"] for record in records}
    assert not kinds & {"environment", "output", "output_raw", "stats"}
    artifacts = {r["artifact"]["name"]: r["artifact"] for r in records if r["type"] == "artifact"}
    (model,) = artifacts["model-my-run"]["manifest"]["contents"]
    assert json.loads(artifacts["model-my-run"]["metadata"]) == {"classes": ["a", "b", "c"]}
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


def test_when_its_helper_dies_one_line_is_said_and_the_exit_code_stays(tmp_path):
    done = run_offline(tmp_path, "--kill-helper")
    assert done.stderr == ""
    assert done.returncode == 5
    warnings = [line for line in done.stdout.splitlines() if line.startswith("WARN")]
    assert len(warnings) == 1
    assert warnings[0].startswith("WARN W&B stopped recording (")
    assert warnings[0].endswith("the run itself is not affected")


def test_disabled_does_not_import_wandb(tmp_path):
    script = """
        import sys
        from pathlib import Path
        from fmnist_tf.reporting.tracking import start_tracking
        tracker = start_tracking(
            "disabled", Path(sys.argv[1]), group="g", job_type="j", name="n", config={}, warn=print
        )
        tracker.finish()
        assert tracker.hint == ()
        assert "wandb" not in sys.modules
        """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b""
    assert list(tmp_path.iterdir()) == []


# A W&B that fails, at each place where it can


class Failing:
    """A stand-in for the wandb module that fails in the functions named."""

    def __init__(self, *failures: str, error: BaseException | None = None) -> None:
        self.failures = failures
        self.error = error or RuntimeError("out of\norder\x1b[31m")
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failures:
            raise self.error

    def login(self, prompt: bool, verify: bool) -> bool:
        assert not prompt
        self._call("login")
        return True

    def init(self, mode: str, **keywords: object) -> "Failing":
        self._call(f"init {mode}")
        self.keywords = keywords
        self.offline = mode == "offline"
        self.url = "https://host/run"
        self.dir = "/x/offline-run-1/files"
        return self

    def log(self, _: object) -> None:
        self._call("log")

    def finish(self, exit_code: int) -> None:
        self._call(f"finish {exit_code}")

    def teardown(self) -> None:
        self._call("teardown")

    def define_metric(self, *_: object, **__: object) -> None:
        self._call("define_metric")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Start without W&B's variables, and let what the tracker sets end with the test."""
    ours = {f"WANDB_{name}" for name in ("SILENT", "ERROR_REPORTING", "DATA_DIR", "CACHE_DIR")}
    for name in ours.union(name for name in os.environ if name.startswith("WANDB_")):
        monkeypatch.setenv(name, "")  # so that it is remembered even where it was not set
        monkeypatch.delenv(name)


@pytest.fixture
def install(monkeypatch):
    def install(stub: Failing | None) -> None:
        module = None
        if stub is not None:
            module = types.ModuleType("wandb")
            module.login, module.init, module.teardown = stub.login, stub.init, stub.teardown
            module.Settings = dict
        monkeypatch.setitem(sys.modules, "wandb", module)

    return install


def track(run_dir: Path, warn, mode: str = "offline") -> Tracker:
    """Do with a tracker what a training run does."""
    tracker = start_tracking(
        mode, run_dir, group="g", job_type="frozen", name="n", config={}, warn=warn
    )
    row = HistoryRow(1, "frozen", 1.0, 0.5, 1.0, 0.5, 0.1, 1.0)
    tracker.log_epoch(row)
    tracker.log_epoch(row)
    tracker.finish()
    tracker.log_epoch(row)
    tracker.finish()
    return tracker


@pytest.mark.parametrize("error", [RuntimeError("x" * 999), SystemExit(7), KeyError("x\n\x1b[3m")])
@pytest.mark.parametrize(
    ("failure", "warning", "calls"),
    [
        ("init offline", "W&B is not recording", ["init offline"]),
        ("define_metric", "W&B is not recording", ["init offline", "define_metric"]),
        ("log", "W&B stopped recording", ["log", "finish 1", "teardown"]),
        ("finish 0", "W&B did not finish", ["log", "log", "finish 0", "teardown"]),
        ("teardown", "W&B did not finish", ["log", "log", "finish 0", "teardown"]),
    ],
)
def test_each_failure_gives_one_warning_and_silence(
    tmp_path, install, error, failure, warning, calls
):
    stub = Failing(failure, error=error)
    install(stub)
    warnings: list[str] = []
    track(tmp_path, warnings.append)
    assert [stub.calls[-len(calls) :], len(warnings)] == [calls, 1]
    assert warnings[0].startswith(f"{warning} ({type(error).__name__}: ")
    assert warnings[0].isprintable()
    assert len(warnings[0]) < 320


def test_a_failing_clean_up_after_a_failure_is_not_heard_of(tmp_path, install):
    install(Failing("log", "finish 1", "teardown"))
    warnings: list[str] = []
    track(tmp_path, warnings.append)
    assert len(warnings) == 1


def test_a_missing_wandb_is_one_warning(tmp_path, install):
    install(None)
    for mode in ("auto", "online", "offline"):
        warnings: list[str] = []
        assert track(tmp_path, warnings.append, mode).hint == ()
        assert len(warnings) == 1
        assert warnings[0].startswith("W&B is not recording (ModuleNotFoundError")


def test_wrong_results_are_a_warning_too(tmp_path, install):
    install(Failing())
    warnings: list[str] = []
    tracker = start_tracking(
        "offline", tmp_path, group="g", job_type="j", name="n", config={}, warn=warnings.append
    )
    probabilities = np.eye(2, dtype=np.float32)
    evaluation = Evaluation.from_probabilities(np.array([0, 1]), probabilities)
    tracker.log_results(  # the stand-in has no summary
        {"test": evaluation},
        class_names=["a", "b"],
        pixels=np.zeros((2, 784), np.uint8),
        labels=np.array([0, 1]),
        probabilities=probabilities,
    )
    assert len(warnings) == 1


def test_a_server_out_of_reach_turns_online_into_offline(tmp_path, install):
    stub = Failing("init online")
    install(stub)
    warnings: list[str] = []
    tracker = track(tmp_path, warnings.append, "online")
    assert [call for call in stub.calls if call.startswith("init")] == [
        "init online",
        "init offline",
    ]
    assert stub.calls[-4:] == ["log", "log", "finish 0", "teardown"]
    (warning,) = warnings
    assert warning.startswith("W&B records offline (RuntimeError: out of order\\x1b[31m)")
    assert "leet" in tracker.hint[0]


def test_online_without_credentials_asks_nobody(tmp_path, install):
    stub = Failing()
    stub.login = lambda prompt, verify: prompt
    install(stub)
    warnings: list[str] = []
    track(tmp_path, warnings.append, "online")
    assert "init online" not in stub.calls
    assert len(warnings) == 1
    assert "wandb login" in warnings[0]


def test_a_successful_run_warns_of_nothing_and_links_when_online(tmp_path, install):
    install(Failing())
    warnings: list[str] = []
    assert track(tmp_path, warnings.append, "online").hint == ("W&B: https://host/run",)
    assert warnings == []


def test_wandb_is_told_to_look_at_nothing_and_to_stop_nothing(tmp_path, install):
    # Some of these guard the same thing twice, and sampling starts too late for a short run to
    # show it: so here each is asked for by name.
    stub = Failing()
    install(stub)
    track(tmp_path, pytest.fail)
    settings = stub.keywords["settings"]
    hidden = ("meta", "machine_info", "stats")
    assert [settings[f"x_disable_{what}"] for what in hidden] == [True] * 3
    assert settings["disable_git"] is settings["disable_code"] is True
    assert settings["save_code"] is settings["x_save_requirements"] is False
    assert (settings["host"], settings["console"]) == ("", "off")
    assert settings["reinit"] == "finish_previous"
    assert settings["stop_fn"]() is None  # by default a click in the browser sends SIGINT
    assert settings["init_timeout"] <= 30
    assert 0 < settings["finish_timeout"] <= 600


def test_the_project_can_be_named_in_the_environment(tmp_path, install, monkeypatch):
    stub = Failing()
    install(stub)
    track(tmp_path, pytest.fail)
    assert stub.keywords["project"] == "fmnist-tf"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    track(tmp_path, pytest.fail)
    assert stub.keywords["project"] == "mine"


def test_a_failed_run_is_recorded_as_failed(tmp_path, install):
    stub = Failing()
    install(stub)
    tracker = start_tracking(
        "offline", tmp_path, group="g", job_type="j", name="n", config={}, warn=pytest.fail
    )
    tracker.finish(ok=False)
    assert stub.calls[-2:] == ["finish 1", "teardown"]


def test_ctrl_c_is_not_swallowed(tmp_path, install):
    install(Failing("log", error=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        track(tmp_path, pytest.fail)


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one of auto, online, offline, disabled, found"):
        track(tmp_path, pytest.fail, "sometimes")


# Which mode


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_a_named_mode_is_taken_whatever_the_environment_says(monkeypatch, install, mode):
    install(None)
    monkeypatch.setenv("WANDB_MODE", "online" if mode == "offline" else "offline")
    assert choose_mode(mode) == mode


@pytest.mark.parametrize(
    ("variable", "logged_in", "expected"),
    [
        ("", True, "online"),
        ("", False, "offline"),
        ("offline", True, "offline"),
        ("disabled", True, "disabled"),
        ("ONLINE", False, "online"),
        ("nonsense", True, "online"),
        ("auto", False, "offline"),
    ],
)
def test_auto_follows_the_environment_then_the_login(
    monkeypatch, install, variable, logged_in, expected
):
    stub = Failing()
    stub.login = lambda prompt, verify: logged_in and not prompt and not verify
    install(stub)
    monkeypatch.setenv("WANDB_MODE", variable)
    assert choose_mode("auto") == expected


@pytest.mark.parametrize("error", [RuntimeError(), SystemExit(1)])
def test_auto_survives_a_login_that_fails(install, error):
    install(Failing("login", error=error))
    assert choose_mode("auto") == "offline"
