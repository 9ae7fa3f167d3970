"""What was asked for, a recipe and the frozen run to continue -> the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
class Request:
    """What a command line or a Python program asks `train` for.

    Attributes:
        given: settings, by name; the others are the recipe's, the parent's or the defaults.
        runs_dir: the folder of runs.
        recipe: name or file of a recipe; None for none.
        from_run: the frozen run that finetune continues; None: the newest complete one.
        run: name of the run; None: time and phase. An unfinished run of this name is continued.
        resume: name or folder of the unfinished run to continue, with its settings.
        accept_changes: continue a run although what it depends on has changed.
        checkpoint_seconds: time between two checkpoints within an epoch.
        wandb, wandb_system, tensorboard: see `TrackingOptions`.
    """

    given: dict[str, Any]
    runs_dir: Path = Path("runs")
    recipe: str | None = None
    from_run: str | None = None
    run: str | None = None
    resume: str | None = None
    accept_changes: bool = False
    checkpoint_seconds: float = 120.0
    wandb: str = "auto"
    wandb_system: bool = False
    tensorboard: bool = False


def pick_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run among the flags of a command."""
    return {name: value for name, value in values.items() if name in RunConfig.model_fields}


@dataclass(frozen=True)
class Settings:
    """What is asked for, by source.

    Attributes:
        given: settings given as flags or arguments.
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


def read_settings(request: Request, *, default_parent: str | None = None) -> Settings:
    """Return what the request, its recipe and the frozen run to continue ask for.

    Args:
        request: gives settings, recipe, parent and the folder of runs.
        default_parent: the run that finetune continues where neither request nor recipe names one;
            None: the newest complete frozen run.

    Raises:
        UsageError: the recipe is invalid, or the run to continue is incomplete, of another phase,
            or damaged.
    """
    given = request.given
    recipe, source = {}, ""
    if request.recipe is not None:
        read = read_recipe(request.recipe)
        recipe, source = read.settings_of(given.get("phase")), read.name
    parent = None
    if {**recipe, **given}.get("phase") == "finetune":
        from fmnist_tf.cli.terminal import boxed, warn
        from fmnist_tf.pipeline.saved_run import read_saved_run

        parent = read_saved_run(_find_parent(request, recipe.get("parent"), source, default_parent))
        for caveat in parent.caveats if parent.checkpoint else ():
            warn(boxed(f"WARNING, {parent.directory.path}: {caveat}."))
        if parent.config.phase != "frozen":
            raise UsageError(
                f"{parent.directory.path}: expected a frozen run, found one of phase "
                f"{parent.config.phase}; name another with --from"
            )
    elif request.from_run:
        raise UsageError("--from RUN: expected only with --phase finetune")
    return Settings(given, recipe, source, parent, request.runs_dir)


def naming_parent(arguments: Sequence[str], from_run: str | None, config: RunConfig) -> list[str]:
    """Return the words of a command, with --from added where the newest run was continued.

    Another run may be the newest when the command is repeated.
    """
    is_implicit = config.parent and not from_run
    return [*arguments, "--from", str(config.parent)] if is_implicit else list(arguments)


def _find_parent(request: Request, named: str | None, source: str, default: str | None) -> RunDir:
    """Return the run that finetune continues: of --from, the recipe, the default, or the newest."""
    from fmnist_tf.cli.terminal import say
    from fmnist_tf.pipeline.saved_run import find_run
    from fmnist_tf.results.rundir import find_newest_complete_run

    if request.from_run:
        return find_run(request.from_run, request.runs_dir)
    if named is not None:
        try:
            directory = find_run(named, request.runs_dir)
        except UsageError as error:
            hint = f"{source} names it as the parent; --from names another"
            raise UsageError(f"{error}. {hint}") from error
        say(f"finetune continues {directory.path}, the parent in {source}")
        return directory
    if default is not None:
        say(f"finetune continues {default}, as before")
        return find_run(default, request.runs_dir)
    newest = find_newest_complete_run(request.runs_dir, "frozen")
    if newest is None:
        raise UsageError(
            f"--phase finetune continues a complete frozen run, and {request.runs_dir} holds none; "
            "run `python -m fmnist_tf.train --phase frozen` first, or name one with --from"
        )
    say(f"finetune continues {newest.path}, the newest complete frozen run")
    return newest
