"""`python -m fmnist_tf.sweep`: many trials of one setup -> which settings are best, and how sure.

In: flags of `fmnist_tf.train`, and a grid of settings to vary. Out: a folder with a trial each, a
table on stdout, trials.csv and sweep.png. Trials share the data, the split and the stored output of
the frozen part, unless its weights are random and seeds differ; they are compared on validation
images, and the test images are left alone. Where
nothing is varied there is nothing to choose: each seed is then a finished run, tested once.

This module parses, decides the order and hands over; what is tried stands in `trials`, how it is
trained in `session`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tf.cli.command import add_terminal_flags, run_command
from fmnist_tf.errors import FmnistError, RunExistsError, UsageError, printable
from fmnist_tf.pipeline.resolve import Settings, naming_parent, read_settings
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.settings.flags import add_flags, to_flags
from fmnist_tf.system.files import check_target, replacing
from fmnist_tf.train import add_recipe, add_run_flags
from fmnist_tf.trials import (
    Outcome,
    Result,
    Space,
    Trial,
    describe_for_wandb,
    describe_spread,
    plan_points,
    plan_trials,
    rank_outcomes,
    read_space,
    show_point,
    show_value,
    tabulate,
)

if TYPE_CHECKING:
    from fmnist_tf.data.sources import Dataset
    from fmnist_tf.pipeline.prepare import RunData
    from fmnist_tf.results.rundir import RunDir
    from fmnist_tf.system.memory import MemoryWatch

TABLE, FIGURE = "trials.csv", "sweep.png"
_LARGEST_SEED = 2**31 - 1


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags; a setting that is not given is absent from the result."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.sweep",
        description="Train with many settings and compare them on the validation images. All "
        "flags of fmnist_tf.train say what the trials have in common.",
        epilog="Called again with the same --run and settings, a sweep goes on where it was; "
        "trials that failed are tried again.",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("trials")
    group.add_argument(
        "--grid",
        metavar="SETTING=VALUE,VALUE SETTING=...",
        default="",
        help="what to vary, e.g. 'learning_rate=1e-4,3e-4 units=0,512 augment=none,flip+erasing'; "
        "with --random also ranges: 'learning_rate=1e-5..1e-2:log dropout=0..0.7'",
    )
    group.add_argument(
        "--random", metavar="N", type=int, help="draw N points instead of the whole grid"
    )
    group.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        default=1,
        help="train each point with N seeds from --seed on, and tell mean and standard deviation; "
        "without --grid each is a finished run, tested once (default: 1)",
    )
    group.add_argument(
        "--wandb-file",
        metavar="FILE.yaml",
        type=Path,
        help="write the search for `wandb sweep` and its agents, and run nothing",
    )
    group = parser.add_argument_group("settings from a file")
    add_recipe(group)
    add_flags(parser)
    group = parser.add_argument_group("where")
    group.add_argument("--run", metavar="NAME", help="name of the sweep (default: the time)")
    add_run_flags(group)
    group.add_argument(
        "--dry-run", action="store_true", help="check the settings and list the trials"
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = build_parser().parse_args(arguments)
    return run_command(lambda flags: _sweep(flags, arguments), flags)


@dataclass(frozen=True)
class Sweep:
    """What is to be done.

    Attributes:
        flags: of the command.
        settings: what they say, without the grid.
        trials: all of them.
        configs: by a trial's number, complete.
        command: the command line without secrets.
        begun: what an earlier command began under this name, None where there is nothing.
    """

    flags: argparse.Namespace
    settings: Settings
    trials: Sequence[Trial]
    configs: Mapping[int, RunConfig]
    command: str
    begun: Mapping[str, Any] | None

    @property
    def config(self) -> RunConfig:
        """The first trial's settings: but for the varied settings and the seed, those of all."""
        return self.configs[1]

    @property
    def is_tested(self) -> bool:
        """Whether each trial is a finished run: nothing is chosen among points."""
        return not self.trials[0].point

    def describe(self, trial: Trial) -> str:
        """Return a trial as people are told of it."""
        words = [show_point(trial.point), f"seed={trial.seed}" if self.flags.seeds > 1 else ""]
        said = f"trial {trial.number} of {len(self.trials)}: {' '.join(filter(None, words))}"
        return said.removesuffix(": ")


def _sweep(flags: argparse.Namespace, arguments: Sequence[str]) -> None:
    space = read_space(flags.grid)
    begun = _read_begun(flags)
    # Another run may be the newest by now.
    parent = _settings_of(begun).get("parent")
    settings = read_settings(flags, default_parent=parent if isinstance(parent, str) else None)
    sweep = _plan(flags, settings, space, arguments, begun)
    if flags.wandb_file is not None:
        _write_wandb_file(sweep, space)
    else:
        _run(sweep)


