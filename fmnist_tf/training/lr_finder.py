"""The learning-rate range test: which rate to train with, from one short rising run.

In: the losses of steps whose rate rises from step to step. Out: the rates to try, and one to use,
if there is one. Pure; `Trainer.run_lr_finder` takes the steps. This module must not know networks
or data.

Smith 2017, section 3.3: a network is trained while the rate rises; the loss falls fastest where the
rate is large enough to learn and not yet too large to be stable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST, MOST, STEPS = 1e-6, 1.0, 120
_SMOOTHING = 0.9
_HOPELESS = 4.0
_FIRST_STEPS = 10
"""A smoothed loss that rests on fewer is noise and decides nothing."""
_FALLEN = 0.99
"""The lowest smoothed loss as a share of the first, from which on it has fallen."""


def plan_rates(least: float = LEAST, most: float = MOST, steps: int = STEPS) -> list[float]:
    """Return `steps` rates from `least` to `most`, each the same factor above the one before."""
    return [least * (most / least) ** (step / (steps - 1)) for step in range(steps)]


def smooth_losses(losses: Sequence[float]) -> list[float]:
    """Return the moving average of the losses, its start corrected as Adam's moments are."""
    smoothed, average = [], 0.0
    for number, loss in enumerate(losses, start=1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed.append(average / (1 - _SMOOTHING**number))
    return smoothed


def has_diverged(losses: Sequence[float]) -> bool:
    """Return whether larger rates need not be tried: the smoothed loss is four times its lowest.

    A loss that is not finite is hopeless too. Of the first losses nothing else is: those of small
    batches, or of a network that has learned already, differ by far more.
    """
    settled = smooth_losses(losses)[_FIRST_STEPS - 1 :]
    return not math.isfinite(losses[-1]) or (
        bool(settled) and settled[-1] > _HOPELESS * min(settled)
    )


@dataclass(frozen=True)
class Suggestion:
    """What the losses say.

    Attributes:
        rate: to train with; None where the loss never fell.
        is_bound: the loss still fell at the largest rate, so that a larger one might do better.
    """

    rate: float | None
    is_bound: bool = False


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> Suggestion:
    """Suggest a tenth of the rate at which the smoothed loss was lowest.

    Args:
        rates: rising.
        losses: of the steps that were taken, finite, at most as many.
    """
    settled = smooth_losses(losses)[_FIRST_STEPS - 1 :]
    if not settled or min(settled) > _FALLEN * settled[0]:
        return Suggestion(None)
    lowest = _FIRST_STEPS - 1 + settled.index(min(settled))
    return Suggestion(rates[lowest] / 10, is_bound=lowest == len(rates) - 1)
