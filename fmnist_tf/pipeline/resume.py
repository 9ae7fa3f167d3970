"""Continue an unfinished run: find it, and check that nothing has changed since it began."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fmnist_tf.cli.terminal import warn
from fmnist_tf.errors import RunExistsError, UsageError
from fmnist_tf.pipeline.resolve import Request
from fmnist_tf.pipeline.saved_run import find_run, resume_command
from fmnist_tf.results.rundir import CHECKPOINTS, CONFIG, RunDir, check_name, check_plain
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.files import remove, remove_leftovers

if TYPE_CHECKING:
    from fmnist_tf.pipeline.prepare import Experiment
    from fmnist_tf.training.checkpoint import CheckpointDir


def find_unfinished(request: Request) -> RunDir | None:
    """Return the run that the request continues: of --resume, or of --run if it was begun.

    Raises:
        UsageError: --resume names no run, or goes with --run or --recipe.
        RunExistsError: the run is finished, or --run names something else.
    """
    if not request.checkpoint_seconds >= 0:
        raise UsageError(
            f"--checkpoint-seconds {request.checkpoint_seconds}: expected a number from 0"
        )
    if request.resume is not None:
        if request.run is not None or request.recipe is not None:
            raise UsageError("--resume RUN: expected without --run and --recipe, as RUN has both")
        directory = find_run(request.resume, request.runs_dir)
        if directory.is_complete:
            _tidy(directory)
            raise RunExistsError(f"{directory.path}: the run is finished; nothing is left to do")
        return directory
    if request.run is None:
        return None
    check_plain(request.run)
    directory = RunDir(request.runs_dir / request.run)
    if not directory.is_unfinished:
        if directory.is_complete:
            _tidy(directory)
        check_name(request.runs_dir, request.run)
        return None
    return directory


def _tidy(directory: RunDir) -> None:
    """Remove what a kill after DONE.json has left of a run."""
    remove_leftovers(directory.path)
    remove(directory.file(CHECKPOINTS))


def open_checkpoints(
    directory: RunDir, experiment: Experiment, seconds: float, *, accepts_changes: bool
) -> tuple[CheckpointDir, dict[str, Any]]:
    """Find where a run continues, after a check that nothing has changed since it began.

    Args:
        directory: of the run, locked; a new one is empty.
        experiment: what would be trained now.
        seconds: between two checkpoints within an epoch.
        accepts_changes: whether changes are accepted.

    Returns:
        The checkpoints of the run; and when and where it continues, and the accepted changes.

    Raises:
        UsageError: something has changed, or no checkpoint is valid.
    """
    from fmnist_tf.pipeline.train_state import describe_conditions, find_changes
    from fmnist_tf.training.checkpoint import CheckpointDir

    checkpoints = CheckpointDir(directory.file(CHECKPOINTS), seconds)
    remove_leftovers(directory.path)
    remove_leftovers(checkpoints.path)
    problems = checkpoints.find()
    if problems and checkpoints.newest is None:
        raise UsageError(
            *problems,
            f"{checkpoints.path}: expected a valid checkpoint, found none; to train again from the "
            "start, delete this folder",
        )
    for problem in problems:
        warn(f"{problem}; the run continues from the checkpoint before it")
    changes, where = [], "the start"
    if directory.file(CONFIG).exists():
        then = RunConfig.from_json(directory.read_json(CONFIG))
        changes += find_changes(then.to_json(), experiment.config.to_json())
    if checkpoints.newest is not None:
        state = checkpoints.newest.state
        where = f"epoch {state['position']['epoch']}, after step {state['position']['step']}"
        if state["is_finished"]:
            where = "the end of its training"
            accepts_changes &= not changes  # no epoch would use other settings
        changes += find_changes(state["conditions"], describe_conditions(experiment))
    if changes and not accepts_changes:
        raise UsageError(
            f"{directory.path} was begun under other conditions; it would not end as if it had "
            "never been stopped:",
            *changes,
            f"Restore them, or continue with `{resume_command(directory)} --accept-changes`, or "
            "begin another run with --run NAME",
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return checkpoints, {"at": now, "from": where, "accepted_changes": changes}
