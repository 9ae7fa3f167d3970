"""Flags, a recipe and the frozen run to continue -> the settings of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tf.errors import UsageError
from fmnist_tf.settings.complete import complete_config
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.settings.recipe import read_recipe

if TYPE_CHECKING:
    from fmnist_tf.pipeline.saved_run import SavedRun
    from fmnist_tf.results.rundir import RunDir


@dataclass(frozen=True)
class Settings:
    """What the flags ask for, by source.

    Attributes:
        given: settings given as flags.
        recipe: settings of the recipe.
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

    def complete(self, **overrides: Any) -> tuple[RunConfig, list[str]]:
        """Return the whole configuration, and a line for each value that came from elsewhere.

        Raises:
            UsageError: a value is out of range, or contradicts another or the parent.
        """
        return complete_config(
            {**self.given, **overrides},
            self.parent.config if self.parent else None,
            self.parent.directory.name_in(self.runs_dir) if self.parent else None,
            recipe=self.recipe,
            recipe_name=self.source,
        )


def read_settings(flags: argparse.Namespace, *, default_parent: str | None = None) -> Settings:
    """Return what the flags, the recipe and the frozen run to continue ask for.

    Args:
        flags: of the command.
        default_parent: the run that finetune continues where neither flag nor recipe names one;
            None: the newest complete frozen run.

    Raises:
        UsageError: the recipe is invalid, or the run to continue is incomplete, of another phase,
            or damaged.
    """
    given = {name: value for name, value in vars(flags).items() if name in RunConfig.model_fields}
    recipe, source = {}, ""
    if flags.recipe is not None:
        read = read_recipe(flags.recipe)
        recipe, source = read.settings_of(given.get("phase")), read.name
    parent = None
    if {**recipe, **given}.get("phase") == "finetune":
        from fmnist_tf.cli.terminal import boxed, warn
        from fmnist_tf.pipeline.saved_run import read_saved_run

        parent = read_saved_run(_find_parent(flags, recipe.get("parent"), source, default_parent))
        for caveat in parent.caveats if parent.checkpoint else ():
            warn(boxed(f"WARNING, {parent.directory.path}: {caveat}."))
        if parent.config.phase != "frozen":
            raise UsageError(
                f"{parent.directory.path}: expected a frozen run, found one of phase "
                f"{parent.config.phase}; name another with --from"
            )
    elif flags.from_run:
        raise UsageError("--from RUN: expected only with --phase finetune")
    return Settings(given, recipe, source, parent, flags.runs_dir)


def naming_parent(
    arguments: Sequence[str], flags: argparse.Namespace, config: RunConfig
) -> list[str]:
    """Return the words of a command, with --from added where the newest run was continued.

    Another run may be the newest when the command is repeated.
    """
    is_implicit = config.parent and not flags.from_run
    return [*arguments, "--from", str(config.parent)] if is_implicit else list(arguments)


def _find_parent(
    flags: argparse.Namespace, named: str | None, source: str, default: str | None
) -> RunDir:
    """Return the run that finetune continues: of --from, the recipe, the default, or the newest."""
    from fmnist_tf.cli.terminal import say
    from fmnist_tf.pipeline.saved_run import find_run
    from fmnist_tf.results.rundir import find_newest_complete_run

    if flags.from_run:
        return find_run(flags.from_run, flags.runs_dir)
    if named is not None:
        try:
            directory = find_run(named, flags.runs_dir)
        except UsageError as error:
            hint = f"{source} names it as the parent; --from names another"
            raise UsageError(f"{error}. {hint}") from error
        say(f"finetune continues {directory.path}, the parent in {source}")
        return directory
    if default is not None:
        say(f"finetune continues {default}, as before")
        return find_run(default, flags.runs_dir)
    newest = find_newest_complete_run(flags.runs_dir, "frozen")
    if newest is None:
        raise UsageError(
            f"--phase finetune continues a complete frozen run, and {flags.runs_dir} holds none; "
            "run `python -m fmnist_tf.train --phase frozen` first, or name one with --from"
        )
    say(f"finetune continues {newest.path}, the newest complete frozen run")
    return newest
