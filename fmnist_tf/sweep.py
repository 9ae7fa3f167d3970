"""`python -m fmnist_tf.sweep`: many trials of one setup -> which settings are best, and how sure.

In: flags of `fmnist_tf.train`, and a grid of knobs to vary. Out: a folder with a trial each, a
table on stdout, trials.csv and sweep.png. Trials share the data, the split and the stored output of
the frozen part; they are compared on validation images, and the test images are left alone. Where
nothing is varied there is nothing to choose: each seed is then a finished run, tested once.

This module parses, decides the order and hands over; what a trial is lies in `trials` and
`session`.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tf import trials as planning
from fmnist_tf.command import add_terminal_flags, run_command
from fmnist_tf.config import RunConfig, add_flags, to_flags
from fmnist_tf.errors import FmnistError, RunExistsError, UsageError, printable
from fmnist_tf.train import Settings, add_recipe, add_where, read_settings
from fmnist_tf.trials import Outcome, Result, Trial

if TYPE_CHECKING:
    from fmnist_tf.data.sources import Dataset
    from fmnist_tf.data.splits import Splits
    from fmnist_tf.memory import MemoryWatch
    from fmnist_tf.results.rundir import RunDir

SWEEP, RESULT, TABLE, FIGURE = "sweep.json", "result.json", "trials.csv", "sweep.png"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags; a knob that is not given is absent from the result."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.sweep",
        description="Train with many settings and compare them on the validation images. All "
        "flags of fmnist_tf.train say what the trials have in common.",
        epilog="Called again with the same --run and settings, a sweep goes on where it was.",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("trials")
    group.add_argument(
        "--grid",
        metavar="KNOB=VALUE,VALUE KNOB=...",
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
    add_where(group)
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
    """What all trials of a sweep share.

    Attributes:
        settings: what the flags say.
        config: of the sweep, without what is varied.
        trials: all of them.
        flags: of the command.
        command: the command line without secrets.
    """

    settings: Settings
    config: RunConfig
    trials: list[Trial]
    flags: argparse.Namespace
    command: str

    @property
    def is_tested(self) -> bool:
        """Whether each trial is a finished run: nothing is chosen among points."""
        return not self.trials[0].point

    def config_of(self, trial: Trial) -> RunConfig:
        """Return a trial's settings.

        Raises:
            UsageError: the point's knobs do not go together, or not with the rest.
        """
        config, _ = self.settings.complete(**trial.point)
        # The seed of the split stays: all trials are compared on the same images.
        return dataclasses.replace(config, seed=trial.seed)

    def to_json(self) -> dict[str, Any]:
        """Return what two sweeps must have in common to be one."""
        trials = [dataclasses.asdict(trial) for trial in self.trials]
        return json.loads(json.dumps({"settings": self.config.to_json(), "trials": trials}))


def _sweep(flags: argparse.Namespace, arguments: Sequence[str]) -> None:
    for name, value in (("--random", flags.random), ("--seeds", flags.seeds)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: expected a whole number from 1")
    if flags.random is not None and not flags.grid:
        raise UsageError("--random: expected with --grid, which says what to draw")
    space = planning.read_space(flags.grid)
    settings = read_settings(flags)
    if clash := next((name for name in space if name in settings.given), None):
        raise UsageError(f"--{clash.replace('_', '-')}: expected once, and --grid varies it")
    if flags.wandb_file is not None:
        _write_wandb_file(flags, settings, space)
        return
    config, lines = settings.complete()
    points = planning.plan_points(space, flags.random, config.seed)
    seeds = range(config.seed, config.seed + flags.seeds)
    from fmnist_tf.results.provenance import command_line

    sweep = Sweep(
        settings,
        config,
        planning.plan_trials(points, seeds),
        flags,
        command_line("fmnist_tf.sweep", arguments),
    )
    for trial in sweep.trials:
        try:
            sweep.config_of(trial)
        except UsageError as error:
            raise UsageError(f"{planning.show_point(trial.point)}: {error}") from error
    if flags.dry_run:
        for trial in sweep.trials:
            print(f"trial {trial.number}: seed={trial.seed} {planning.show_point(trial.point)}")
        return
    from fmnist_tf.console import say

    for line in lines:
        say(line)
    _run(sweep)


def _write_wandb_file(flags: argparse.Namespace, settings: Settings, space: planning.Space) -> None:
    """Write the search as W&B's agents take it, and say how to start them."""
    if flags.seeds > 1:
        raise UsageError("--wandb-file: expected without --seeds, which W&B's search cannot do")
    if not space:
        raise UsageError("--wandb-file: expected with --grid, which says what to vary")
    import yaml

    from fmnist_tf.files import replacing

    words = ["--recipe", flags.recipe] if flags.recipe else []
    words += to_flags(settings.given)
    words += ["--runs-dir", str(flags.runs_dir), "--wandb", "online"]
    if settings.parent:
        words += ["--from", str(settings.parent.directory.path.name)]
    content = planning.describe_for_wandb(space, flags.random, words)
    with replacing(flags.wandb_file) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    print(f"wandb sweep {shlex.quote(str(flags.wandb_file))}")


