"""Optimizer step -> learning rate, as pure functions.

In: a step's number and the run's length. Out: a factor in 0..1 of the peak rate. This module must
not know Keras, optimizers or epochs.
"""

from __future__ import annotations

import math


def rate_factor(schedule: str, step: int, total_steps: int) -> float:
    """Return the share of the peak learning rate to use at a step.

    - constant: 1.
    - cosine: (1 + cos(pi * step / total_steps)) / 2, from 1 at step 0 towards 0
      (Loshchilov and Hutter 2017, equation 5, one period).

    Args:
        schedule: constant or cosine.
        step: 0-based, over the whole run.
        total_steps: steps of the whole run, at least 1.

    Raises:
        ValueError: the schedule is unknown or the step lies outside the run.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} lies outside 0..{total_steps - 1}")
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / total_steps)) / 2
    raise ValueError(f"schedule {schedule!r}; expected constant or cosine")
