"""Optimizer step -> learning rate, as a pure function.

In: a plan of the whole run, a step's number, the validation losses so far. Out: the rate to use at
that step. Nothing is remembered between calls, so a resumed run continues exactly where the
interrupted one would have gone. This module must not know Keras, optimizers or data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_tf.settings.config import SCHEDULES, WITH_WARMUP


@dataclass(frozen=True)
class RatePlan:
    """The learning rate of a whole run, before it begins.

    Attributes:
        schedule: one of `SCHEDULES`; see `rate_at`.
        peak: the highest rate.
        steps_per_epoch: optimizer steps of one pass over the training rows.
        epochs: passes.
        least: the lowest rate, 0..peak; where warm-up, cosine and triangular2 begin or end, and
            the floor of plateau. Smith advises a third or a quarter of the peak for triangular2,
            whose first step has this rate.
        warmup_steps: the first steps, in which the rate rises; for constant and cosine.
        cycle_steps: triangular2: steps from least to peak and back, at least 2. Smith advises 4
            to 20 epochs.
        factor: plateau: what the rate is multiplied by, above 0 and below 1.
        patience: plateau: epochs without a lower validation loss until the rate is reduced.
        threshold: plateau: nats by which a loss must undercut the lowest one to count as lower.

    Raises:
        ValueError: an attribute lies outside its range, or the schedule has no warm-up.
    """

    schedule: str
    peak: float
    steps_per_epoch: int
    epochs: int
    least: float = 0.0
    warmup_steps: int = 0
    cycle_steps: int = 0
    factor: float = 0.1
    patience: int = 2
    threshold: float = 1e-4

    def __post_init__(self) -> None:
        for holds, expected in (
            (self.schedule in SCHEDULES, f"schedule one of {', '.join(SCHEDULES)}"),
            (0 < self.peak < math.inf, "peak a finite number above 0"),
            (0 <= self.least <= self.peak, "least from 0 to peak"),
            (self.steps_per_epoch >= 1 and self.epochs >= 1, "steps_per_epoch and epochs from 1"),
            (0 <= self.warmup_steps <= self.total_steps, "warmup_steps from 0 to all steps"),
            (
                self.warmup_steps == 0 or self.schedule in WITH_WARMUP,
                f"warmup_steps with {' or '.join(WITH_WARMUP)} alone",
            ),
            (self.cycle_steps >= 2 or self.schedule != "triangular2", "cycle_steps from 2"),
            (0 < self.factor < 1, "factor above 0 and below 1"),
            (self.patience >= 1, "patience from 1"),
            (self.threshold >= 0, "threshold from 0"),
        ):
            if not holds:
                raise ValueError(f"{self}: expected {expected}")

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.epochs


def rate_at(plan: RatePlan, step: int, val_losses: Sequence[float] = ()) -> float:
    """Return the learning rate to use at a step.

    With W = warmup_steps, T = total_steps, C = cycle_steps, all ratios true divisions:

    - warm-up, step < W: (step + 1) / (W + 1) of the way from least to peak, so a constant amount
      more at each step, and the peak at step W (the gradual warm-up of Goyal et al. 2017, section
      2.2). The first step is not wasted on a rate of 0.
    - constant: peak.
    - cosine: (1 + cos(pi * (step - W) / (T - W))) / 2 of the way from least to peak; it would
      reach least at step T (Loshchilov and Hutter 2017, equation 5, one period).
    - triangular2: from least up to a top and down again in straight lines, once every C steps; the
      first top is the peak, and the distance from least to the top is halved from cycle to cycle
      (Smith 2017, section 3.1).
    - plateau: peak * factor ** n, not below least, with n reductions so far (as
      `keras.callbacks.ReduceLROnPlateau` without cooldown); see `count_reductions`.

    Args:
        plan: of the whole run.
        step: 0-based, over the whole run.
        val_losses: plateau: in nats, after each epoch from the first; those of epochs that end
            after this step are not looked at, so the whole history may be given for any step.

    Raises:
        ValueError: the step lies outside the run, or a loss that plateau needs is missing.
    """
    if not 0 <= step < plan.total_steps:
        raise ValueError(f"step {step} lies outside 0..{plan.total_steps - 1}")
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
    epochs = step // plan.steps_per_epoch
    if len(val_losses) < epochs:
        raise ValueError(f"{len(val_losses)} validation losses; step {step} needs {epochs}")
    reductions = count_reductions(val_losses[:epochs], plan.patience, plan.threshold)
    return max(plan.least, plan.peak * plan.factor**reductions)


def count_reductions(val_losses: Sequence[float], patience: int, threshold: float) -> int:
    """Return how often plateau has reduced the rate after these losses.

    A loss is an improvement if it lies more than `threshold` below the lowest improvement so far;
    the first one is, and NaN never is. `patience` epochs in a row without one make a reduction,
    and the counting of epochs begins anew.
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


def _between(plan: RatePlan, share: float) -> float:
    """Return the rate at a share, 0..1, of the way from least to peak."""
    return plan.least * (1 - share) + plan.peak * share
