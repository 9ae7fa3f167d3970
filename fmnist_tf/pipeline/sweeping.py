"""A sweep from its flags to its table: plan, check, train what has no result yet, compare.

Trials share the data, the split and the cached backbone features (unless the backbone's weights are
random and seeds differ). With --seeds and no --grid nothing is chosen: each seed is then a finished
run, tested once.
"""

from __future__ import annotations

import argparse
import shlex
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from optuna import TrialPruned

from fmnist_tf.cli.parser import runs_dir_words
from fmnist_tf.cli.terminal import say, warn
from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.data.sources import Dataset
from fmnist_tf.errors import FmnistError, RunExistsError, UsageError, printable
from fmnist_tf.pipeline import run
from fmnist_tf.pipeline.prepare import RunData, prepare_network, read_data
from fmnist_tf.pipeline.record import Invocation, describe_sources
from fmnist_tf.pipeline.resolve import Request, naming_parent, read_settings
from fmnist_tf.pipeline.saved_run import SavedRun
from fmnist_tf.pipeline.study import (
    Claim,
    Space,
    SweepStudy,
    Trial,
    corners,
    create_study,
    decode,
    plan_trials,
    read_space,
    show_point,
    tabulate,
)
from fmnist_tf.reporting.tracking import TrackedRun, TrackingOptions
from fmnist_tf.reporting.trials import describe_accuracy, plot_trials, rank, summarize
from fmnist_tf.reporting.wandb_tracker import track_comparison
from fmnist_tf.results.provenance import command_line, find_caveats
from fmnist_tf.results.rundir import LOCK, SWEEP, RunDir, check_name
from fmnist_tf.settings.complete import Settings
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.settings.types import flag_of
from fmnist_tf.system.clock import StageClock
from fmnist_tf.system.files import locked
from fmnist_tf.system.memory import release_memory
from fmnist_tf.system.startup import import_tensorflow

_MAX_SEED = 2**31 - 1
_EXAMPLE = 'python -m fmnist_tf.sweep --grid "learning_rate=1e-4,3e-4 units=256,512"'


@dataclass(frozen=True)
class Sweep:
    """What the command is to do."""

    flags: argparse.Namespace
    settings: Settings  # without the grid
    parent: SavedRun | None  # the frozen run that finetune trials continue
    space: Space
    sampler: str  # grid, random or tpe
    trials: Sequence[Trial]  # as they begin
    configs: Sequence[RunConfig]  # of the points that are checked before any work
    command: str  # without secrets

    def describe(self, trial: Trial) -> str:
        """Return a trial as people see it."""
        words = show_point({**(trial.point or {}), "seed": trial.seed})
        return f"trial {trial.number} of {len(self.trials)}: {words}"


