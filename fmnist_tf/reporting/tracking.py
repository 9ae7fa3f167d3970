"""Weights & Biases: a copy of a run's results to look at; the files on disk are what counts.

W&B never ends, delays for long, or changes a training run: whatever fails in it gives one warning,
and from then on the tracker does nothing.

Recorded are the settings given, metrics, tables, figures and the model. Not recorded: the command
line, the environment, git state, source code, installed packages, host and user names, console
output.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import numpy as np

from fmnist_tf.cli.terminal import say, warn
from fmnist_tf.errors import printable
from fmnist_tf.results.analysis import measure_calibration, rank_confusions, score_classes
from fmnist_tf.results.evaluation import Evaluation, losses, worst_mistakes
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.settings.config import WANDB_PROJECT

P = ParamSpec("P")

_INIT_TIMEOUT_SECONDS = 20  # of trying to reach the server before recording offline
_FINISH_TIMEOUT_SECONDS = 300  # of uploading at the end; the rest is left to `wandb sync`
_MAX_CONFUSION_CLASSES = 100  # W&B shows tables of at most 10,000 rows, one for each cell
_N_MISTAKES = 100


@dataclass(frozen=True)
class TrackedRun:
    """How W&B knows a run."""

    name: str
    group: str  # of the phases that belong together
    job_type: str  # the phase, "sweep" or "comparison"
    config: Mapping[str, Any]  # JSON values, no secrets
    wandb_id: str | None = None  # of the run that this one may continue
    epochs_before: int = 0  # of the phase before, so that the curves of a group join


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


def _harmless(
    method: Callable[Concatenate[Tracker, P], None],
) -> Callable[Concatenate[Tracker, P], None]:
    """Do nothing without a W&B run; on a failure warn once and give up W&B."""

    @functools.wraps(method)
    def attempt(self: Tracker, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.run is None:
            return
        try:
            method(self, *args, **kwargs)
        except (Exception, SystemExit) as error:
            run, self.run = self.run, None
            _warn("W&B stopped recording", error)
            with contextlib.suppress(Exception, SystemExit):
                _close(run, exit_code=1)

    return attempt


@dataclass
class Tracker:
    """A W&B run, or nothing: if W&B is disabled, or after its first failure.

    Attributes:
        run: the wandb.Run, or None.
        hint: lines that say how to look at what was recorded.
        epochs_before: see `TrackedRun`.
    """

    run: Any = None
    hint: tuple[str, ...] = ()
    epochs_before: int = 0

    @_harmless
    def log_epoch(self, row: HistoryRow) -> None:
        """Record the finite numbers of one epoch as `epoch/...`."""
        numbers = {name: value for name, value in asdict(row).items() if name != "phase"}
        numbers["epoch"] += self.epochs_before
        finite = {f"epoch/{name}": x for name, x in numbers.items() if math.isfinite(x)}
        self.run.log(finite)

    @_harmless
    def log_evaluations(self, evaluations: Mapping[str, Evaluation]) -> None:
        """Record the metrics of each split in the summary, as `test_accuracy` and so on."""
        for split, evaluation in evaluations.items():
            names = ("accuracy", "loss", "correct", "total")
            metrics = {name: getattr(evaluation, name) for name in names}
            metrics["macro_f1"] = score_classes(evaluation.confusion).macro_f1
            self.run.summary.update({f"{split}_{name}": x for name, x in metrics.items()})

    @_harmless
    def log_predictions(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        probabilities: np.ndarray,
        class_names: Sequence[str],
    ) -> None:
        """Record tables of the test predictions: confusion, worst mistakes, classes, pairs.

        N images: pixels (N, 784) uint8, labels (N,) integers 0..K-1, probabilities (N, K).
        """
        import PIL.Image
        import wandb

        names = [printable(name) for name in class_names]
        predictions = probabilities.argmax(axis=1)
        confusion = Evaluation.from_probabilities(labels, probabilities).confusion
        calibration = measure_calibration(labels, probabilities)
        self.run.summary.update({"test_expected_calibration_error": calibration.ece})
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
        scores = score_classes(confusion)
        columns = (scores.precision, scores.recall, scores.f1, scores.support)
        classes = zip(names, *(column.tolist() for column in columns), strict=True)
        pairs = [
            [names[pair.label], names[pair.prediction], pair.count, pair.fraction]
            for pair in rank_confusions(confusion, 20)
        ]
        tables: dict[str, Any] = {
            "worst_mistakes": _table("image,true label,prediction,probability,loss", mistakes),
            # A class without images has no scores.
            "classes": _table("class,precision,recall,f1,images", [c for c in classes if c[-1]]),
            "confused_pairs": _table("true label,prediction,count,fraction", pairs),
        }
        if len(names) <= _MAX_CONFUSION_CLASSES:
            tables["confusion_matrix"] = wandb.plot.confusion_matrix(
                y_true=labels.tolist(), preds=predictions.tolist(), class_names=names
            )
        self.run.log(tables)

    @_harmless
    def log_figures(self, paths: Sequence[Path]) -> None:
        """Record PNG files as `figure/STEM`."""
        import wandb

        self.run.log({f"figure/{path.stem}": wandb.Image(str(path)) for path in paths})

    @_harmless
    def log_model(self, paths: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Record the model's files as an artifact; they stay where they are until uploaded."""
        import wandb

        artifact = wandb.Artifact(f"model-{self.run.name}", type="model", metadata=dict(metadata))
        for path in paths:
            # The run directory keeps the file, so W&B needs no copy of it.
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
        self.run.log_artifact(artifact)

    @_harmless
    def log_comparison(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], shown: Path
    ) -> None:
        """Record a table of runs, and the page or figure that compares them."""
        import wandb

        media: Any
        if shown.suffix == ".png":
            media = wandb.Image(str(shown))
        else:
            media = wandb.Html(shown.read_text(encoding="utf-8"), inject=False)
        self.run.log({"runs": _table(",".join(columns), rows), "comparison": media})

    def finish(self, ok: bool = True) -> None:
        """End the W&B run and its helper process, after uploading what is left if online."""
        run, self.run = self.run, None
        if run is None:
            return
        try:
            _close(run, exit_code=0 if ok else 1)
        except (Exception, SystemExit) as error:
            _warn("W&B did not finish", error)