def _run(sweep: Sweep) -> None:
    """Run the trials that have no result yet, and tell what came of all."""
    from fmnist_tf.console import say, warn
    from fmnist_tf.memory import MemoryWatch
    from fmnist_tf.run import StageClock
    from fmnist_tf.session import read_data
    from fmnist_tf.startup import import_tensorflow

    flags = sweep.flags
    memory = MemoryWatch()
    found = _find_sweep(sweep)
    dataset, splits = read_data(
        sweep.config, sweep.settings.parent, sweep.config.cache_dir(flags.runs_dir), StageClock()
    )
    directory = found or _make_sweep(sweep, dataset.name)
    results: dict[int, Result] = {}
    with directory.locked():
        say(f"sweep: {directory.path}, {len(sweep.trials)} trials")
        for trial in sweep.trials:
            if (result := _read_result(directory, trial)) is not None:
                results[trial.number] = result
        if results:
            say(f"{len(results)} of them have their result already")
        import_tensorflow()
        for trial in sweep.trials:
            if trial.number in results:
                continue
            say(f"trial {trial.number} of {len(sweep.trials)}: {planning.show_point(trial.point)}")
            result = _run_trial(sweep, trial, directory, dataset, splits, memory)
            results[trial.number] = result
            if result.error:
                warn(f"trial {trial.number} failed, the others go on: {result.error}")
            else:
                say(f"trial {trial.number}: {_tell(result)}, {result.seconds:.0f} s")
            _write_table(directory, sweep, results)
        _conclude(sweep, directory, results)


def _find_sweep(sweep: Sweep) -> RunDir | None:
    """Return the folder of this very sweep, begun earlier; None where the name is free.

    Raises:
        RunExistsError: the name is that of another sweep, or of a run.
    """
    from fmnist_tf.results.rundir import RunDir, check_name

    flags = sweep.flags
    if flags.run is None:
        return None
    directory = RunDir(flags.runs_dir / flags.run)
    if not directory.file(SWEEP).is_file():
        check_name(flags.runs_dir, flags.run)
        return None
    there, here = directory.read_json(SWEEP), sweep.to_json()
    if there != here:
        differing = [
            f"{key} is {there.get('settings', {}).get(key)!r} there and {value!r} here"
            for key, value in here["settings"].items()
            if there.get("settings", {}).get(key) != value
        ]
        what = printable(differing[0] if differing else "its trials are others", 200)
        raise RunExistsError(
            f"{printable(str(directory.path), 200)}: expected the sweep that is to go on, found "
            f"another: {what}. Choose another --run, or give its settings"
        )
    return directory


def _make_sweep(sweep: Sweep, dataset_name: str) -> RunDir:
    from fmnist_tf.results.rundir import RunDir

    directory = RunDir.create(sweep.flags.runs_dir, sweep.flags.run, "sweep", dataset_name)
    directory.write_json(SWEEP, sweep.to_json())
    return directory


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.number:03d}"