def run_sweep(flags: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Train what has no result yet, and print the results of all trials.

    Raises:
        FmnistError: wrong flags or settings, another sweep of this name, no complete trial.
        OSError: the disk is full or fails.
    """
    begun = _read_begun(flags)
    # Another run may be the newest by now.
    settings, parent = read_settings(Request.of(flags), default_parent=begun.get("parent"))
    sweep = _plan(flags, settings, parent, arguments)
    data = read_data(sweep.configs[0], parent, flags.runs_dir, StageClock())
    if not begun:
        import_tensorflow()
        _check_networks(sweep, data.dataset)
    if begun or not flags.dry_run:
        directory = _open_sweep(sweep, data)
    if flags.dry_run:
        print("\n".join(map(sweep.describe, sweep.trials)))
        return
    study, n_trials = SweepStudy(directory, sweep.space, sweep.sampler), len(sweep.trials)
    n_finished = sum(trial.state in ("complete", "pruned") for trial in study.read_trials())
    say(f"sweep: {directory.path}, {n_trials} trials, {n_finished} finished before")
    if is_new := n_finished < n_trials:
        import_tensorflow()
    with closing(study.claims()) as claims:
        for claim in claims:
            say(sweep.describe(claim.trial))
            _run_claim(sweep, study, claim, data)
    _conclude(sweep, directory, study, is_new=is_new)


def _read_begun(flags: argparse.Namespace) -> dict[str, Any]:
    """Return what the sweep of this name was begun with; empty if there is none yet."""
    if flags.run is None:
        return {}
    directory = RunDir(flags.runs_dir / flags.run)
    if directory.file(SWEEP).is_file():
        return directory.read_record(SWEEP)
    # A process that begins, or was killed in it, has made no more than the lock.
    if not directory.path.is_dir() or {p.name for p in directory.path.iterdir()} - {LOCK}:
        check_name(flags.runs_dir, flags.run)
    return {}


def _plan(
    flags: argparse.Namespace,
    settings: Settings,
    parent: SavedRun | None,
    arguments: Sequence[str],
) -> Sweep:
    """Return the plan, after a check of the flags and of the settings of each point."""
    if not flags.grid.strip() and flags.seeds is None:
        raise UsageError(f"expected --grid, or --seeds N alone. An example: {_EXAMPLE}")
    for name in ("random", "tpe", "seeds"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise UsageError(f"--{name} {value}: expected a whole number from 1")
    sampler = "random" if flags.random else "tpe" if flags.tpe else "grid"
    space, n_points, n_seeds = read_space(flags.grid), flags.random or flags.tpe, flags.seeds or 1
    if n_points and not space:
        raise UsageError(f"--{sampler}: expected with --grid, which says what to draw from")
    if clash := next((name for name in space if name in settings.given), None):
        raise UsageError(f"{flag_of(clash)}: expected once, but --grid varies it")
    if settings.seed + n_seeds - 1 > _MAX_SEED:
        raise UsageError(f"--seeds {n_seeds}: expected seeds up to {_MAX_SEED}")
    seeds = range(settings.seed, settings.seed + n_seeds)
    trials = plan_trials(space, sampler, n_points, seeds)
    if n_points and len(trials) < n_points * n_seeds:
        say(f"--{sampler} {n_points}: there are {len(trials) // n_seeds} different points")
    configs: list[RunConfig] = []
    points = [trial.point for trial in trials if trial.point is not None]
    for point in points[: len(trials) // n_seeds] or corners(space):
        try:
            config, lines = settings.complete(**decode(point))
        except UsageError as error:
            raise UsageError(f"{show_point(point)}: {error}".removeprefix(": ")) from error
        if config.cut == "auto":
            raise UsageError(
                "--cut auto: expected stages, e.g. --grid cut=conv3,conv4; "
                "`train --cut auto` finds the best one"
            )
        configs.append(config)
    for line in lines:
        if line.split(" = ")[0] not in space:
            say(line)
    command = command_line("fmnist_tf.sweep", naming_parent(arguments, flags.from_run, configs[0]))
    return Sweep(flags, settings, parent, space, sampler, trials, configs, command)


def _check_networks(sweep: Sweep, dataset: Dataset) -> None:
    """Refuse backbones, stages, heads and weights that do not exist before the sweep begins."""
    import keras

    from fmnist_tf.pipeline.network import build_network

    parent = sweep.parent
    networks = {
        (c.backbone, c.head, c.weights, c.image_size, c.cut, c.unfreeze): c for c in sweep.configs
    }
    for config in networks.values():
        # A dense layer that does not fit into memory fails its own trial only.
        config = config if parent else config.replace(units=0)
        n_classes = len(dataset.train.class_names)
        build_network(config, n_classes, parent)
        keras.backend.clear_session()


def _open_sweep(sweep: Sweep, data: RunData) -> RunDir:
    """Return the sweep's directory, made now or earlier by the same command.

    Raises:
        RunExistsError: another sweep or run has this name.
    """
    flags, parent = sweep.flags, sweep.parent
    wanted = sweep.configs[0].to_json() | {
        "data_sha256": list(data.dataset.sha256),
        "split_sha256": data.splits.digest,
        "parent_sha256": parent.model_sha256 if parent else None,
        "grid": {name: str(distribution) for name, distribution in sweep.space.items()},
        "sampler": sweep.sampler,
        "n_trials": len(sweep.trials),
        "n_seeds": flags.seeds or 1,
    }
    if flags.run is None:
        directory = RunDir.create(flags.runs_dir, None, "sweep", data.dataset.name)
    else:
        directory = RunDir(flags.runs_dir / flags.run)
        directory.path.mkdir(parents=True, exist_ok=True)
    with locked(directory.path, on_wait=say):
        if not directory.file(SWEEP).is_file():
            directory.write_record(SWEEP, {**wanted, "trials": [*map(asdict, sweep.trials)]})
    begun = directory.read_record(SWEEP)
    if differing := [name for name in wanted if begun.get(name) != wanted[name]]:
        raise RunExistsError(
            f"{directory.path}: expected the sweep that this command began, found one with another "
            f"{', '.join(differing)}. Choose another --run, or repeat that sweep's flags"
        )
    return directory


def _run_claim(sweep: Sweep, study: SweepStudy, claim: Claim, data: RunData) -> None:
    """Train one trial and record how it ended; its own errors do not end the sweep.

    Raises:
        OSError: the disk is full or fails, as it would for every trial; so does the network.
    """
    started = time.perf_counter()
    try:
        if not claim.is_trained:
            _train(sweep, claim, data)
        state, figures = "complete", _read_figures(claim.directory)
        accuracy = figures["correct"] / figures["total"]
        outcome = f"has val accuracy {accuracy:.4f} ({figures['correct']}/{figures['total']})"
    except (OSError, DownloadError):
        raise
    except TrialPruned:
        state, figures = "pruned", {"epoch": claim.directory.read_history()[-1].epoch}
        outcome = f"is pruned after epoch {figures['epoch']}, below the median of the trials so far"
    except Exception as error:
        if sweep.flags.debug:
            traceback.print_exc()
        kind = "" if isinstance(error, FmnistError) else f"{type(error).__name__}: "
        state, figures = "failed", {"error": printable(" ".join(f"{kind}{error}".split()), 300)}
        outcome = f"failed, the others continue: {figures['error']}"
    finally:
        release_memory()
    seconds = round(time.perf_counter() - started, 3)
    study.finish(claim, state, **{"seconds": seconds, **figures})
    (warn if state == "failed" else say)(f"trial {claim.trial.number} {outcome}")


def _train(sweep: Sweep, claim: Claim, data: RunData) -> None:
    import keras

    config, _ = sweep.settings.complete(**decode(claim.trial.point or {}))
    # The split keeps its seed: all trials are compared on the same rows.
    config = config.replace(seed=claim.trial.seed)
    invocation = Invocation(sweep.command, TrackingOptions.of(sweep.flags))
    keras.backend.clear_session()
    experiment = prepare_network(config, data, sweep.parent, invocation)
    if sweep.space:
        run.run_trial(experiment, claim.directory, partial(claim.report, epochs=config.epochs or 0))
    else:
        run.run_phase(experiment, claim.directory)


def _read_figures(trained: RunDir) -> dict[str, Any]:
    """Return the `FIGURES` of a trial whose training is complete."""
    said, provenance = trained.read_json("evaluation.json"), trained.read_json("provenance.json")
    figures = {name: said["val"][name] for name in ("correct", "total", "loss")}
    if said.get("test"):
        figures |= {f"test_{name}": said["test"][name] for name in ("correct", "total")}
    seconds = round(sum(provenance["seconds"].values()), 3)
    return {**figures, "epoch": said["chosen_epoch"], "seconds": seconds}


def _conclude(sweep: Sweep, directory: RunDir, study: SweepStudy, *, is_new: bool) -> None:
    """Print the table, draw the figures and name the best point."""
    flags, space, trials = sweep.flags, sweep.space, study.read_trials()
    points = rank(tabulate(trials, space), study.n_points)
    table = summarize(points, space)
    print(table.to_string(index=False), end="\n\n", flush=True)
    best, errors = points[0].dropna(subset="correct"), points[0]["error"].dropna()
    if best.empty:
        error = next(iter(errors), None)
        raise FmnistError(f"{directory.path}: no trial is complete; the first failed: {error}")
    best_trial = study.directory_of(best["trial"].iloc[0])
    provenance, phase = best_trial.read_json("provenance.json"), sweep.configs[0].phase
    kinds = provenance["data"]["kind"], provenance["weights"]["kind"]
    banner = "; ".join(find_caveats(*kinds, phase))
    plot_trials(directory, create_study(space, trials), banner)
    if is_new:
        name, figure = directory.path.name, directory.file("optimization_history.png")
        tracked = TrackedRun(name, name, "sweep", {"grid": flags.grid, "n_trials": len(trials)})
        rows = table.to_numpy().tolist()
        track_comparison(flags.wandb, directory.path, tracked, [*table.columns], rows, figure)
    for error in errors.iloc[:1]:
        print(f"not every seed is complete: {error}")
    print(describe_sources(best_trial))
    split, prefix = ("val", "") if best["test_correct"].isna().all() else ("test", "test_")
    result = f"{split} accuracy {describe_accuracy(best, prefix)} (n = {len(best)})"
    if space:
        print(f"train the best and test it:  {_command_of_best(sweep, best_trial)}")
        point = printable(show_point({name: best[name].iloc[0] for name in space}), 1000)
        result = f"best val accuracy {describe_accuracy(best)} (n = {len(best)})  {point}"
    print(f"{directory.path}  {result}", flush=True)


def _command_of_best(sweep: Sweep, trial: RunDir) -> str:
    flags, parent = sweep.flags, sweep.parent
    words = ["python", "-m", "fmnist_tf.train", "--recipe", str(trial.file("config.json"))]
    words += runs_dir_words(flags.runs_dir)
    words += ["--from", str(parent.directory.path)] if parent else []
    words += ["--wandb", flags.wandb] if flags.wandb != "auto" else []
    return shlex.join(words)
