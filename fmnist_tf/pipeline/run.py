"""One run: its settings written, training, the end, and the trackers around it all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fmnist_tf.cli.terminal import say
from fmnist_tf.errors import FmnistError
from fmnist_tf.pipeline.finish import finish
from fmnist_tf.pipeline.fit import fit
from fmnist_tf.pipeline.prepare import Experiment
from fmnist_tf.pipeline.record import (
    Invocation,
    tracked_settings,
    write_provenance,
    write_settings,
)
from fmnist_tf.pipeline.saved_run import resume_command
from fmnist_tf.reporting.tracking import TrackedRun, Trackers, start_tracking
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import CHECKPOINTS, RunDir
from fmnist_tf.system.memory import release_memory
from fmnist_tf.training.checkpoint import CheckpointDir


def run_phase(
    experiment: Experiment,
    directory: RunDir,
    invocation: Invocation,
    checkpoints: CheckpointDir | None = None,
) -> Evaluation:
    """Train, choose the epoch on val, test once, and leave a complete run directory.

    Args:
        experiment: what is trained.
        directory: of the run, locked.
        invocation: how the run was started.
        checkpoints: of the run, with the one to continue; None: begin what is not resumed.

    Returns:
        The test evaluation.
    """
    kept = checkpoints or CheckpointDir(directory.file(CHECKPOINTS))
    try:
        with _tracking(experiment, directory, invocation) as tracker:
            on = tracker.log_epoch, kept, tracker.log_step
            trained = fit(experiment, directory, invocation, *on)
            release_memory()
            test = finish(experiment, directory, invocation, trained, tracker)
    except FmnistError:  # such as a loss that is NaN, which it would be again
        raise
    except BaseException as error:
        if checkpoints is not None:
            kept.find()
            n_epochs = len(kept.newest.state["history"]) if kept.newest else 0
            command = resume_command(directory)
            error.add_note(f"{directory.path} keeps {n_epochs} epochs; `{command}` continues it")
        raise
    kept.remove()
    for line in tracker.hint:
        say(line)
    return test


def run_worker(experiment: Experiment, invocation: Invocation, runs_dir: Path) -> None:
    """Train as a worker that is not the chief: what it writes is deleted in the end."""
    with tempfile.TemporaryDirectory() as folder:
        fit(experiment, _OwnDir(Path(folder), runs_dir), invocation, lambda row: None, None)


class _OwnDir(RunDir):
    """A worker's folder in place of the run directory."""

    def __init__(self, path: Path, runs_dir: Path) -> None:
        super().__init__(path)
        self._runs_dir = runs_dir

    @property
    def runs_dir(self) -> Path:
        """The folder of runs, where cached features are."""
        return self._runs_dir


def run_trial(
    experiment: Experiment,
    directory: RunDir,
    invocation: Invocation,
    on_epoch: Callable[[HistoryRow], None],
) -> Evaluation:
    """Train and choose the epoch on val; write no model and read no test image.

    Args:
        experiment: what is trained.
        directory: gets settings, history, provenance, evaluation.json with val alone, DONE.json.
        invocation: how the sweep was started.
        on_epoch: called with each row of the history; what it raises ends the trial.

    Returns:
        The val evaluation.
    """
    with _tracking(experiment, directory, invocation) as tracker:

        def record(row: HistoryRow) -> None:
            tracker.log_epoch(row)
            on_epoch(row)

        trained = fit(experiment, directory, invocation, record, None, tracker.log_step)
        labels = experiment.data.val_labels
        val = Evaluation.from_probabilities(labels, trained.val_probabilities)
        write_provenance(experiment, directory, invocation, trained)
        facts = {"chosen_epoch": trained.chosen_epoch, "val": val.to_json()}
        directory.write_json("evaluation.json", facts)
        directory.write_done()
    return val


@contextmanager
def _tracking(
    experiment: Experiment, directory: RunDir, invocation: Invocation
) -> Iterator[Trackers]:
    """Write what is known before training, and yield the run's trackers."""
    write_settings(experiment, directory)
    write_provenance(experiment, directory, invocation, None)
    parent = experiment.network.parent
    tracked = TrackedRun(
        name=directory.full_name,
        group=invocation.wandb_group or (parent.directory if parent else directory).group,
        job_type=experiment.config.phase,
        config=tracked_settings(experiment),
        wandb_id=invocation.wandb_id,
        epochs_before=parent.history[-1].epoch if parent else 0,
        parent=parent.directory.full_name if parent else None,
    )
    tracker = start_tracking(invocation.tracking, directory.path, tracked)
    succeeded = False
    try:
        yield tracker
        succeeded = True
    finally:
        tracker.finish(ok=succeeded)