def _read_result(directory: RunDir, trial: Trial) -> Result | None:
    path = directory.file(_trial_name(trial)) / RESULT
    try:
        return Result(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None  # not finished: it is run anew


def _run_trial(
    sweep: Sweep,
    trial: Trial,
    directory: RunDir,
    dataset: Dataset,
    splits: Splits,
    memory: MemoryWatch,
) -> Result:
    """Train once; whatever goes wrong is the trial's result, and no end of the sweep."""
    import keras

    from fmnist_tf import session
    from fmnist_tf.memory import release_memory
    from fmnist_tf.model.folding import choose_precision
    from fmnist_tf.results.evaluation import Evaluation
    from fmnist_tf.results.provenance import describe_code
    from fmnist_tf.results.rundir import RunDir
    from fmnist_tf.run import Run, StageClock

    started = time.perf_counter()
    flags, parent, config = sweep.flags, sweep.settings.parent, sweep.config_of(trial)
    # What an interrupted trial left behind would be neither its old nor its new self.
    shutil.rmtree(directory.file(_trial_name(trial)), ignore_errors=True)
    own = RunDir.create(directory.path, _trial_name(trial), config.phase, dataset.name)
    try:
        clock, cache_dir = StageClock(), config.cache_dir(flags.runs_dir)
        config, network = session.prepare_network(config, dataset, parent, cache_dir, clock)
        with own.locked():
            run = Run(
                config=config,
                dataset=dataset,
                splits=splits,
                network=network,
                directory=own,
                parent=parent,
                precision=choose_precision(config.precision),
                code=describe_code(),
                cache_dir=cache_dir,
                clock=clock,
                memory=memory,
                wandb_mode=flags.wandb,
                wandb_group=directory.path.name,
                command=sweep.command,
            )
            if sweep.is_tested:
                test = session.run_session(run)
                said = own.read_json("evaluation.json")
                result = Result(
                    said["val"]["correct"],
                    said["val"]["total"],
                    said["val"]["loss"],
                    said["chosen_epoch"],
                    test_correct=test.correct,
                    test_total=test.total,
                )
            else:
                trained = session.run_trial(run)
                val = Evaluation.from_probabilities(
                    dataset.train.labels[splits.val], trained.val_probabilities
                )
                result = Result(val.correct, val.total, val.loss, trained.chosen_epoch)
    except Exception as error:
        if flags.debug:
            raise
        reason = (
            str(error) if isinstance(error, FmnistError) else f"{type(error).__name__}: {error}"
        )
        result = Result(error=printable(" ".join(reason.split()), 300))
    finally:
        # A network's graphs are freed by the cycle collector alone.
        keras.backend.clear_session()
        release_memory()
    result = dataclasses.replace(result, seconds=round(time.perf_counter() - started, 3))
    own.write_json(RESULT, dataclasses.asdict(result))
    return result


def _tell(result: Result) -> str:
    said = f"val accuracy {result.correct / result.total:.4f} ({result.correct}/{result.total})"
    if result.test_correct is not None and result.test_total:
        share = result.test_correct / result.test_total
        said += f", test accuracy {share:.4f} ({result.test_correct}/{result.test_total})"
    return said


def _write_table(directory: RunDir, sweep: Sweep, results: dict[int, Result]) -> None:
    """Write trials.csv: a row for each trial that ended, every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    knobs = list(sweep.trials[0].point)
    names = [field.name for field in dataclasses.fields(Result)]
    writer.writerow(["trial", "seed", *knobs, *names])
    for trial in sweep.trials:
        if (result := results.get(trial.number)) is not None:
            values = [planning.show_value(trial.point[name]) for name in knobs]
            writer.writerow([trial.number, trial.seed, *values, *dataclasses.astuple(result)])
    directory.write_text(TABLE, text.getvalue())


def _conclude(sweep: Sweep, directory: RunDir, results: dict[int, Result]) -> None:
    """Draw and print what came of all trials.

    Raises:
        FmnistError: no point has a result from each of its seeds.
    """
    outcomes = planning.rank_outcomes(sweep.trials, results)
    _write_table(directory, sweep, results)
    header, rows = planning.tabulate(outcomes)
    best = outcomes[0]
    if not best.is_whole:
        raise FmnistError(
            f"{directory.path}: no trial came to its end: {best.error}. "
            f"Remove {_trial_name(best.trials[0])} there to try it again"
        )
    _draw(sweep, directory, results, best)
    _track(sweep, directory, header, rows)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    n = len(best.accuracies)
    if sweep.is_tested:
        spread = planning.describe_spread(best.test_accuracies)
        print(f"\n{directory.path}  test accuracy {spread} (n = {n})", flush=True)
        return
    first = best.trials[0]
    path = directory.file(_trial_name(first)) / "config.json"
    name = f"{directory.path.name}-best"
    command = ["python", "-m", "fmnist_tf.train", "--recipe", str(path), "--run", name]
    if sweep.flags.runs_dir != Path("runs"):
        command += ["--runs-dir", str(sweep.flags.runs_dir)]
    print(f"\ntrain the best and test it:  {shlex.join(command)}")
    spread = planning.describe_spread(best.accuracies)
    print(
        f"{directory.path}  best val accuracy {spread} (n = {n})  "
        f"{planning.show_point(best.point)}",
        flush=True,
    )


def _draw(sweep: Sweep, directory: RunDir, results: dict[int, Result], best: Outcome) -> None:
    from fmnist_tf.results.figures import write_trials

    ended = [trial for trial in sweep.trials if not results[trial.number].error]
    values = {
        name: [
            value if isinstance(value, (int, float)) else planning.show_value(value)
            for value in (trial.point[name] for trial in ended)
        ]
        for name in best.point
    } or {"seed": [trial.seed for trial in ended]}
    with directory.writing(FIGURE) as path:
        write_trials(
            path,
            values,
            [results[trial.number].correct / results[trial.number].total for trial in ended],
            [trial.point == best.point for trial in ended],
            f"{sweep.config.backbone} {sweep.config.phase}, {len(ended)} trials",
        )


def _track(
    sweep: Sweep, directory: RunDir, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Record table and figure beside the trials."""
    from fmnist_tf.console import say, warn
    from fmnist_tf.results.tracking import start_tracking

    tracker = start_tracking(
        sweep.flags.wandb,
        directory.path,
        group=directory.path.name,
        job_type="sweep",
        name=directory.path.name,
        config={"grid": sweep.flags.grid, "n_trials": len(sweep.trials)},
        warn=warn,
    )
    tracker.log_comparison(header, rows, directory.file(FIGURE))
    tracker.finish()
    for line in tracker.hint:
        say(line)


if __name__ == "__main__":
    sys.exit(main())
