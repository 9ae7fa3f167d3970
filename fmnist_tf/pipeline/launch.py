"""A request -> a complete run: what `python -m fmnist_tf.train` and `fmnist_tf.train` do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tf.cli.terminal import log_to, say
from fmnist_tf.pipeline.prepare import Experiment, prepare_network, read_data
from fmnist_tf.pipeline.record import Invocation, start_invocation
from fmnist_tf.pipeline.resolve import Request, naming_parent, read_settings
from fmnist_tf.pipeline.resume import find_unfinished, open_checkpoints
from fmnist_tf.reporting.tracking import TrackingOptions
from fmnist_tf.results.provenance import command_line
from fmnist_tf.results.rundir import CONFIG, RunDir
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.startup import import_tensorflow
from fmnist_tf.training.cluster import Cluster

if TYPE_CHECKING:
    from fmnist_tf.pipeline.cut_search import CutSearch
    from fmnist_tf.results.evaluation import Evaluation


@dataclass(frozen=True)
class _Prepared:
    experiment: Experiment
    invocation: Invocation
    command: str
    search: CutSearch | None


def launch(
    request: Request, arguments: Sequence[str], workers: Cluster | None = None
) -> tuple[RunDir, Evaluation, str]:
    """Begin a run or continue an unfinished one, and end with a complete run directory.

    Args:
        request: what is wanted.
        arguments: of the command line that asks for the same, for provenance.json.
        workers: of which this process is the chief; None: it is alone.

    Returns:
        The run, its test evaluation, and a line that names data and initial weights.

    Raises:
        FmnistError: wrong settings or data; the run is in use or exists; a loss that is NaN.
        OSError: the disk is full or fails.
    """
    workers = workers or Cluster()
    with ExitStack() as held:
        held.enter_context(workers.watching())
        unfinished = held.enter_context(_locked_unfinished(request))
        prepared = _prepare(request, arguments, unfinished, workers)
        experiment, invocation = prepared.experiment, prepared.invocation
        directory = unfinished
        if directory is None:
            name, phase = experiment.data.dataset.name, experiment.config.phase
            directory = RunDir.create(request.runs_dir, request.run, phase, name)
            held.enter_context(directory.locked())
            say(f"run: {directory.path}")
        if prepared.search is not None:
            prepared.search.write(directory, experiment.heading)
        checkpoints, resumption = open_checkpoints(
            directory,
            experiment,
            request.checkpoint_seconds,
            accepts_changes=request.accept_changes,
        )
        if unfinished is not None:
            say(f"run: {directory.path}, continued from {resumption['from']}")
            invocation.resumptions.append({**resumption, "command": prepared.command})
        from fmnist_tf.pipeline.run import run_phase  # imports TensorFlow

        test = run_phase(experiment, directory, invocation, checkpoints)
        workers.wait_for_all()
        return directory, test, experiment.sources


def work(request: Request, arguments: Sequence[str], workers: Cluster) -> None:
    """Train as a worker that is not the chief, whose run it does not touch.

    Its messages go to a file in the folder of runs too: NAME.worker-1.log, where NAME is that of
    --run or --resume, else the time.

    Raises:
        FmnistError, OSError: as `launch`; also if the chief ends early.
    """
    name = request.run or Path(request.resume or f"{datetime.now(UTC):%Y%m%d-%H%M%S}").name
    log_to(request.runs_dir / f"{name}.worker-{workers.index}.log")
    with workers.watching():
        prepared = _prepare(request, arguments, find_unfinished(request), workers)
        from fmnist_tf.pipeline.run import run_worker  # imports TensorFlow

        run_worker(prepared.experiment, prepared.invocation, request.runs_dir)
        workers.wait_for_all()


def check(request: Request) -> RunConfig:
    """Check data and settings as `launch` does, train nothing, and return the complete settings."""
    with _locked_unfinished(request) as unfinished:
        return _prepare(request, (), unfinished, Cluster()).experiment.config


@contextmanager
def _locked_unfinished(request: Request) -> Iterator[RunDir | None]:
    """Yield the run that the request continues, locked; None if it begins one."""
    unfinished = find_unfinished(request)
    with unfinished.locked() if unfinished else nullcontext():
        if unfinished is not None and unfinished.is_complete:  # by the process that held it
            find_unfinished(request)
        yield unfinished


def _prepare(
    request: Request, arguments: Sequence[str], unfinished: RunDir | None, workers: Cluster
) -> _Prepared:
    """Read settings and data, and build the network.

    Cheap checks come first; importing TensorFlow takes seconds and comes last.
    """
    begun: dict[str, Any] = {}
    if unfinished is not None and unfinished.file(CONFIG).exists():
        begun = unfinished.read_json(CONFIG)
        if request.resume is not None:
            request = replace(request, recipe=str(unfinished.file(CONFIG)))
    settings = read_settings(request, default_parent=begun.get("parent"))
    (config, lines), parent = settings.complete(), settings.parent
    for line in () if request.resume is not None else lines:
        say(line)
    command = command_line("fmnist_tf.train", naming_parent(arguments, request.from_run, config))
    invocation = start_invocation(command, TrackingOptions.of(request), unfinished)
    cache_dir, clock = config.cache_dir(request.runs_dir), invocation.clock
    data = read_data(config, parent, cache_dir, clock)
    with clock.stage("import_tensorflow"):
        import_tensorflow(lambda: workers.start(say))
    search = None
    if config.cut == "auto":
        if begun:
            found = {name: begun.get(name) for name in ("cut", "image_size")}
            config = config.replace(**found, time_budget=None)
        else:
            if workers.is_chief:
                from fmnist_tf.pipeline.cut_search import search_cut

                with clock.stage("cut_search"):
                    search = search_cut(config, data)
                config = search.apply(config)
            found = {"cut": config.cut, "image_size": config.image_size}
            config = config.replace(**workers.json_from_chief(found), time_budget=None)
    from fmnist_tf.pipeline.train_state import require_same_work

    with workers.scope():
        experiment = prepare_network(config, data, parent, clock, invocation.engine)
    require_same_work(experiment)
    return _Prepared(experiment, invocation, command, search)
