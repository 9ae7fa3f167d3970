"""Optimizer step -> learning rate, as a pure function: a resumed run needs no other state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RatePlan:
    """The learning rate of a whole run.

    Attributes:
        schedule: constant, cosine, triangular2 or plateau; see `rate_at`.
        peak: the highest rate.
        steps_per_epoch: optimizer steps of one pass over the training rows.
        epochs: passes.
        minimum: the lowest rate, 0..peak. Smith advises a third or a quarter of the peak for
            triangular2, whose first step has this rate.
        warmup_steps: constant, cosine: the first steps, in which the rate rises.
        cycle_steps: triangular2: steps from minimum to peak and back, at least 2. Smith advises 4
            to 20 epochs.
        factor: plateau: what the rate is multiplied by, above 0 and below 1.
        patience: plateau: epochs without improvement until the rate is reduced.
        threshold: plateau: nats by which a validation loss must be below the lowest one to be an
            improvement.
    """

    schedule: str
    peak: float
    steps_per_epoch: int
    epochs: int
    minimum: float = 0.0
    warmup_steps: int = 0
    cycle_steps: int = 0
    factor: float = 0.1
    patience: int = 2
    threshold: float = 1e-4

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.epochs


def rate_at(plan: RatePlan, step: int, val_losses: Sequence[float] = ()) -> float:
    """Return the learning rate at a step.

    With W = warmup_steps, T = total_steps, C = cycle_steps:

    - warm-up, step < W: (step + 1) / (W + 1) of the way from minimum to peak, linear up to the peak
      at step W (the gradual warm-up of Goyal et al. 2017, section 2.2).
    - constant: peak.
    - cosine: (1 + cos(pi * (step - W) / (T - W))) / 2 of the way from minimum to peak (Loshchilov
      and Hutter 2017, equation 5, one period).
    - triangular2: from minimum linearly up to a top and down again in C steps. The first top is the
      peak; its distance from minimum is halved in each cycle (Smith 2017, section 3.1).
    - plateau: peak * factor ** n, at least minimum, after n reductions (as
      `keras.callbacks.ReduceLROnPlateau` without cooldown); see `count_reductions`.

    Args:
        plan: of the whole run.
        step: 0-based, over the whole run.
        val_losses: plateau: in nats, of all epochs so far; later epochs are ignored.

    Raises:
        ValueError: the step is outside the run, the schedule is unknown, or a loss that plateau
            needs is missing.
    """
    if not 0 <= step < plan.total_steps:
        raise ValueError(f"step {step} is outside 0..{plan.total_steps - 1}")
    if step < plan.warmup_steps:
        return _between(plan, (step + 1) / (plan.warmup_steps + 1))
    if plan.schedule == "constant":
        return plan.peak
    if plan.schedule == "cosine":
        turn = (step - plan.warmup_steps) / (plan.total_steps - plan.warmup_steps)
        return _between(plan, (1 + math.cos(math.pi * turn)) / 2)
    if plan.schedule == "triangular2":
        cycle, within = divmod(step, plan.cycle_steps)
        height = 1 - abs(2 * within / plan.cycle_steps - 1)
        return _between(plan, math.ldexp(height, -cycle))
    if plan.schedule != "plateau":
        raise ValueError(f"expected a schedule, found {plan.schedule}")
    epochs = step // plan.steps_per_epoch
    if len(val_losses) < epochs:
        raise ValueError(f"{len(val_losses)} validation losses; step {step} needs {epochs}")
    reductions = count_reductions(val_losses[:epochs], plan.patience, plan.threshold)
    return max(plan.minimum, plan.peak * plan.factor**reductions)


def count_reductions(val_losses: Sequence[float], patience: int, threshold: float) -> int:
    """Return how often plateau has reduced the rate after these losses.

    A loss is an improvement if it is more than `threshold` below the best one so far; NaN is none.
    After `patience` epochs without improvement the rate is reduced and the count restarts.
    """
    best, waited, reductions = math.inf, 0, 0
    for loss in val_losses:
        if loss < best - threshold:
            best, waited = loss, 0
        else:
            waited += 1
        if waited == patience:
            reductions, waited = reductions + 1, 0
    return reductions


def _between(plan: RatePlan, fraction: float) -> float:
    """Return the rate at a fraction, 0..1, of the way from minimum to peak."""
    return plan.minimum * (1 - fraction) + plan.peak * fraction
