"""`python -m fmnist_tf.train`: data -> a trained classifier in a run directory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fmnist_tf.cli.command import add_runs_dir, add_terminal_flags, run_command
from fmnist_tf.errors import UsageError
from fmnist_tf.pipeline.resolve import naming_parent, read_settings
from fmnist_tf.settings.flags import add_flags
from fmnist_tf.settings.recipe import describe_recipes

if TYPE_CHECKING:
    from fmnist_tf.results.rundir import RunDir
    from fmnist_tf.training.cluster import Cluster


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags; a setting that is not given is absent from the result."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_tf.train",
        description="Train an image classifier from CSV rows of a label and 784 grey pixels.",
        allow_abbrev=False,  # an abbreviation would change its meaning as flags are added
    )
    group = parser.add_argument_group("settings from a file")
    add_recipe(group)
    group.add_argument(
        "--list-recipes", action="store_true", help="list the recipes and what they reach"
    )
    add_flags(parser)
    group = parser.add_argument_group("run")
    group.add_argument(
        "--run",
        metavar="NAME",
        help="name of the run (default: time and phase); an unfinished one is continued",
    )
    add_run_flags(group)
    group.add_argument(
        "--resume", metavar="RUN", help="continue an unfinished run, with its settings"
    )
    group.add_argument(
        "--accept-changes",
        action="store_true",
        help="continue a run although data, settings, versions or processors have changed",
    )
    group.add_argument(
        "--checkpoint-seconds",
        metavar="S",
        type=float,
        default=120.0,
        help="time between checkpoints within an epoch; 0: after each step (default: 120)",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="check data and settings, print them, train nothing"
    )
    add_terminal_flags(parser)
    return parser


def add_recipe(group: argparse._ActionsContainer) -> None:
    """Add --recipe, which `read_settings` reads."""
    group.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="settings from a recipe, a TOML file, or a run's config.json; flags override them, "
        "and `none` clears a setting that has no value by default",
    )


def add_run_flags(group: argparse._ActionsContainer) -> None:
    """Add where runs lie, which one is continued, and the W&B mode."""
    add_runs_dir(group)
    group.add_argument(
        "--from",
        metavar="RUN",
        dest="from_run",
        help="finetune: the frozen run to continue (default: the newest complete one)",
    )
    group.add_argument(
        "--wandb",
        choices=("auto", "online", "offline", "disabled"),
        default="auto",
        help="Weights & Biases mode; auto: online when logged in, else offline (default: auto)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = build_parser().parse_args(arguments)
    return run_command(lambda flags: _train(flags, arguments), flags)


def _train(flags: argparse.Namespace, arguments: list[str]) -> None:
    if flags.list_recipes:
        print(describe_recipes())
        return
    from fmnist_tf.pipeline.resume import find_unfinished
    from fmnist_tf.training.cluster import Cluster

    workers = Cluster.find()
    with ExitStack() as held:
        unfinished = find_unfinished(flags)
        if unfinished is not None and workers.is_chief:
            held.enter_context(unfinished.locked())
            if unfinished.is_complete:  # by a process that has held it until now
                find_unfinished(flags)
        _run(flags, arguments, unfinished, held, workers)


def _run(
    flags: argparse.Namespace,
    arguments: list[str],
    unfinished: RunDir | None,
    held: ExitStack,
    workers: Cluster,
) -> None:
    """Begin a run, or continue an unfinished one that is locked; `held` gets the lock of a new one.

    Cheap checks come first; importing TensorFlow takes seconds and comes last.
    """
    from fmnist_tf.results.rundir import CONFIG, RunDir

    begun: dict[str, Any] = {}
    if unfinished is not None and unfinished.file(CONFIG).exists():
        begun = unfinished.read_json(CONFIG)
        if flags.resume is not None:
            flags.recipe = str(unfinished.file(CONFIG))
    settings = read_settings(flags, default_parent=begun.get("parent"))
    (config, lines), parent = settings.complete(), settings.parent
    if workers.workers and config.cut == "auto" and not begun:
        raise UsageError(
            "--cut auto: expected one process, as it measures one, found TF_CONFIG or Slurm's "
            "variables; search with --dry-run in one process and give the cut that it prints"
        )
    from fmnist_tf.cli.terminal import say
    from fmnist_tf.pipeline.prepare import prepare_network, read_data
    from fmnist_tf.pipeline.record import start_invocation
    from fmnist_tf.results.provenance import command_line
    from fmnist_tf.system.startup import import_tensorflow

    for line in () if flags.resume is not None else lines:
        say(line)
    command = command_line("fmnist_tf.train", naming_parent(arguments, flags, config))
    invocation = start_invocation(command, flags.wandb, unfinished)
    cache_dir, clock = config.cache_dir(flags.runs_dir), invocation.clock
    data = read_data(config, parent, cache_dir, clock)
    with clock.stage("import_tensorflow"):
        import_tensorflow(lambda: workers.start(say))
    held.enter_context(workers.watching())
    search = None
    if config.cut == "auto":
        if begun:
            found = {name: begun.get(name) for name in ("cut", "image_size")}
            config = config.replace(**found, time_budget=None)
        else:
            from fmnist_tf.pipeline.cut_search import search_cut

            with clock.stage("cut_search"):
                search = search_cut(config, data)
            config = search.apply(config)
    from fmnist_tf.pipeline.train_state import require_same_work

    with workers.scope():
        experiment = prepare_network(config, data, parent, clock, invocation.engine)
    config = experiment.config
    require_same_work(experiment)
    if flags.dry_run:
        say("dry run: nothing was trained; the settings would be:")
        print(json.dumps(config.to_json(), indent=2), flush=True)
        return
    from fmnist_tf.pipeline.resume import open_checkpoints
    from fmnist_tf.pipeline.run import run_phase, run_worker

    if not workers.is_chief:
        run_worker(experiment, invocation, flags.runs_dir)
        workers.wait_for_all()
        return
    if unfinished is not None:
        directory = unfinished
    else:
        directory = RunDir.create(flags.runs_dir, flags.run, config.phase, data.dataset.name)
        held.enter_context(directory.locked())
        say(f"run: {directory.path}")
    if search is not None:
        search.write(directory, experiment.heading)
    checkpoints, resumption = open_checkpoints(
        directory, experiment, flags.checkpoint_seconds, accepts_changes=flags.accept_changes
    )
    if unfinished is not None:
        say(f"run: {directory.path}, continued from {resumption['from']}")
        invocation.resumptions.append({**resumption, "command": command})
    test = run_phase(experiment, directory, invocation, checkpoints)
    workers.wait_for_all()
    print(experiment.sources)
    print(
        f"{directory.path}  test accuracy {test.accuracy:.4f} ({test.correct}/{test.total})",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