def _read_begun(flags: argparse.Namespace) -> dict[str, Any] | None:
    """Return what the sweep of this name was begun with; None where there is none yet."""
    from fmnist_tf.results.rundir import SWEEP, RunDir

    if flags.run is None or not (flags.runs_dir / flags.run / SWEEP).is_file():
        return None
    return RunDir(flags.runs_dir / flags.run).read_json(SWEEP)


def _settings_of(begun: Mapping[str, Any] | None) -> dict[str, Any]:
    settings = (begun or {}).get("settings")
    return settings if isinstance(settings, dict) else {}


def _plan(
    flags: argparse.Namespace,
    settings: Settings,
    space: Space,
    arguments: Sequence[str],
    begun: Mapping[str, Any] | None,
) -> Sweep:
    """Return all trials, each with settings that go together.

    Raises:
        UsageError: they do not, or the flags contradict one another.
    """
    from fmnist_tf.cli.terminal import say
    from fmnist_tf.results.provenance import command_line

    for name, value in (("--random", flags.random), ("--seeds", flags.seeds)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: expected a whole number from 1")
    if flags.wandb_file is not None and flags.dry_run:
        raise UsageError("--wandb-file: expected without --dry-run; it runs nothing either")
    if flags.random is not None and not space:
        raise UsageError("--random: expected with --grid, which says what to draw")
    if clash := next((name for name in space if name in settings.given), None):
        raise UsageError(f"--{clash.replace('_', '-')}: expected once, and --grid varies it")
    first_seed = settings.seed
    if first_seed + flags.seeds - 1 > _LARGEST_SEED:
        raise UsageError(f"--seeds {flags.seeds}: expected seeds up to {_LARGEST_SEED}")
    points = plan_points(space, flags.random, first_seed)
    if flags.random is not None and len(points) < flags.random:
        say(f"--random {flags.random}: there are {len(points)} different points")
    trials = plan_trials(points, range(first_seed, first_seed + flags.seeds))
    configs = {}
    for trial in trials:
        try:
            config, lines = settings.complete(**trial.point)
        except UsageError as error:
            where = show_point(trial.point)
            raise UsageError(f"{where}: {error}" if where else str(error)) from error
        # The seed of the split stays: all trials are compared on the same images.
        configs[trial.number] = config.replace(seed=trial.seed)
        if trial.number == 1:
            for line in lines:
                if line.split(" = ")[0] not in space:
                    say(line)
    words = naming_parent(arguments, flags, configs[1])
    command = command_line("fmnist_tf.sweep", words)
    return Sweep(flags, settings, trials, configs, command, begun)


def _write_wandb_file(sweep: Sweep, space: Space) -> None:
    """Write the search as W&B's agents take it, and say how to start them."""
    flags, settings = sweep.flags, sweep.settings
    if flags.seeds > 1:
        raise UsageError("--wandb-file: expected without --seeds, which W&B's search cannot do")
    if not space:
        raise UsageError("--wandb-file: expected with --grid, which says what to vary")
    check_target("--wandb-file", flags.wandb_file)
    import yaml

    from fmnist_tf.system.startup import import_tensorflow

    import_tensorflow()
    _check_backbones(sweep)
    words = ["--recipe", flags.recipe] if flags.recipe else []
    words += to_flags(settings.given)
    words += ["--runs-dir", str(flags.runs_dir), "--wandb", "online"]
    if settings.parent:
        words += ["--from", str(settings.parent.directory.path)]
    content = describe_for_wandb(space, flags.random, words)
    text = (
        "# Choose by epoch/val_accuracy: every run reads the test images too, once, at its end.\n"
        + yaml.safe_dump(content, sort_keys=False)
    )
    with replacing(flags.wandb_file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wandb sweep {shlex.quote(str(flags.wandb_file))}")


def _run(sweep: Sweep) -> None:
    """Run the trials that have no result yet, and tell what came of all."""
    from fmnist_tf.cli.terminal import say, warn
    from fmnist_tf.pipeline.prepare import read_data
    from fmnist_tf.results.provenance import describe_code
    from fmnist_tf.results.rundir import check_name
    from fmnist_tf.system.clock import StageClock
    from fmnist_tf.system.memory import MemoryWatch, release_memory
    from fmnist_tf.system.startup import import_tensorflow

    flags, code, memory = sweep.flags, describe_code(), MemoryWatch()
    goes_on = sweep.begun is not None
    if flags.run is not None and not goes_on:
        check_name(flags.runs_dir, flags.run)
    cache_dir = sweep.config.cache_dir(flags.runs_dir)
    data = read_data(sweep.config, sweep.settings.parent, cache_dir, StageClock())
    if flags.dry_run or not goes_on:
        import_tensorflow()
        _check_backbones(sweep)
        _check_weights(sweep, data.dataset, cache_dir)
    if goes_on or not flags.dry_run:
        directory = _open_sweep(sweep, data)
    if flags.dry_run:
        for trial in sweep.trials:
            print(sweep.describe(trial))
        return
    with directory.locked():
        say(f"sweep: {directory.path}, {len(sweep.trials)} trials")
        results: dict[int, Result] = {}
        for trial in sweep.trials:
            if (result := _read_result(sweep, directory, trial)) is not None:
                results[trial.number] = result
        if results:
            say(f"{len(results)} of them have their result already")
        missing = [trial for trial in sweep.trials if trial.number not in results]
        # What was begun before may have ended the whole process, and may do so again. A pooled head
        # averages the maps that a Flatten head stored; its own averages would serve nobody else.
        missing.sort(
            key=lambda trial: (
                _trial_dir(directory, trial).path.exists(),
                sweep.configs[trial.number].head == "gap",
            )
        )
        if missing:
            import_tensorflow()
        for trial in missing:
            say(sweep.describe(trial))
            memory.restart()
            result = _run_trial(sweep, trial, directory, data, code, memory)
            _forget_networks()
            release_memory()
            results[trial.number] = result
            if result.error:
                warn(f"trial {trial.number} failed, the others go on: {result.error}")
            else:
                say(f"trial {trial.number}: {_tell(result)}, {result.seconds:.0f} s")
            _write_table(directory, sweep, results)
        _conclude(sweep, directory, results, is_new=bool(missing))


def _check_backbones(sweep: Sweep) -> None:
    """Refuse backbones, sides and stages that there are not, before anything is made.

    Raises:
        UsageError: a trial asks for one.
    """
    from fmnist_tf.model.backbones import find_backbone_spec
    from fmnist_tf.model.phases import plan_unfreeze

    for config in sweep.configs.values():
        spec, _ = find_backbone_spec(config.backbone, config.image_size)
        plan_unfreeze(spec, config.phase, config.unfreeze)


def _check_weights(sweep: Sweep, dataset: Dataset, cache_dir: Path) -> None:
    """Refuse heads and weights that a backbone has not, before anything is made.

    Raises:
        UsageError: a trial asks for them.
        DownloadError: the published weights were named and cannot be had.
    """
    from fmnist_tf.pipeline.prepare import build_network

    first_of = {(c.backbone, c.head, c.weights): c for c in reversed(list(sweep.configs.values()))}
    parent = sweep.settings.parent
    for config in first_of.values():
        # A dense layer that memory cannot hold is for its trial to fail of.
        small = config if parent else config.replace(units=0)
        build_network(small, dataset, parent, cache_dir / "downloads")
        _forget_networks()


def _forget_networks() -> None:
    import keras

    keras.backend.clear_session()


def _open_sweep(sweep: Sweep, data: RunData) -> RunDir:
    """Return the sweep's folder: a new one, or the one that was begun earlier.

    Raises:
        RunExistsError: what was begun under this name is another sweep.
    """
    from fmnist_tf.results.rundir import SWEEP, RunDir

    flags, parent = sweep.flags, sweep.settings.parent
    here = {
        "settings": sweep.config.to_json(),
        "data_sha256": [file.sha256 for file in data.dataset.files],
        "split_sha256": data.splits.digest,
        "parent_sha256": parent.model_sha256 if parent else None,
        # As they are read back: lists for tuples.
        "trials": json.loads(json.dumps([dataclasses.asdict(trial) for trial in sweep.trials])),
    }
    there = sweep.begun
    if there is None:
        directory = RunDir.create(flags.runs_dir, flags.run, "sweep", data.dataset.name)
        directory.write_json(SWEEP, here)
        return directory
    directory = RunDir(flags.runs_dir / flags.run)
    if there == here:
        return directory
    old, new = _settings_of(there), here["settings"]
    differing = [
        f"{key} was {old.get(key)!r} and is {value!r}"
        for key, value in new.items()
        if old.get(key) != value
    ] or [f"its {key.replace('_', ' ')} was another" for key in here if there.get(key) != here[key]]
    raise RunExistsError(
        f"{printable(str(directory.path), 200)}: expected the sweep that is to go on, found "
        f"another: {printable(differing[0], 200)}. Choose another --run, or give its settings"
    )


def _trial_dir(directory: RunDir, trial: Trial) -> RunDir:
    from fmnist_tf.results.rundir import RunDir

    return RunDir(directory.file(f"trial-{trial.number:03d}"))


def _read_result(sweep: Sweep, directory: RunDir, trial: Trial) -> Result | None:
    """Return what a trial's own files say; None where it has not come to its end."""
    own = _trial_dir(directory, trial)
    if sweep.is_tested and not own.is_complete:
        return None
    try:
        said, made = own.read_json("evaluation.json"), own.read_json("provenance.json")
        test = said.get("test", {})
        return Result(
            correct=said["val"]["correct"],
            total=said["val"]["total"],
            loss=said["val"]["loss"],
            epoch=said["chosen_epoch"],
            seconds=round(sum(made["seconds"].values()), 3),
            test_correct=test.get("correct"),
            test_total=test.get("total"),
        )
    except (UsageError, KeyError, TypeError, AttributeError):
        return None


def _run_trial(
    sweep: Sweep,
    trial: Trial,
    directory: RunDir,
    data: RunData,
    code: dict[str, Any],
    memory: MemoryWatch,
) -> Result:
    """Train once; what goes wrong in it is the trial's result, and no end of the sweep.

    Raises:
        OSError: the disk is full or fails, which every trial would meet.
        DownloadError: so does the network.
    """
    from fmnist_tf.data.downloads import DownloadError
    from fmnist_tf.pipeline.prepare import prepare_network
    from fmnist_tf.pipeline.record import Invocation
    from fmnist_tf.pipeline.run import run_phase, run_trial

    started = time.perf_counter()
    flags, parent, config = sweep.flags, sweep.settings.parent, sweep.configs[trial.number]
    own = _trial_dir(directory, trial)
    # What an interrupted trial left behind would be neither its old nor its new self.
    shutil.rmtree(own.path, ignore_errors=True)
    own.path.mkdir(mode=0o700)
    cache_dir = config.cache_dir(flags.runs_dir)
    invocation = Invocation(
        command=sweep.command,
        code=code,
        wandb_mode=flags.wandb,
        wandb_group=directory.path.name,
        memory=memory,
    )
    try:
        config, network = prepare_network(config, data.dataset, parent, cache_dir, invocation.clock)
        with own.locked():
            run = run_phase if sweep.is_tested else run_trial
            run(config, data, network, own, invocation)
        result = _read_result(sweep, directory, trial)
        if result is None:
            raise FmnistError(f"{own.path}: the trial's own files do not tell its result")
        return result
    except (OSError, DownloadError):
        raise
    except Exception as error:
        if flags.debug:
            traceback.print_exc()
        kind = "" if isinstance(error, FmnistError) else f"{type(error).__name__}: "
        reason = printable(" ".join(f"{kind}{error}".split()), 300)
        return Result(error=reason, seconds=round(time.perf_counter() - started, 3))


def _tell(result: Result) -> str:
    said = f"val accuracy {result.accuracy:.4f} ({result.correct}/{result.total})"
    if (share := result.test_accuracy) is not None:
        said += f", test accuracy {share:.4f} ({result.test_correct}/{result.test_total})"
    return said


def _write_table(directory: RunDir, sweep: Sweep, results: Mapping[int, Result]) -> None:
    """Write trials.csv: a row for each trial that ended, every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    settings = list(sweep.trials[0].point)
    names = [field.name for field in dataclasses.fields(Result)]
    writer.writerow(["trial", "seed", *settings, *names])
    for trial in sweep.trials:
        if (result := results.get(trial.number)) is not None:
            values: list[Any] = [show_value(trial.point[name]) for name in settings]
            told = dataclasses.asdict(result)
            if result.error:  # a failed trial's other numbers say nothing
                told = {name: told[name] for name in ("seconds", "error")}
            values += [told.get(name) for name in names]
            writer.writerow([trial.number, trial.seed, *values])
    directory.write_text(TABLE, text.getvalue())


def _conclude(
    sweep: Sweep, directory: RunDir, results: Mapping[int, Result], *, is_new: bool
) -> None:
    """Write, draw and print what came of all trials.

    Raises:
        FmnistError: every trial failed.
    """
    # Once more: an earlier command may have been stopped between a trial and its row.
    _write_table(directory, sweep, results)
    outcomes = rank_outcomes(sweep.trials, results)
    header, rows = tabulate(outcomes)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    print(flush=True)
    best = outcomes[0]
    if not best.accuracies:
        raise FmnistError(f"{directory.path}: every trial failed, the first one: {best.error}")
    sources, banner = _describe_sources(sweep, directory, results)
    _draw(sweep, directory, results, best, banner)
    if is_new:
        _track(sweep, directory, header, rows)
    if best.error:
        print(f"not every seed came to its end: {best.error}")
    print(sources)
    if not sweep.is_tested:
        print(f"train the best and test it:  {_command_of_best(sweep, directory, best)}")
    shares = best.test_accuracies if sweep.is_tested else best.accuracies
    said = f"{'test' if sweep.is_tested else 'best val'} accuracy {describe_spread(shares)}"
    point = show_point(best.point)
    print(f"{directory.path}  {said} (n = {len(shares)})  {point}".rstrip(), flush=True)


def _describe_sources(
    sweep: Sweep, directory: RunDir, results: Mapping[int, Result]
) -> tuple[str, str | None]:
    """Return on what data and weights the trials rest, and what no reader may miss."""
    from fmnist_tf.cli.terminal import warn
    from fmnist_tf.results.provenance import SAMPLE, find_caveats

    seen: dict[str, set[str]] = {}  # backbone -> weights, as they were found
    caveats: list[str] = []
    data = ""
    for trial in sweep.trials:
        if results[trial.number].error:
            continue
        config = sweep.configs[trial.number]
        made = _trial_dir(directory, trial).read_json("provenance.json")
        kind, weights = made["data"]["kind"], made["weights"]
        data = f"{printable(made['data']['name'])} ({SAMPLE if kind == 'sample' else kind})"
        caveats += find_caveats(kind, weights["kind"], config.phase)
        said = f"{weights['kind']} {(weights.get('sha256') or '')[:8]}".strip()
        seen.setdefault(config.backbone, set()).add(said)
    if "weights" not in sweep.trials[0].point:
        for backbone, found in seen.items():
            if len(found) > 1:
                warn(f"not all trials of {backbone} began with the same weights: {sorted(found)}")
    weights = ", ".join(sorted(set().union(*seen.values())))
    return (
        f"data: {data}; backbone weights: {weights}",
        "; ".join(dict.fromkeys(caveats)) or None,
    )


def _command_of_best(sweep: Sweep, directory: RunDir, best: Outcome) -> str:
    """Return the command that makes an ordinary run of the best point, of a sound trial."""
    flags, parent = sweep.flags, sweep.settings.parent
    path = _trial_dir(directory, best.valid_pairs[0][0]).file("config.json")
    words = ["python", "-m", "fmnist_tf.train", "--recipe", str(path)]
    if flags.runs_dir != Path("runs"):
        words += ["--runs-dir", str(flags.runs_dir)]
    if parent:
        words += ["--from", str(parent.directory.path)]
    if flags.wandb != "auto":
        words += ["--wandb", flags.wandb]
    return shlex.join(words)


def _draw(
    sweep: Sweep,
    directory: RunDir,
    results: Mapping[int, Result],
    best: Outcome,
    banner: str | None,
) -> None:
    from fmnist_tf.reporting.figures import write_trials

    ended = [trial for trial in sweep.trials if not results[trial.number].error]
    values: dict[str, list[Any]] = {
        name: [
            value if type(value) in (int, float) else show_value(value)
            for value in (trial.point[name] for trial in ended)
        ]
        for name in best.point
    }
    backbones = {sweep.configs[trial.number].backbone for trial in ended}
    with directory.writing(FIGURE) as path:
        write_trials(
            path,
            values or {"seed": [trial.seed for trial in ended]},
            [results[trial.number].accuracy for trial in ended],
            [trial.point == best.point for trial in ended],
            f"{' and '.join(sorted(backbones))} {sweep.config.phase}, {len(ended)} trials",
            banner=banner,
        )


def _track(
    sweep: Sweep, directory: RunDir, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Record table and figure beside the trials."""
    from fmnist_tf.cli.terminal import say, warn
    from fmnist_tf.reporting.tracking import TrackedRun, start_tracking

    tracker = start_tracking(
        sweep.flags.wandb,
        directory.path,
        TrackedRun(
            name=directory.path.name,
            group=directory.path.name,
            job_type="sweep",
            config={"grid": sweep.flags.grid, "n_trials": len(sweep.trials)},
        ),
        warn,
    )
    tracker.log_comparison(header, rows, directory.file(FIGURE))
    tracker.finish()
    for line in tracker.hint:
        say(line)


if __name__ == "__main__":
    sys.exit(main())
