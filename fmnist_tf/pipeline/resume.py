"""Continue an unfinished run: find it, and check that nothing has changed since it began."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fmnist_tf
from fmnist_tf.cli.terminal import say, warn
from fmnist_tf.errors import RunExistsError, UsageError, printable
from fmnist_tf.pipeline.resolve import Request
from fmnist_tf.pipeline.saved_run import find_run, resume_command
from fmnist_tf.results.provenance import describe_versions
from fmnist_tf.results.rundir import CHECKPOINTS, CONFIG, RunDir, check_name, check_plain
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.cpu import usable_cpus
from fmnist_tf.system.files import json_digest, remove, remove_leftovers
from fmnist_tf.training import cluster
from fmnist_tf.training.checkpoint import CheckpointDir

if TYPE_CHECKING:
    from fmnist_tf.pipeline.prepare import Experiment

_COMPUTING = ("tensorflow", "keras", "numpy", "ml_dtypes")


def find_unfinished(request: Request) -> RunDir | None:
    """Return the run that the request continues: of --resume, or of --run if it was begun.

    Raises:
        UsageError: --resume names no run, or goes with --run or --recipe.
        RunExistsError: the run is finished, or --run names something else.
    """
    if request.resume is not None:
        if request.run is not None or request.recipe is not None:
            raise UsageError("--resume RUN: expected without --run and --recipe, as RUN has both")
        directory = find_run(request.resume, request.runs_dir)
    elif request.run is not None:
        check_plain(request.run)
        directory = RunDir(request.runs_dir / request.run)
    else:
        return None
    if directory.is_complete:  # a kill after DONE.json can have left these
        remove_leftovers(directory.path)
        remove(directory.file(CHECKPOINTS))
    if request.run is not None and not directory.is_unfinished:
        check_name(request.runs_dir, request.run)
        return None
    if directory.is_complete:
        raise RunExistsError(f"{directory.path}: the run is finished; nothing is left to do")
    return directory


@contextmanager
def locked_unfinished(request: Request) -> Iterator[RunDir | None]:
    """Yield the run that the request continues, locked; None if it begins one."""
    unfinished = find_unfinished(request)
    with unfinished.locked() if unfinished else nullcontext():
        if unfinished is not None and unfinished.is_complete:  # by the process that held it
            find_unfinished(request)
        yield unfinished


def open_checkpoints(directory: RunDir, experiment: Experiment, request: Request) -> CheckpointDir:
    """Find where a run continues, after a check that nothing has changed since it began.

    Where that is, and which changes were accepted, is added to the resumption of this process.

    Raises:
        UsageError: something has changed, or no checkpoint is valid.
    """
    checkpoints = CheckpointDir(directory.file(CHECKPOINTS), request.checkpoint_seconds)
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
    accepts_changes, changes, where = request.accept_changes, [], "the start"
    if directory.file(CONFIG).exists():
        then = RunConfig.from_json(directory.read_json(CONFIG))
        changes += _find_changes(then.to_json(), experiment.config.to_json())
    if checkpoints.newest is not None:
        state = checkpoints.newest.state
        where = f"epoch {state['position']['epoch']}, after step {state['position']['step']}"
        if state["is_finished"]:
            where = "the end of its training"
            accepts_changes &= not changes  # no epoch would use other settings
        changes += _find_changes(state["conditions"], describe_conditions(experiment))
    if changes and not accepts_changes:
        raise UsageError(
            f"{directory.path} was begun under other conditions; it would not end as if it had "
            "never been stopped:",
            *changes,
            f"Restore them, or continue with `{resume_command(directory)} --accept-changes`, or "
            "begin another run with --run NAME",
        )
    if resumptions := experiment.invocation.resumptions:  # the last is that of this process
        resumptions[-1] |= {"from": where, "accepted_changes": changes}
        say(f"run: {directory.path}, continued from {where}")
    return checkpoints


def describe_conditions(experiment: Experiment) -> dict[str, Any]:
    """Return what must be the same for a resumed run to end with the bits of an undisturbed one."""
    from fmnist_tf.training.features import describe_processor

    network, data = experiment.network, experiment.data
    return {
        "data, SHA-256": list(data.dataset.sha256),
        **{f"{Path(p.path).name}, SHA-256": p.sha256 for f in data.dataset.files for p in f.parts},
        "split, SHA-256": data.splits.digest,
        "backbone weights": [network.weights.kind, network.weights.sha256],
        "parent's model, SHA-256": network.parent.model_sha256 if network.parent else None,
        "compute precision": network.precision[0],
        "engine of backbone features": network.engine,
        "fmnist_tf, SHA-256 of its code": _digest_code(),
        "Python": platform.python_version(),
        **describe_versions(_COMPUTING),
        "processors": len(usable_cpus()),
        "processor": describe_processor(),
    }


def require_same_work(experiment: Experiment) -> None:
    """Check that all workers would train the same network on the same data.

    Raises:
        UsageError: they would not.
    """
    from fmnist_tf.model.phases import digest_weights

    workers = cluster.current()
    if workers.n_workers == 1:
        return
    own = ("processors", "processor", "data", "test_data", "labels", "cache", "weights", "parent")
    facts = {**experiment.config.to_json(), **describe_conditions(experiment)}
    facts = {name: value for name, value in facts.items() if name not in own}
    facts["features are to be cached"] = experiment.config.cache != "off"
    initial = json_digest(digest_weights(experiment.network.classifier))
    workers.require_same({**facts, "initial weights, SHA-256": initial})


def _find_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line with both values for each entry that differs."""
    return [
        f"{name}: expected {_show(then.get(name))}, found {_show(now.get(name))}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]


def _show(value: Any) -> str:
    return printable("none" if value is None else str(value), 400)


def _digest_code() -> str:
    """Return the SHA-256 of the package's modules, which change without a new version."""
    digest, folder = hashlib.sha256(), Path(fmnist_tf.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)} ".encode() + content)
    return digest.hexdigest()
