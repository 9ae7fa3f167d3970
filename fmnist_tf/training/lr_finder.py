"""The learning-rate finder: rates to try, and one to use.

Smith 2017, section 3.3: train while the rate rises. The loss falls fastest where the rate is large
enough to learn and not yet too large to be stable. `Trainer.run_lr_finder` takes the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MIN_RATE, MAX_RATE, STEPS = 1e-6, 1.0, 120
_SMOOTHING = 0.9
_DIVERGED = 4.0  # times the lowest smoothed loss
_FIRST_STEPS = 10  # smoothed losses of fewer steps are noise and are not used
_FALLEN = 0.99  # lowest smoothed loss over the first one, if the loss fell at all


def plan_rates(
    minimum: float = MIN_RATE, maximum: float = MAX_RATE, steps: int = STEPS
) -> list[float]:
    """Return `steps` rates from `minimum` to `maximum` in geometric progression."""
    return [minimum * (maximum / minimum) ** (step / (steps - 1)) for step in range(steps)]


def smooth_losses(losses: Sequence[float]) -> list[float]:
    """Return the exponential moving average of the losses, bias-corrected as in Adam."""
    smoothed, average = [], 0.0
    for number, loss in enumerate(losses, start=1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed.append(average / (1 - _SMOOTHING**number))
    return smoothed


def has_diverged(losses: Sequence[float]) -> bool:
    """Return whether larger rates need not be tried.

    The last loss is not finite, or the smoothed loss is four times its minimum. The first ten
    steps do not count: losses of single batches differ by more.
    """
    settled = smooth_losses(losses)[_FIRST_STEPS - 1 :]
    return not math.isfinite(losses[-1]) or (
        bool(settled) and settled[-1] > _DIVERGED * min(settled)
    )


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return a tenth of the rate with the lowest smoothed loss; None if the loss never fell.

    Args:
        rates: in rising order.
        losses: finite, of the first steps; at most as many as rates.
    """
    settled = smooth_losses(losses)[_FIRST_STEPS - 1 :]
    if not settled or min(settled) > _FALLEN * settled[0]:
        return None
    return rates[_FIRST_STEPS - 1 + settled.index(min(settled))] / 10