def start_tracking(mode: str, run_dir: Path, tracked: TrackedRun) -> Tracker:
    """Start a W&B run whose data goes to the folder `wandb` of `run_dir`.

    If the server does not answer within 20 seconds, or refuses the credentials, the run is recorded
    offline. If that fails, too, the tracker does nothing. WANDB_PROJECT and WANDB_ENTITY are
    respected. The mode "disabled" does not import wandb.
    """
    data_dir = str((run_dir / "wandb").resolve())
    os.environ.update(
        WANDB_SILENT="true",  # also the messages of login
        WANDB_ERROR_REPORTING="false",
        WANDB_DATA_DIR=data_dir,  # copies of images that wait for `wandb sync`
        WANDB_CACHE_DIR=data_dir,
    )
    mode = choose_mode(mode)
    if mode == "disabled":
        return Tracker()
    run = first_error = None
    for attempt in ("online", "offline") if mode == "online" else ("offline",):
        try:
            run = _open_run(attempt, run_dir, tracked)
            break
        except (Exception, SystemExit) as error:
            first_error = first_error or error
    if first_error is not None:
        _warn("W&B records offline" if run else "W&B is not recording", first_error)
    return Tracker(run, _make_hint(run, run_dir) if run else (), tracked.epochs_before)


def track_comparison(
    mode: str,
    directory: Path,
    tracked: TrackedRun,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    shown: Path,
) -> None:
    """Record a table of runs, and the page or PNG that compares them, as a W&B run of its own."""
    tracker = start_tracking(mode, directory, tracked)
    tracker.log_comparison(columns, rows, shown)
    tracker.finish()
    for line in tracker.hint:
        say(line)


def _open_run(mode: str, run_dir: Path, tracked: TrackedRun) -> Any:
    """Return a new wandb.Run that records nothing but what it is given."""
    exit_function, exception_hook = sys.exit, sys.excepthook
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
                stop_fn=lambda: None,  # by default the web page's stop button interrupts training
                console="off",
                save_code=False,
                disable_code=True,
                disable_git=True,
                host="",
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
    finally:
        # W&B wraps these to learn the exit code; finish() tells it instead.
        sys.exit, sys.excepthook = exit_function, exception_hook
    run.define_metric("epoch/epoch")
    run.define_metric("epoch/*", step_metric="epoch/epoch")
    run.define_metric("epoch/val_accuracy", step_metric="epoch/epoch", summary="max")
    return run


def _close(run: Any, exit_code: int) -> None:
    """End the run and the helper process, which otherwise prints when Python exits."""
    import wandb

    try:
        run.finish(exit_code=exit_code)
    finally:
        wandb.teardown()


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


def _warn(outcome: str, error: BaseException) -> None:
    """Print one line on a failure inside W&B."""
    reason = printable(" ".join(str(error).split()), 200)
    warn(f"{outcome} ({type(error).__name__}: {reason}); the run itself is not affected")
