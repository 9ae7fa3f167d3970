"""`python -m fmnist_tf.train`: data -> a trained classifier in a run directory."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import fmnist_tf.api
from fmnist_tf.cli.command import add_runs_dir, add_terminal_flags, run_command
from fmnist_tf.cli.parser import CommandParser, name_command, runs_dir_words
from fmnist_tf.pipeline.resolve import Request
from fmnist_tf.settings.config import WANDB_MODES, RunConfig
from fmnist_tf.settings.flags import add_flags
from fmnist_tf.settings.recipe import describe_recipes

if TYPE_CHECKING:
    from fmnist_tf.results.rundir import RunDir


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags; a setting that is not given is absent from the result."""
    parser = CommandParser(
        "train",
        "Train an image classifier from CSV rows of a label and 784 grey pixels.",
        usage="%(prog)s [FLAG ...]",
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
        choices=WANDB_MODES,
        default="auto",
        help="Weights & Biases mode; auto: online when logged in, else offline (default: auto)",
    )
    group.add_argument(
        "--wandb-system",
        action="store_true",
        help="Weights & Biases gets system metrics and console output too, and can stop the run",
    )
    group.add_argument(
        "--tensorboard", action="store_true", help="write TensorBoard event files into the run"
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
    from fmnist_tf.cli.terminal import say
    from fmnist_tf.pipeline.record import describe_sources
    from fmnist_tf.pipeline.run import check, launch, work
    from fmnist_tf.training.cluster import Cluster

    request = Request.of(flags)
    if flags.dry_run:
        config = check(request)
        say("dry run: nothing was trained; the settings would be:")
        print(json.dumps(config.to_json(), indent=2), flush=True)
        return
    workers = Cluster.find()
    if not workers.is_chief:
        work(request, arguments, workers)
        return
    directory, measured = launch(request, arguments, workers)
    config = RunConfig.from_json(directory.read_json("config.json"))
    for line in describe_next(directory, config):
        say(line)
    print(describe_sources(directory))
    split = "val" if config.limit_test == 0 else "test"
    shown = f"{measured.accuracy:.4f} ({measured.correct}/{measured.total})"
    print(f"{directory.path}  {split} accuracy {shown}", flush=True)


def describe_next(directory: RunDir, config: RunConfig) -> list[str]:
    """Return where a complete run's page is, and which commands go on from it."""
    run = directory.name_in(directory.runs_dir)
    where = runs_dir_words(directory.runs_dir)
    commands = [("try it", "predict", [run, "PICTURE.png"])]
    if config.limit_test is not None:
        commands.append(("test all", "evaluate", [run]))
    if config.parent is not None:
        commands.append(("compare", "report", [config.parent, run]))
    if config.phase == "frozen":
        commands.append(("fine-tune", "train", ["--phase", "finetune", "--from", run]))
    lines = [f"report:    {directory.file('report.html')}"]
    for what, name, words in commands:
        lines.append(f"{what + ':':10} {name_command(name)} {shlex.join([*words, *where])}")
    return lines


class _Callable(ModuleType):
    """Importing this module binds it to the name `fmnist_tf.train`, which must stay a function."""

    __call__ = staticmethod(fmnist_tf.api.train)


sys.modules[__name__].__class__ = _Callable


if __name__ == "__main__":
    sys.exit(main())
