"""Weights & Biases.

Recorded are the settings given, metrics, tables, figures and the model; with `system` also system
metrics and console output. Not recorded: the command line, the environment, git state, source code,
installed packages, host and user names.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmnist_tf.cli.terminal import say, warn
from fmnist_tf.data.images import PixelRows
from fmnist_tf.reporting.record import RunRecord
from fmnist_tf.reporting.tracking import TrackedRun, Trackers, warn_of_failure
from fmnist_tf.results.analysis import rank_confusions, score_classes
from fmnist_tf.results.evaluation import losses, worst_mistakes
from fmnist_tf.settings.config import WANDB_PROJECT
from fmnist_tf.system.files import file_digest

_INIT_TIMEOUT_SECONDS = 20  # of trying to reach the server before recording offline
_FINISH_TIMEOUT_SECONDS = 300  # of uploading at the end; the rest is left to `wandb sync`
_MAX_CONFUSION_CLASSES = 100  # W&B shows tables of at most 10,000 rows, one for each cell
_N_MISTAKES = 100


class WandbTracker:
    """Records to a wandb.Run."""

    name = "W&B"

    def __init__(self, run: Any, hint: Sequence[str]) -> None:
        self.run, self.hint = run, hint

    def log(self, axis: str, number: int, values: Mapping[str, float]) -> None:
        """Record finite values of one "step" or "epoch"."""
        self.run.log({f"{axis}/{axis}": number, **values})

    def log_results(self, run: RunRecord, pixels: PixelRows) -> None:
        """Record metrics in the summary, tables of the test predictions, figures and the model."""
        import wandb

        self.run.summary.update(run.metrics)
        media = {f"figure/{path.stem}": wandb.Image(str(path)) for path in run.figures}
        self.run.log((_make_tables(run, pixels) if run.is_tested else {}) | media)
        model, data = run.directory.file("model.keras"), run.provenance["data"]
        metadata = {
            "test_accuracy": run.metrics.get("test_accuracy"),
            "test_total": data["n_test"],
            "val_accuracy": run.metrics["val_accuracy"],
            "test_time_flip": run.config["test_time_flip"],
            "dataset": data["name"],
            "data_kind": data["kind"],
            "backbone": run.config["backbone"],
            "weights": run.provenance["weights"]["kind"],
            "weights_sha256": run.provenance["weights"]["sha256"],
            "classes": [*run.label_map.values()],
            "sha256": file_digest(model),
        }
        artifact = wandb.Artifact(f"model-{self.run.name}", type="model", metadata=metadata)
        # Page and model card name paths and the machine: they stay in the run directory.
        for path in (model, run.directory.file("labels.json")):
            # The run directory keeps the file, so W&B needs no copy of it.
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
        self.run.log_artifact(artifact)

    def finish(self, *, ok: bool) -> None:
        """Upload what is left if online; end the run and the helper process.

        The helper would otherwise print when Python exits.
        """
        import wandb

        try:
            self.run.finish(exit_code=0 if ok else 1)
        finally:
            wandb.teardown()


def start_wandb(
    mode: str, run_dir: Path, tracked: TrackedRun, *, system: bool = False
) -> WandbTracker | None:
    """Start a W&B run whose data goes to the folder `wandb` of `run_dir`.

    If the server does not answer within 20 seconds, or refuses the credentials, the run is recorded
    offline. If that fails, too, or wandb is not installed, return None. WANDB_PROJECT and
    WANDB_ENTITY are respected. `mode` is as for `choose_mode`; with `system`, system metrics and
    console output are recorded, and the web page can stop the run.
    """
    data_dir = str((run_dir / "wandb").resolve())
    os.environ.update(
        WANDB_SILENT="true",  # also the messages of login
        WANDB_ERROR_REPORTING="false",
        WANDB_DATA_DIR=data_dir,  # copies of images that wait for `wandb sync`
        WANDB_CACHE_DIR=data_dir,
    )
    chosen = choose_mode(mode)
    if chosen == "disabled":
        return None
    run = first_error = None
    for attempt in ("online", "offline") if chosen == "online" else ("offline",):
        try:
            run = _open_run(attempt, run_dir, tracked, system=system)
            break
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "wandb":
                tell = say if mode == "auto" else warn
                tell("W&B is not installed and records nothing; `pip install wandb` adds it")
                return None
            first_error = first_error or error
    if first_error is not None:
        warn_of_failure("W&B records offline" if run else "W&B is not recording", first_error)
    return WandbTracker(run, _make_hint(run, run_dir)) if run else None


def choose_mode(mode: str) -> str:
    """Return `online`, `offline` or `disabled`; asks no question and never fails.

    `auto` is WANDB_MODE if that is one of the three, else online if logged in, else offline.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "").lower()
    if mode in ("online", "offline", "disabled"):
        return mode
    with contextlib.suppress(Exception, SystemExit):
        import wandb

        if wandb.login(prompt=False, verify=False):
            return "online"
    return "offline"


