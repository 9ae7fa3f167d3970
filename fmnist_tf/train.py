"""`python -m fmnist_tf.train`: data -> a trained classifier in a run directory.

In: flags. Out: a run directory, progress on stderr, the run and its test accuracy as the last line
of stdout, and an exit code. This module parses, assembles and hands over; what a part does is in
that part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tf.cli.command import add_runs_dir, add_terminal_flags, run_command
from fmnist_tf.errors import UsageError, printable
from fmnist_tf.settings.complete import complete_config
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.settings.flags import add_flags
from fmnist_tf.settings.recipe import describe_recipes, read_recipe

if TYPE_CHECKING:
    from fmnist_tf.pipeline.saved_run import SavedRun


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
        "--list-recipes", action="store_true", help="show the recipes and what they reach"
    )
    add_flags(parser)
    group = parser.add_argument_group("where")
    group.add_argument("--run", metavar="NAME", help="name of the run (default: time and phase)")
    add_where(group)
    group.add_argument(
        "--dry-run", action="store_true", help="check data and settings, say what would be done"
    )
    add_terminal_flags(parser)
    return parser


def add_recipe(group: argparse._ActionsContainer) -> None:
    """Add --recipe, which `read_settings` reads."""
    group.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="settings from a recipe, a TOML file, or a run's config.json; flags override, and "
        "`none` unsays what has no value by default",
    )


def add_where(group: argparse._ActionsContainer) -> None:
    """Add where runs lie, which one is continued and where it is mirrored."""
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
        help="Weights & Biases mirror; auto: online when logged in, else offline (default: auto)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = build_parser().parse_args(arguments)
    return run_command(lambda flags: _train(flags, arguments), flags)


@dataclass(frozen=True)
class Settings:
    """What the flags ask for.

    Attributes:
        given: the settings that the person set by flags.
        recipe: the settings that the recipe sets.
        source: what messages call the recipe.
        parent: the frozen run that a finetune run continues.
        runs_dir: the folder of runs.
    """

    given: dict[str, Any]
    recipe: dict[str, Any]
    source: str
    parent: SavedRun | None
    runs_dir: Path

    @property
    def seed(self) -> int:
        """The seed that `complete` gives: of the flags, the recipe or the parent."""
        inherited = self.parent.config.seed if self.parent else RunConfig().seed
        return int({"seed": inherited, **self.recipe, **self.given}["seed"])

    def complete(self, **more: Any) -> tuple[RunConfig, list[str]]:
        """Return the whole configuration, and what came from where; `more` overrides flags.

        Raises:
            UsageError: a value is out of range, or contradicts another or the parent.
        """
        return complete_config(
            {**self.given, **more},
            self.parent.config if self.parent else None,
            self.parent.directory.name_in(self.runs_dir) if self.parent else None,
            recipe=self.recipe,
            recipe_name=self.source,
        )


def read_settings(flags: argparse.Namespace, *, usual_parent: str | None = None) -> Settings:
    """Return what the flags, the recipe and the frozen run to continue say.

    Args:
        flags: of the command.
        usual_parent: what finetune continues where neither flag nor recipe names a run; None: the
            newest complete frozen run.

    Raises:
        UsageError: the recipe or the run to continue is at fault.
    """
    given = {name: value for name, value in vars(flags).items() if name in RunConfig.model_fields}
    recipe, source = {}, ""
    if flags.recipe is not None:
        read = read_recipe(flags.recipe)
        recipe, source = read.settings_of(given.get("phase")), read.name
    parent = None
    if {**recipe, **given}.get("phase") == "finetune":
        parent = _find_parent(flags, recipe.get("parent"), source, usual_parent)
    elif flags.from_run:
        raise UsageError("--from RUN: expected with --phase finetune alone")
    return Settings(given, recipe, source, parent, flags.runs_dir)


def _train(flags: argparse.Namespace, arguments: list[str]) -> None:
    if flags.list_recipes:
        print(describe_recipes())
        return
    # What is cheap to check comes first; importing TensorFlow takes seconds and comes last.
    settings = read_settings(flags)
    (config, lines), parent = settings.complete(), settings.parent
    from fmnist_tf.cli.terminal import say
    from fmnist_tf.pipeline import session
    from fmnist_tf.pipeline.run import Run, StageClock
    from fmnist_tf.results.provenance import command_line, describe_code
    from fmnist_tf.results.rundir import RunDir, check_name
    from fmnist_tf.system.memory import MemoryWatch
    from fmnist_tf.system.startup import import_tensorflow

    if flags.run is not None:
        check_name(flags.runs_dir, flags.run)
    cache_dir = config.cache_dir(flags.runs_dir)
    for line in lines:
        say(line)
    clock, memory = StageClock(), MemoryWatch()
    dataset, splits = session.read_data(config, parent, cache_dir, clock)
    code = describe_code()
    with clock.stage("import_tensorflow"):
        import_tensorflow()
    config, network = session.prepare_network(config, dataset, parent, cache_dir, clock)
    if flags.dry_run:
        say("dry run, no run was made; its settings would be:")
        print(json.dumps(config.to_json(), indent=2), flush=True)
        return
    directory = RunDir.create(flags.runs_dir, flags.run, config.phase, dataset.name)
    with directory.locked():
        say(f"run: {directory.path}")
        run = Run(
            config=config,
            dataset=dataset,
            splits=splits,
            network=network,
            directory=directory,
            parent=parent,
            code=code,
            cache_dir=cache_dir,
            clock=clock,
            memory=memory,
            wandb_mode=flags.wandb,
            wandb_group=(parent.directory if parent else directory).group,
            command=command_line("fmnist_tf.train", naming_parent(arguments, flags, config)),
        )
        test = session.run_session(run)
    print(run.sources)
    print(
        f"{directory.path}  test accuracy {test.accuracy:.4f} ({test.correct}/{test.total})",
        flush=True,
    )


def naming_parent(
    arguments: Sequence[str], flags: argparse.Namespace, config: RunConfig
) -> list[str]:
    """Return the words of a command with the run that it continues among them."""
    # Which run is the newest may differ when the command is repeated.
    is_silent = config.parent and not flags.from_run
    return [*arguments, "--from", str(config.parent)] if is_silent else list(arguments)


def _find_parent(
    flags: argparse.Namespace, named: str | None, source: str, usual: str | None
) -> SavedRun:
    """Return the frozen run that a finetune run continues.

    Args:
        flags: --from has the first word.
        named: the parent that the recipe names, if any.
        source: where it is named.
        usual: the parent where neither names one; None: the newest complete frozen run.
    """
    from fmnist_tf.cli.terminal import say
    from fmnist_tf.pipeline.saved_run import find_run
    from fmnist_tf.pipeline.session import read_parent
    from fmnist_tf.results.rundir import find_newest_complete_run

    if flags.from_run:
        return read_parent(find_run(flags.from_run, flags.runs_dir))
    if named is not None:
        try:
            directory = find_run(named, flags.runs_dir)
        except UsageError as error:
            hint = f"{source} names it as the parent; --from names another"
            raise UsageError(f"{error}. {hint}") from error
        say(f"finetune continues {directory.path}, the parent in {source}")
        return read_parent(directory)
    if usual is not None:
        say(f"finetune continues {printable(usual, 200)}, as before")
        return read_parent(find_run(usual, flags.runs_dir))
    newest = find_newest_complete_run(flags.runs_dir, "frozen")
    if newest is None:
        raise UsageError(
            f"--phase finetune continues a complete frozen run, and {flags.runs_dir} holds none; "
            "run `python -m fmnist_tf.train --phase frozen` first, or name one with --from"
        )
    say(f"finetune continues {newest.path}, the newest complete frozen run")
    return read_parent(newest)


if __name__ == "__main__":
    sys.exit(main())
