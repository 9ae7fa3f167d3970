"""`python -m fmnist_tf.sweep`: train with many settings, compare them on the validation rows.

Trials share the data, the split and the cached backbone features (unless the backbone's weights are
random and seeds differ). With --seeds and no --grid nothing is chosen: each seed is then a finished
run, tested once.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import shlex
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tf.cli.command import add_terminal_flags, run_command
from fmnist_tf.cli.terminal import say, warn
from fmnist_tf.errors import FmnistError, RunExistsError, UsageError, printable
from fmnist_tf.pipeline.resolve import Settings, naming_parent, read_settings
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.settings.flags import add_flags
from fmnist_tf.train import add_recipe, add_run_flags

if TYPE_CHECKING:
    from fmnist_tf.data.sources import Dataset
    from fmnist_tf.pipeline.prepare import RunData
    from fmnist_tf.pipeline.study import Claim, Plan, Point, Row, SweepStudy
    from fmnist_tf.results.history import HistoryRow
    from fmnist_tf.results.rundir import RunDir

TABLE = "trials.csv"
_MAX_SEED = 2**31 - 1
_MIN_FOR_IMPORTANCES = 8  # complete trials
_EXAMPLE = 'python -m fmnist_tf.sweep --grid "learning_rate=1e-4,3e-4 units=256,512"'


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags; a setting that is not given is absent from the result."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.sweep",
        description="Train with many settings and compare them on the validation rows. The flags "
        "of fmnist_tf.train set what the trials have in common.",
        epilog="The same command with the same --run continues a sweep, and tries failed trials "
        "again. Several processes, on several machines with a shared disk, may run it at the same "
        "time.",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("trials")
    group.add_argument(
        "--grid",
        metavar="SETTING=VALUE,VALUE SETTING=...",
        default="",
        help="what to vary, e.g. 'learning_rate=1e-4,3e-4 units=0,512 augment=none,flip+erasing'; "
        "with --random or --tpe also ranges: 'learning_rate=1e-5..1e-2:log dropout=0..0.7'",
    )
    sampler = group.add_mutually_exclusive_group()
    sampler.add_argument(
        "--random",
        metavar="N",
        type=int,
        help="train N random points instead of the whole grid; a trial whose validation accuracy "
        "is below the median of at least 5 others after the same epoch is pruned, from epoch 2 on",
    )
    sampler.add_argument(
        "--tpe",
        metavar="N",
        type=int,
        help="the same with N points of which all but the first 10 are chosen by the results so "
        "far (tree-structured Parzen estimator)",
    )
    group.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        help="train each point with N seeds from --seed on, and give mean and standard deviation; "
        "without --grid each is a finished run, tested once (default: 1)",
    )
    add_recipe(parser.add_argument_group("settings from a file"))
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
    """What the command is to do.

    Attributes:
        flags: of the command.
        settings: what they set, without the grid.
        plan: of the trials.
        configs: complete settings of the points that are checked before any work.
        command: the command line without secrets.
    """

    flags: argparse.Namespace
    settings: Settings
    plan: Plan
    configs: Sequence[RunConfig]
    command: str

    @property
    def is_tested(self) -> bool:
        """Whether each trial is a finished run: nothing is chosen among points."""
        return not self.plan.space


def _sweep(flags: argparse.Namespace, arguments: Sequence[str]) -> None:
    begun = _read_begun(flags)
    # Another run may be the newest by now.
    settings = read_settings(flags, default_parent=begun.get("parent") if begun else None)
    sweep = _plan(flags, settings, arguments)
    _run(sweep, begun)


def _read_begun(flags: argparse.Namespace) -> dict[str, Any] | None:
    """Return what the sweep of this name was begun with; None if there is none yet."""
    from fmnist_tf.results.rundir import LOCK, SWEEP, RunDir, check_name

    if flags.run is None:
        return None
    directory = RunDir(flags.runs_dir / flags.run)
    if directory.file(SWEEP).is_file():
        return directory.read_json(SWEEP)
    # A process that begins, or was killed in it, has made no more than the lock.
    if not directory.path.is_dir() or {p.name for p in directory.path.iterdir()} - {LOCK}:
        check_name(flags.runs_dir, flags.run)
    return None


def _plan(flags: argparse.Namespace, settings: Settings, arguments: Sequence[str]) -> Sweep:
    """Return the plan, after a check of the settings of each point.

    Raises:
        UsageError: settings or flags contradict one another.
    """
    from fmnist_tf.pipeline.study import Plan, read_space, show_point
    from fmnist_tf.results.provenance import command_line

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
        raise UsageError(f"--{clash.replace('_', '-')}: expected once, but --grid varies it")
    if settings.seed + n_seeds - 1 > _MAX_SEED:
        raise UsageError(f"--seeds {n_seeds}: expected seeds up to {_MAX_SEED}")
    seeds = range(settings.seed, settings.seed + n_seeds)
    plan = Plan.make(space, sampler, n_points, seeds)
    if n_points and plan.n_points < n_points:
        say(f"--{sampler} {n_points}: there are {plan.n_points} different points")
    configs: list[RunConfig] = []
    lines: list[str] = []
    for point in plan.checked_points:
        try:
            config, lines = _complete(settings, point)
        except UsageError as error:
            raise UsageError(f"{show_point(point)}: {error}".removeprefix(": ")) from error
        configs.append(config)
    for line in lines:
        if line.split(" = ")[0] not in space:
            say(line)
    command = command_line("fmnist_tf.sweep", naming_parent(arguments, flags, configs[0]))
    return Sweep(flags, settings, plan, configs, command)


def _complete(settings: Settings, point: Point) -> tuple[RunConfig, list[str]]:
    from fmnist_tf.pipeline.study import decode

    return settings.complete(**decode(point))


def _run(sweep: Sweep, begun: Mapping[str, Any] | None) -> None:
    """Train what has no result yet, and print the results of all trials."""
    from fmnist_tf.pipeline.prepare import read_data
    from fmnist_tf.pipeline.study import SweepStudy
    from fmnist_tf.system.clock import StageClock
    from fmnist_tf.system.startup import import_tensorflow

    flags, plan, settings = sweep.flags, sweep.plan, sweep.settings
    cache_dir = sweep.configs[0].cache_dir(flags.runs_dir)
    data = read_data(sweep.configs[0], settings.parent, cache_dir, StageClock())
    if begun is None:
        import_tensorflow()
        _check_networks(sweep, data.dataset, cache_dir)
    if begun is not None or not flags.dry_run:
        directory = _open_sweep(sweep, data)
    if flags.dry_run:
        for number in range(1, plan.n_trials + 1 if plan.points else 1):
            print(plan.describe(number, plan.point_of(number)))
        if not plan.points:
            print(f"{plan.n_trials} trials, which depend on the results of earlier ones")
        return
    study = SweepStudy(directory, plan)
    say(f"sweep: {directory.path}, {plan.n_trials} trials, {study.n_finished} finished before")
    if study.n_finished < plan.n_trials:
        import_tensorflow()
        # It warns of functions that are built again and again, as trials do.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    is_new = False
    with closing(study.claims()) as claims:
        for claim in claims:
            is_new = True
            say(plan.describe(claim.number, claim.point))
            _run_claim(sweep, study, claim, data)
            _write_table(directory, plan, study.read_rows())
    _conclude(sweep, directory, study, is_new=is_new)


def _check_networks(sweep: Sweep, dataset: Dataset, cache_dir: Path) -> None:
    """Refuse backbones, stages, heads and weights that do not exist before the sweep begins.

    Raises:
        UsageError: a trial asks for one.
        DownloadError: named weights cannot be had.
    """
    import keras

    from fmnist_tf.pipeline.prepare import build_network

    parent = sweep.settings.parent
    networks = {
        # A dense layer that does not fit into memory fails its own trial only.
        (c.backbone, c.head, c.weights, c.image_size, c.unfreeze): c.replace(
            units=c.units if parent else 0
        )
        for c in sweep.configs
    }
    for config in networks.values():
        build_network(config, dataset, parent, cache_dir / "downloads")
        keras.backend.clear_session()


def _open_sweep(sweep: Sweep, data: RunData) -> RunDir:
    """Return the sweep's directory, made now or earlier by the same command.

    Raises:
        RunExistsError: another sweep or run has this name.
    """
    from optuna.distributions import distribution_to_json

    from fmnist_tf.pipeline.study import taking_turns
    from fmnist_tf.results.rundir import SWEEP, RunDir

    flags, plan, parent = sweep.flags, sweep.plan, sweep.settings.parent
    wanted = sweep.configs[0].to_json() | {
        "data_sha256": [file.sha256 for file in data.dataset.files],
        "split_sha256": data.splits.digest,
        "parent_sha256": parent.model_sha256 if parent else None,
        "grid": {name: distribution_to_json(d) for name, d in plan.space.items()},
        "sampler": plan.sampler,
        "points": plan.n_points,
        "seeds": list(plan.seeds),
    }
    if flags.run is None:
        directory = RunDir.create(flags.runs_dir, None, "sweep", data.dataset.name)
    else:
        directory = RunDir(flags.runs_dir / flags.run)
        directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with taking_turns(directory.path):
        if not directory.file(SWEEP).is_file():
            directory.write_json(SWEEP, wanted)
    begun = directory.read_json(SWEEP)
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
    from optuna import TrialPruned

    from fmnist_tf.data.downloads import DownloadError
    from fmnist_tf.pipeline.study import read_figures
    from fmnist_tf.system.memory import release_memory

    started = time.perf_counter()
    own, title = claim.directory, f"trial {claim.number}"
    try:
        if read_figures(own, is_tested=sweep.is_tested) is None:
            _train(sweep, claim, data)
        figures = read_figures(own, is_tested=sweep.is_tested)
        if figures is None:
            raise FmnistError(f"{own.path}: the trial left no evaluation.json")
        study.finish(claim, "complete", **figures)
        accuracy = figures["correct"] / figures["total"]
        say(f"{title}: val accuracy {accuracy:.4f} ({figures['correct']}/{figures['total']})")
    except (OSError, DownloadError):
        raise
    except TrialPruned:
        seconds, epoch = time.perf_counter() - started, own.read_history()[-1].epoch
        study.finish(claim, "pruned", epoch=epoch, seconds=round(seconds, 3))
        say(f"{title}: pruned after epoch {epoch}, below the median of the trials so far")
    except Exception as error:
        if sweep.flags.debug:
            traceback.print_exc()
        kind = "" if isinstance(error, FmnistError) else f"{type(error).__name__}: "
        reason = printable(" ".join(f"{kind}{error}".split()), 300)
        seconds = round(time.perf_counter() - started, 3)
        study.finish(claim, "failed", error=reason, seconds=seconds)
        warn(f"{title} failed, the others continue: {reason}")
    finally:
        release_memory()


def _train(sweep: Sweep, claim: Claim, data: RunData) -> None:
    import keras

    from fmnist_tf.pipeline.prepare import prepare_network
    from fmnist_tf.pipeline.record import Invocation
    from fmnist_tf.pipeline.run import run_phase, run_trial
    from fmnist_tf.results.provenance import describe_code

    flags, parent = sweep.flags, sweep.settings.parent
    config, _ = _complete(sweep.settings, claim.point)
    # The split keeps its seed: all trials are compared on the same rows.
    config = config.replace(seed=sweep.plan.seed_of(claim.number))
    invocation = Invocation(
        command=sweep.command,
        code=describe_code(),
        wandb_mode=flags.wandb,
        wandb_group=claim.directory.group,
    )
    keras.backend.clear_session()
    cache_dir = config.cache_dir(flags.runs_dir)
    experiment = prepare_network(config, data, parent, cache_dir, invocation.clock)
    if sweep.is_tested:
        run_phase(experiment, claim.directory, invocation)
        return
    epochs = config.epochs or 0

    def report(row: HistoryRow) -> None:
        claim.report(row, epochs=epochs)

    run_trial(experiment, claim.directory, invocation, report)


def _write_table(directory: RunDir, plan: Plan, rows: Sequence[Row]) -> None:
    """Write trials.csv: a row for each trial that ended, floats with every digit."""
    from fmnist_tf.pipeline.study import FIGURES, show

    text, names = io.StringIO(), ["trial", "seed", *plan.space, *FIGURES]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: v if isinstance(v, float) else show(v) for k, v in row.items()})
    directory.write_text(TABLE, text.getvalue())


def rank(rows: Sequence[Row], varied: Collection[str]) -> list[list[Row]]:
    """Return the trials of each point, the best point first, equal ones in the plan's order.

    Points whose seeds are all complete come first, by mean val accuracy, then by mean loss; pruned
    and failed points come last.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in varied), []).append(row)

    def worth(group: list[Row]) -> tuple[float, ...]:
        done = select_complete(group)
        if not done:
            return (-1, group[0]["state"] == "pruned")
        # Means of counts: means of fractions can differ by rounding where those are equal.
        correct, loss = (
            statistics.fmean(row[name] for row in done) for name in ("correct", "loss")
        )
        return (len(done) == len(group), correct, -loss)

    return sorted(groups.values(), key=worth, reverse=True)


