"""What was asked for, a recipe and the frozen run to continue -> the settings of a run."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tf.errors import UsageError
from fmnist_tf.settings.complete import Settings
from fmnist_tf.settings.config import WANDB_MODES, RunConfig
from fmnist_tf.settings.recipe import read_recipe
from fmnist_tf.settings.types import SettingError

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

    Raises:
        SettingError: `checkpoint_seconds` or `wandb` is out of range.
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

    def __post_init__(self) -> None:
        if not self.checkpoint_seconds >= 0:
            raise SettingError("checkpoint_seconds", self.checkpoint_seconds, "a number from 0")
        if self.wandb not in WANDB_MODES:
            raise SettingError("wandb", self.wandb, ", ".join(WANDB_MODES))

    @classmethod
    def of(cls, flags: Namespace) -> Request:
        """Return what the flags of `train` or `sweep` ask for; one that is not given is absent."""
        words = vars(flags)
        given = {name: words[name] for name in RunConfig.model_fields if name in words}
        own = {field.name: words[field.name] for field in fields(cls) if field.name in words}
        return cls(given=given, **own)


def read_settings(
    request: Request, *, default_parent: str | None = None
) -> tuple[Settings, SavedRun | None]:
    """Return what the request and its recipe ask for, and the frozen run that finetune continues.

    Where neither request nor recipe names the run that finetune continues, it is `default_parent`,
    else the newest complete frozen run.

    Raises:
        UsageError: the recipe is invalid, or the run to continue is incomplete, of another phase,
            or damaged.
    """
    given = request.given
    recipe, source = {}, ""
    if request.recipe is not None:
        read = read_recipe(request.recipe)
        recipe, source = read.settings_of(given.get("phase")), read.name
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
        name = parent.directory.name_in(request.runs_dir)
        return Settings(given, recipe, source, parent.config, name), parent
    if request.from_run:
        raise UsageError("--from RUN: expected only with --phase finetune")
    return Settings(given, recipe, source), None


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
