"""A request -> a complete run: what `python -m fmnist_tf.train` and `fmnist_tf.train` do.

Importing TensorFlow takes seconds: it is imported inside functions, after the checks that need none
of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fmnist_tf.cli.terminal import log_to, say
from fmnist_tf.errors import FmnistError
from fmnist_tf.pipeline.prepare import Experiment, prepare_network, read_data
from fmnist_tf.pipeline.record import recording, start_invocation, write_provenance
from fmnist_tf.pipeline.resolve import Request, naming_parent, read_settings
from fmnist_tf.pipeline.resume import (
    find_unfinished,
    locked_unfinished,
    open_checkpoints,
    require_same_work,
)
from fmnist_tf.pipeline.saved_run import resume_command
from fmnist_tf.reporting.tracking import Trackers, TrackingOptions
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.provenance import command_line
from fmnist_tf.results.rundir import CHECKPOINTS, CONFIG, RunDir
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.memory import release_memory
from fmnist_tf.system.startup import import_tensorflow
from fmnist_tf.training.checkpoint import CheckpointDir
from fmnist_tf.training.cluster import Cluster


def launch(
    request: Request, arguments: Sequence[str], workers: Cluster | None = None
) -> tuple[RunDir, Evaluation]:
    """Begin a run or continue an unfinished one; return its complete directory and its test.

    `arguments` are those of a command that asks for the same, for provenance.json. This process is
    the chief of `workers`, or alone.

    Raises:
        FmnistError: wrong settings or data; the run is in use or exists; a loss that is NaN.
        OSError: the disk is full or fails.
    """
    workers = workers or Cluster()
    with ExitStack() as held:
        held.enter_context(workers.watching())
        directory = held.enter_context(locked_unfinished(request))
        experiment = _prepare(request, arguments, directory, workers)
        if directory is None:
            name, phase = experiment.data.dataset.name, experiment.config.phase
            directory = RunDir.create(request.runs_dir, request.run, phase, name)
            held.enter_context(directory.locked())
            say(f"run: {directory.path}")
        checkpoints = open_checkpoints(directory, experiment, request)
        test = run_phase(experiment, directory, checkpoints)
        workers.wait_for_all()
        return directory, test


def work(request: Request, arguments: Sequence[str], workers: Cluster) -> None:
    """Train as a worker that is not the chief, whose run it does not touch.

    Its messages go to a file in the folder of runs too: NAME.worker-1.log, where NAME is that of
    --run or --resume, else the time.

    Raises:
        FmnistError, OSError: as `launch`; also if the chief ends early.
    """
    name = request.run or Path(request.resume or f"{datetime.now(UTC):%Y%m%d-%H%M%S}").name
    log_to(request.runs_dir / f"{name}.worker-{workers.index}.log")
    with workers.watching(), TemporaryDirectory() as folder:
        experiment = _prepare(request, arguments, find_unfinished(request), workers)
        from fmnist_tf.pipeline.fit import fit

        fit(experiment, RunDir(Path(folder)), Trackers())
        workers.wait_for_all()


def check(request: Request) -> RunConfig:
    """Check data and settings as `launch` does, train nothing, and return the complete settings."""
    with locked_unfinished(request) as unfinished:
        return _prepare(request, (), unfinished, Cluster()).config


def _prepare(
    request: Request, arguments: Sequence[str], unfinished: RunDir | None, workers: Cluster
) -> Experiment:
    """Read settings and data, and build the network; cheap checks come first."""
    begun: dict[str, Any] = {}
    if unfinished is not None and unfinished.file(CONFIG).exists():
        begun = unfinished.read_json(CONFIG)
        if request.resume is not None:
            request = replace(request, recipe=str(unfinished.file(CONFIG)))
    settings, parent = read_settings(request, default_parent=begun.get("parent"))
    config, lines = settings.complete()
    for line in () if request.resume is not None else lines:
        say(line)
    command = command_line("fmnist_tf.train", naming_parent(arguments, request.from_run, config))
    invocation = start_invocation(command, TrackingOptions.of(request), unfinished)
    data = read_data(config, parent, request.runs_dir, invocation.clock)
    with invocation.clock.stage("import_tensorflow"):
        import_tensorflow(lambda: workers.start(say))
    search = None
    if config.cut == "auto":
        if not begun and workers.is_chief:
            from fmnist_tf.pipeline.cut_search import search_cut

            with invocation.clock.stage("cut_search"):
                search = search_cut(config, data)
            begun = asdict(search.chosen)
        found = {name: begun.get(name) for name in ("cut", "image_size")}
        config = config.replace(**workers.json_from_chief(found), time_budget=None)
    with workers.scope():
        experiment = prepare_network(config, data, parent, invocation)
    require_same_work(experiment)
    return replace(experiment, search=search)


def run_phase(
    experiment: Experiment, directory: RunDir, checkpoints: CheckpointDir | None = None
) -> Evaluation:
    """Train, choose the epoch on val, test once, and leave a complete run directory.

    Without `checkpoints` nobody resumes what is begun here.
    """
    from fmnist_tf.pipeline.finish import finish
    from fmnist_tf.pipeline.fit import fit

    kept = checkpoints or CheckpointDir(directory.file(CHECKPOINTS))
    try:
        with recording(experiment, directory) as trackers:
            trained = fit(experiment, directory, trackers, kept)
            release_memory()
            test = finish(experiment, directory, trained, trackers)
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
    for line in trackers.hint:
        say(line)
    return test


def run_trial(
    experiment: Experiment, directory: RunDir, on_epoch: Callable[[HistoryRow], None]
) -> None:
    """Train and choose the epoch on val; write no model and read no test image.

    `on_epoch` is called with each row of the history; what it raises ends the trial.
    """
    from fmnist_tf.pipeline.fit import fit

    with recording(experiment, directory) as trackers:
        trained = fit(experiment, directory, trackers, on_epoch=on_epoch)
        labels = experiment.data.val_labels
        val = Evaluation.from_probabilities(labels, trained.val_probabilities)
        write_provenance(experiment, directory, trained)
        facts = {"chosen_epoch": trained.chosen_epoch, "val": val.to_json()}
        directory.write_json("evaluation.json", facts)
        directory.write_done()