def select_complete(rows: Sequence[Row]) -> list[Row]:
    """Return the complete trials."""
    return [row for row in rows if row["state"] == "complete"]


def describe_accuracy(rows: Sequence[Row], prefix: str = "") -> str:
    """Return the mean accuracy of the complete trials, with `test_` that on test rows: `0.9012`.

    Of several, with the sample standard deviation: `0.9012 ± 0.0021`.
    """
    values = [row[f"{prefix}correct"] / row[f"{prefix}total"] for row in select_complete(rows)]
    if len(values) > 1:
        return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"
    return f"{values[0]:.4f}" if values else "-"


def tabulate(groups: Sequence[Sequence[Row]], varied: Collection[str]) -> list[list[str]]:
    """Return the printed table: the header, and a row for each point."""
    from fmnist_tf.pipeline.study import show

    tested = not varied
    header = ["trials", *varied, "val accuracy", *["test accuracy"] * tested]
    table = [[*header, "n", "best epoch", "seconds"]]
    for group in groups:
        done, accuracy = select_complete(group), describe_accuracy(group)
        for row in group:
            if row["state"] == "failed":
                accuracy = f"failed: {printable(row['error'], 40)}"
            elif row["state"] == "pruned" and not done:
                accuracy = f"pruned after epoch {row['epoch']}"
        cells = [",".join(str(row["trial"]) for row in group)]
        cells += [printable(show(group[0][name])) for name in varied]
        cells += [accuracy, *([describe_accuracy(group, "test_")] if tested else [])]
        cells += [str(len(done)), ",".join(str(row["epoch"]) for row in done) or "-"]
        table.append([*cells, f"{sum(row['seconds'] for row in group):.0f}"])
    return table