def track_comparison(
    mode: str,
    directory: Path,
    tracked: TrackedRun,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    shown: Path,
) -> None:
    """Record a table of runs, and the page or PNG that compares them, as a W&B run of its own."""
    tracker = start_wandb(mode, directory, tracked) if mode != "disabled" else None
    if tracker is None:
        return
    trackers = Trackers(tracker)
    try:
        import wandb

        media: Any
        if shown.suffix == ".png":
            media = wandb.Image(str(shown))
        else:
            media = wandb.Html(shown.read_text(encoding="utf-8"), inject=False)
        tracker.run.log({"table/runs": _table(",".join(columns), rows), "comparison": media})
    except (Exception, SystemExit) as error:
        warn_of_failure("W&B stopped recording", error)
    trackers.finish()
    for line in tracker.hint:
        say(line)


def _make_tables(run: RunRecord, pixels: PixelRows) -> dict[str, Any]:
    """Return tables of the test predictions: worst mistakes, classes, pairs, confusion.

    Their names begin with `table/`, so that viewers list them after the curves.
    """
    import PIL.Image
    import wandb

    (labels, probabilities), names = run.predictions, run.class_names
    predictions = probabilities.argmax(axis=1)
    worst = worst_mistakes(labels, probabilities, _N_MISTAKES)
    mistakes = [
        [
            wandb.Image(PIL.Image.fromarray(pixels[index].reshape(28, 28))),
            names[labels[index]],
            names[predictions[index]],
            float(probabilities[index].max()),
            float(loss),
        ]
        for index, loss in zip(worst, losses(labels[worst], probabilities[worst]), strict=True)
    ]
    scores = score_classes(run.confusion)
    # A class without images has no scores.
    classes = [[names[k], *row] for k, *row in scores[scores["support"] > 0].itertuples()]
    pairs = [
        [names[pair.label], names[pair.prediction], pair.count, pair.fraction]
        for pair in rank_confusions(run.confusion, 20)
    ]
    tables: dict[str, Any] = {
        "table/worst_mistakes": _table("image,true label,prediction,probability,loss", mistakes),
        "table/classes": _table("class,precision,recall,f1,images", classes),
        "table/confused_pairs": _table("true label,prediction,count,fraction", pairs),
    }
    if len(names) <= _MAX_CONFUSION_CLASSES:
        tables["table/confusion_matrix"] = wandb.plot.confusion_matrix(
            y_true=labels.tolist(), preds=predictions.tolist(), class_names=list(names)
        )
    return tables


def _open_run(mode: str, run_dir: Path, tracked: TrackedRun, *, system: bool) -> Any:
    """Return a new wandb.Run that records nothing but what it is given, except with `system`."""
    exit_function, exception_hook = sys.exit, sys.excepthook
    # By default the web page's stop button interrupts training.
    quiet: dict[str, Any] = {} if system else {"stop_fn": lambda: None, "console": "off"}
    try:
        import wandb

        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("not logged in; run `wandb login` first, or use --wandb offline")
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or WANDB_PROJECT,
            mode=mode,  # type: ignore[arg-type]
            dir=str(run_dir.resolve()),
            group=tracked.group,
            job_type=tracked.job_type,
            name=tracked.name,
            id=tracked.wandb_id,
            resume="allow" if tracked.wandb_id else None,
            config=dict(tracked.config),
            settings=wandb.Settings(
                use_dot_wandb=False,
                reinit="finish_previous",
                init_timeout=_INIT_TIMEOUT_SECONDS,
                finish_timeout=_FINISH_TIMEOUT_SECONDS,
                finish_timeout_raises=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                host="",
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=not system,
                x_save_requirements=False,
                **quiet,
            ),
        )
    finally:
        # W&B wraps these to learn the exit code; finish() tells it instead.
        sys.exit, sys.excepthook = exit_function, exception_hook
    for axis in ("epoch", "step"):
        run.define_metric(f"{axis}/{axis}")
        run.define_metric(f"{axis}/*", step_metric=f"{axis}/{axis}")
    run.define_metric("epoch/val_accuracy", step_metric="epoch/epoch", summary="max")
    if tracked.parent is not None and mode == "online":  # W&B refuses it offline
        try:
            run.use_artifact(f"model-{tracked.parent}:latest")
        except Exception as error:  # such as a parent that was never uploaded
            warn_of_failure("W&B has no model of the run that this one continues", error)
    return run


def _table(header: str, rows: Iterable[Sequence[Any]]) -> Any:
    """Return a wandb.Table; the header has commas between the names of the columns."""
    import wandb

    return wandb.Table(columns=[*header.split(",")], data=[list(row) for row in rows])


def _make_hint(run: Any, run_dir: Path) -> tuple[str, ...]:
    """Return lines with commands to look at the run."""
    if not run.offline:
        return (f"W&B: {run.url}",)
    # A run that was stopped and continued has several, which are uploaded in their order.
    newest = run_dir / "wandb" / Path(run.dir).parent.name
    same_id = f"offline-run-*-{newest.name.rpartition('-')[2]}"
    folders = sorted({*newest.parent.glob(same_id), newest})
    return (
        f"W&B, view in the terminal:  python -m wandb leet {shlex.quote(str(newest))}",
        f"W&B, upload after a login:  python -m wandb sync {shlex.join(map(str, folders))}",
    )
