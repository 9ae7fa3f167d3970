"""The Weights & Biases mirror of a run: the files on disk are the truth, this is a copy to look at.

In: epochs, evaluations, predictions, files of a finished run. Out: an online or offline W&B run
whose local data lies in `<run directory>/wandb`. This module must not know where the epochs come
from, and nothing that happens here may end, delay for long, or change the outcome of a training
run: whatever W&B does wrong gives one warning, and from then on the tracker does nothing.

Recorded are the settings given, metrics, figures and the model. Not recorded: the command line, the
environment, git state, source code, installed packages, host and user names, console output.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.errors import printable
from fmnist_tf.results.analysis import measure_calibration, rank_confusions, score_classes
from fmnist_tf.results.evaluation import Evaluation, losses, worst_mistakes
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.settings.config import WANDB_PROJECT

MODES = ("auto", "online", "offline", "disabled")

_INIT_TIMEOUT_SECONDS = 20  # of trying to reach the server before recording offline instead
_FINISH_TIMEOUT_SECONDS = 300  # of uploading at the end before leaving the rest to `wandb sync`
_MAX_CONFUSION_CLASSES = 100  # W&B shows tables of at most 10,000 rows, one for each cell


def choose_mode(mode: str) -> str:
    """Return `online`, `offline` or `disabled`; never asks anybody anything, never fails.

    `auto` follows WANDB_MODE when that names one of the three, else is online exactly when
    credentials are configured. Whether the server accepts them is seen later.
    """
    if mode != "auto":
        return mode
    wanted = os.environ.get("WANDB_MODE", "").lower()
    if wanted in MODES[1:]:
        return wanted
    try:
        import wandb

        logged_in = wandb.login(prompt=False, verify=False)
    except (Exception, SystemExit):
        return "offline"
    return "online" if logged_in else "offline"


class Tracker:
    """A W&B run that cannot do harm; inert when there is none or after the first failure."""

    def __init__(
        self,
        run: Any,
        warn: Callable[[str], None],
        hint: tuple[str, ...] = (),
        epochs_before: int = 0,
    ) -> None:
        self._run = run  # wandb.Run, or None once inert
        self._warn = warn
        self._hint = hint
        self._epochs_before = epochs_before

    @property
    def hint(self) -> tuple[str, ...]:
        """Lines that say how to look at what was recorded; empty when there is nothing."""
        return self._hint

    def log_epoch(self, row: HistoryRow) -> None:
        """Record one epoch under `epoch/...`; numbers that do not exist (NaN) are left out."""
        numbers = {name: value for name, value in asdict(row).items() if name != "phase"}
        numbers["epoch"] += self._epochs_before
        finite = {f"epoch/{name}": x for name, x in numbers.items() if math.isfinite(x)}
        self._attempt(lambda run: run.log(finite))

    def log_results(
        self,
        evaluations: Mapping[str, Evaluation],
        *,
        class_names: Sequence[str],
        pixels: np.ndarray,
        labels: np.ndarray,
        probabilities: np.ndarray,
        mistakes: int = 100,
        figures: Sequence[Path] = (),
        model_files: Sequence[Path] = (),
        model_facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the end of a run: figures of merit, tables, figures, the model.

        Args:
            evaluations: by split, such as `val` and `test`.
            class_names: K names.
            pixels: (N, 784) uint8, the images of the predictions.
            labels: (N,) integers 0..K-1, their truth.
            probabilities: (N, K) floats 0..1.
            mistakes: how many of the worst go into the table, at most 200.
            figures: PNG files, recorded under their stems.
            model_files: the model and what belongs to it; they stay where they are until they are
                uploaded.
            model_facts: JSON-able metadata of the model; must hold no secret.
        """

        def record(run: Any) -> None:
            import PIL.Image
            import wandb

            names = [printable(name) for name in class_names]
            worst = worst_mistakes(labels, probabilities, min(mistakes, 200))
            for split, evaluation in evaluations.items():
                facts = {"accuracy": evaluation.accuracy, "loss": evaluation.loss}
                facts |= {"correct": evaluation.correct, "total": evaluation.total}
                facts["macro_f1"] = score_classes(evaluation.confusion).macro_f1
                run.summary.update({f"{split}_{name}": value for name, value in facts.items()})
            calibration = measure_calibration(labels, probabilities)
            run.summary.update({"test_expected_calibration_error": calibration.ece})
            guesses = probabilities.argmax(axis=1)
            media: dict[str, Any] = {
                f"figure/{path.stem}": wandb.Image(str(path)) for path in figures
            }
            if len(names) <= _MAX_CONFUSION_CLASSES:
                media["confusion_matrix"] = wandb.plot.confusion_matrix(
                    y_true=labels.tolist(), preds=guesses.tolist(), class_names=names
                )
            table = wandb.Table(columns=["image", "truth", "guess", "probability", "loss"])
            for index, loss in zip(worst, losses(labels[worst], probabilities[worst]), strict=True):
                image = wandb.Image(PIL.Image.fromarray(pixels[index].reshape(28, 28)))
                truth, guess = int(labels[index]), int(guesses[index])
                share = float(probabilities[index, guess])
                table.add_data(image, names[truth], names[guess], share, float(loss))
            media["worst_mistakes"] = table
            confusion = Evaluation.from_probabilities(labels, probabilities).confusion
            scores = score_classes(confusion)
            rows = zip(
                names, scores.precision, scores.recall, scores.f1, scores.support, strict=True
            )
            media["classes"] = wandb.Table(
                columns=["class", "precision", "recall", "f1", "images"],
                data=[
                    [name, *(number.item() for number in numbers)]
                    for name, *numbers in rows
                    if numbers[-1]  # a class without test images has no scores
                ],
            )
            media["confused_pairs"] = wandb.Table(
                columns=["truth", "guess", "count", "share"],
                data=[
                    [names[pair.truth], names[pair.guess], pair.count, pair.share]
                    for pair in rank_confusions(confusion, 20)
                ],
            )
            run.log(media)
            if model_files:
                artifact = wandb.Artifact(
                    f"model-{run.name}", type="model", metadata=dict(model_facts or {})
                )
                for path in model_files:
                    # The run directory keeps the file, so W&B needs no second copy of it.
                    artifact.add_file(str(path), policy="immutable", skip_cache=True)
                run.log_artifact(artifact)

        self._attempt(record)

    def log_comparison(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], shown: Path
    ) -> None:
        """Record a table of runs, a row each, and the page or figure that compares them."""

        def record(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            media: Any
            if shown.suffix == ".png":
                media = wandb.Image(str(shown))
            else:
                media = wandb.Html(shown.read_text(encoding="utf-8"), inject=False)
            run.log({"runs": table, "comparison": media})

        self._attempt(record)

    def finish(self, ok: bool = True) -> None:
        """End the W&B run and its helper process, after uploading what is left when online."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            _close(run, exit_code=0 if ok else 1)
        except (Exception, SystemExit) as error:
            self._warn(_describe_failure("W&B did not finish", error))

    def _attempt(self, action: Callable[[Any], None]) -> None:
        """Do `action` with the W&B run; on a failure warn once and give W&B up."""
        if self._run is None:
            return
        try:
            action(self._run)
        except (Exception, SystemExit) as error:
            run, self._run = self._run, None
            self._warn(_describe_failure("W&B stopped recording", error))
            with contextlib.suppress(Exception, SystemExit):
                _close(run, exit_code=1)


def start_tracking(
    mode: str,
    run_dir: Path,
    *,
    group: str,
    job_type: str,
    name: str,
    config: Mapping[str, Any],
    warn: Callable[[str], None],
    epochs_before: int = 0,
    project: str = WANDB_PROJECT,
) -> Tracker:
    """Open a W&B run, or return an inert tracker after one warning when that fails.

    A server that cannot be reached within 20 seconds, or credentials it refuses, turn online into
    offline. WANDB_PROJECT and WANDB_ENTITY are respected.

    Args:
        mode: one of `MODES`; `disabled` does not even import wandb.
        run_dir: the run directory; the data goes to its `wandb` folder.
        group: the experiment, shared by the phases that belong together.
        job_type: the phase.
        name: the run's name.
        config: JSON-able settings; must hold no secret.
        warn: takes one line of text.
        epochs_before: of the phases that this run continues, so that the group's curves join.
        project: the W&B project, unless WANDB_PROJECT names another.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, found {mode!r}")
    data_dir = str((run_dir / "wandb").resolve())
    os.environ.update(
        WANDB_SILENT="true",  # all its messages, those of login too
        WANDB_ERROR_REPORTING="false",
        WANDB_DATA_DIR=data_dir,  # copies of table images that wait for `wandb sync`
        WANDB_CACHE_DIR=data_dir,
    )
    mode = choose_mode(mode)
    if mode == "disabled":
        return Tracker(None, warn)
    opened, first_error = None, None
    for attempt in ("online", "offline") if mode == "online" else ("offline",):
        try:
            opened = _open_run(attempt, run_dir, project, group, job_type, name, config)
            break
        except (Exception, SystemExit) as error:
            first_error = first_error or error
    if first_error is not None:
        outcome = "W&B is not recording" if opened is None else "W&B records offline"
        warn(_describe_failure(outcome, first_error))
    run, hint = opened or (None, ())
    return Tracker(run, warn, hint, epochs_before)


def _open_run(
    mode: str,
    run_dir: Path,
    project: str,
    group: str,
    job_type: str,
    name: str,
    config: Mapping[str, Any],
) -> tuple[Any, tuple[str, ...]]:
    """Return a new W&B run that records nothing but what it is given, and the hint for it."""
    exit_function, exception_hook = sys.exit, sys.excepthook
    try:
        import wandb

        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("not logged in; run `wandb login` first, or use --wandb offline")
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or project,
            mode=mode,  # type: ignore[arg-type]
            dir=str(run_dir.resolve()),
            group=group,
            job_type=job_type,
            name=name,
            config=dict(config),
            settings=wandb.Settings(
                use_dot_wandb=False,
                reinit="finish_previous",
                init_timeout=_INIT_TIMEOUT_SECONDS,
                finish_timeout=_FINISH_TIMEOUT_SECONDS,
                finish_timeout_raises=True,
                stop_fn=_ignore_stop,
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
        # W&B wraps these to learn the exit code; it is told by finish() instead.
        sys.exit, sys.excepthook = exit_function, exception_hook
    run.define_metric("epoch/epoch")
    run.define_metric("epoch/*", step_metric="epoch/epoch")
    run.define_metric("epoch/val_accuracy", step_metric="epoch/epoch", summary="max")
    return run, _make_hint(run, run_dir)


def _close(run: Any, exit_code: int) -> None:
    """End the run and the helper process, which would otherwise speak up when Python exits."""
    import wandb

    try:
        run.finish(exit_code=exit_code)
    finally:
        wandb.teardown()


def _ignore_stop() -> None:
    """Leave the stop button of the web page without effect: by default it interrupts training."""


def _make_hint(run: Any, run_dir: Path) -> tuple[str, ...]:
    """Say where to look at the run, as commands that can be pasted."""
    if not run.offline:
        return (f"W&B: {run.url}",)
    program = "wandb"
    beside = Path(sys.executable).with_name(program)
    if shutil.which(program) != str(beside) and beside.is_file():
        program = shlex.quote(str(beside))  # the virtual environment is not activated
    where = shlex.quote(str(run_dir / "wandb" / Path(run.dir).parent.name))
    return (
        f"W&B, view in the terminal:  {program} leet {where}",
        f"W&B, upload after a login:  {program} sync {where}",
    )


def _describe_failure(outcome: str, error: BaseException) -> str:
    """Return one line for a failure inside W&B."""
    reason = printable(" ".join(str(error).split()), 200)
    return f"{outcome} ({type(error).__name__}: {reason}); the run itself is not affected"