def _conclude(sweep: Sweep, directory: RunDir, study: SweepStudy, *, is_new: bool) -> None:
    """Print the table, draw the figures and name the best point.

    Raises:
        FmnistError: no trial is complete.
    """
    from fmnist_tf.pipeline.study import show_point

    # Once more: another process may have written its last row before ours.
    rows, varied = study.read_rows(), sweep.plan.space
    _write_table(directory, sweep.plan, rows)
    groups = rank(rows, varied)
    table = tabulate(groups, varied)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip())
    print(flush=True)
    best, done = groups[0], select_complete(groups[0])
    error = next((row["error"] for row in best if row["state"] == "failed"), None)
    if not done:
        raise FmnistError(f"{directory.path}: no trial is complete; the first failed: {error}")
    directory_of_best = study.directory_of(done[0]["trial"])
    sources, banner = _describe_sources(directory_of_best)
    figures = _draw(directory, study, select_complete(rows), varied, banner)
    if is_new:
        _track(sweep, directory, table, figures)
    if error:
        print(f"not every seed is complete: {error}")
    print(sources)
    if not sweep.is_tested:
        words = _best_command(sweep, directory_of_best)
        print(f"train the best and test it:  {shlex.join(words)}")
        point = printable(show_point({name: done[0][name] for name in varied}), 1000)
        said = f"best val accuracy {describe_accuracy(best)} (n = {len(done)})  {point}"
    else:
        said = f"test accuracy {describe_accuracy(best, 'test_')} (n = {len(done)})"
    print(f"{directory.path}  {said}", flush=True)


def _describe_sources(best: RunDir) -> tuple[str, str | None]:
    """Return the data and the weights of a trial, and the caveats of its figures."""
    from fmnist_tf.results.provenance import SAMPLE, find_caveats

    provenance, phase = best.read_json("provenance.json"), best.read_json("config.json")["phase"]
    data, weights = provenance["data"], provenance["weights"]
    kind = SAMPLE if data["kind"] == "sample" else data["kind"]
    said = f"data: {printable(data['name'])} ({kind}); backbone weights: {weights['kind']}"
    caveats = find_caveats(data["kind"], weights["kind"], phase)
    return f"{said} {(weights.get('sha256') or '')[:8]}".strip(), "; ".join(caveats) or None


def _best_command(sweep: Sweep, best: RunDir) -> list[str]:
    """Return the command that trains the settings of a trial as an ordinary run."""
    flags, parent = sweep.flags, sweep.settings.parent
    words = ["python", "-m", "fmnist_tf.train", "--recipe", str(best.file("config.json"))]
    if flags.runs_dir != Path("runs"):
        words += ["--runs-dir", str(flags.runs_dir)]
    if parent:
        words += ["--from", str(parent.directory.path)]
    return words + (["--wandb", flags.wandb] if flags.wandb != "auto" else [])


def _draw(
    directory: RunDir,
    study: SweepStudy,
    complete: Sequence[Row],
    names: Collection[str],
    banner: str | None,
) -> list[Path]:
    """Draw Optuna's figures of the complete trials and return their files."""
    import matplotlib.pyplot as plt
    import numpy as np
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization import matplotlib as figures

    drawn: dict[str, Callable[..., Any]] = {
        "optimization_history": figures.plot_optimization_history
    }
    varied = [name for name in names if len({row[name] for row in complete}) > 1]
    if varied:
        drawn["slice"] = partial(figures.plot_slice, params=varied)
    is_flat = len({row["correct"] for row in complete}) == 1
    if len(varied) > 1 and len(complete) >= _MIN_FOR_IMPORTANCES and not is_flat:
        fanova = FanovaImportanceEvaluator(seed=0)
        drawn["param_importances"] = partial(figures.plot_param_importances, evaluator=fanova)
    plt.switch_backend("agg")
    paths = [directory.file(f"{name}.png") for name in drawn]
    # Optuna changes the style for good, and warns that these functions are experimental.
    with plt.rc_context(), warnings.catch_warnings(action="ignore"):
        for path, draw in zip(paths, drawn.values(), strict=True):
            axes = draw(study.renumber(), target_name="val accuracy")
            figure = np.ravel(axes)[0].figure
            figure.text(0, 0, banner or "", color="#D55E00", va="top")
            with directory.writing(path.name) as temporary:
                figure.savefig(temporary, bbox_inches="tight")
            plt.close(figure)
    return paths


def _track(
    sweep: Sweep, directory: RunDir, table: Sequence[Sequence[str]], figures: Sequence[Path]
) -> None:
    """Record the table and the first figure in W&B beside the trials."""
    from fmnist_tf.reporting.tracking import TrackedRun, start_tracking

    name = directory.path.name
    facts = {"grid": sweep.flags.grid, "n_trials": sweep.plan.n_trials}
    tracked = TrackedRun(name=name, group=name, job_type="sweep", config=facts)
    tracker = start_tracking(sweep.flags.wandb, directory.path, tracked)
    tracker.log_comparison(table[0], table[1:], figures[0])
    tracker.finish()
    for line in tracker.hint:
        say(line)


if __name__ == "__main__":
    sys.exit(main())
