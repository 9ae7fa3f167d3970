"""Update rules: Keras' SGD, Adam and AdamW, each step of a variable one fused kernel.

In: a rule's name and its settings. Out: a `keras.optimizers.Optimizer` to build and apply as any
other. Keras composes an update of a dozen element-wise operations, each a pass over memory; with
the 51 million numbers of a dense layer on a flat feature map they take longer than the gradient.
TensorFlow has the whole update as one kernel. The results are Keras' own to float32 rounding. This
module must not know schedules, data or the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from fmnist_tf.settings.config import OPTIMIZERS

# What adamw decays by unless told otherwise: Keras' default.
WEIGHT_DECAY = 0.004


def build_optimizer(
    name: str,
    *,
    momentum: float = 0.9,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    rate_factors: Mapping[str, float] | None = None,
) -> keras.optimizers.Optimizer:
    """Return a fresh optimizer; the loop sets its learning rate before each step.

    Args:
        name: one of `OPTIMIZERS`.
        momentum: of sgd, 0..1, with Nesterov's look-ahead; 0 for plain gradient descent.
        weight_decay: share of a weight taken off at each step, times its learning rate (decoupled,
            Loshchilov and Hutter 2019), from kernels alone; see `_PerVariable`. For adamw (None:
            `WEIGHT_DECAY`) and sgd (None: 0). adam has none.
        clip_norm: the gradients of all variables together are scaled down to this norm if theirs
            is greater (Keras' `global_clipnorm`). None: not clipped. Under several replicas each
            one clips its own share before the shares are added up.
        rate_factors: path of a variable -> what its learning rate is multiplied by; 1 for those
            not named.

    Raises:
        ValueError: the name is unknown, or adam is given a weight decay.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r}; expected one of {', '.join(OPTIMIZERS)}")
    if name == "adam" and weight_decay:
        raise ValueError("adam has no weight decay; expected adamw")
    if weight_decay is None:
        weight_decay = WEIGHT_DECAY if name == "adamw" else 0.0
    shared: dict[str, Any] = {
        "decay": weight_decay,
        "rate_factors": rate_factors or {},
        "global_clipnorm": clip_norm,
        "name": name,
    }
    if name == "sgd":
        return _FusedSGD(momentum=float(momentum), nesterov=True, **shared)
    return _FusedAdam(**shared)


class _PerVariable:
    """What an optimizer does to each variable apart: a rate of its own, decay, one kernel.

    Decay takes rate * decay of a variable off it before its step, as Keras' `weight_decay` does,
    with two differences: the rate is the variable's own, so that a lower rate moves it less in
    every way; and only variables of two axes or more decay, the kernels of dense and convolution
    layers. Biases and the scales and offsets of BatchNorm have one axis.

    Args:
        decay: from 0.
        rate_factors: path of a variable -> factor of its learning rate, from 0.
        settings: of the Keras optimizer that this class is mixed into.
    """

    def __init__(self, *, decay: float, rate_factors: Mapping[str, float], **settings: Any) -> None:
        super().__init__(**settings)
        self._decay = decay
        self._rate_factors = tuple(rate_factors.items())

    def build(self, variables: Sequence[Any]) -> None:
        """Make the moments of these variables.

        Raises:
            ValueError: a factor's path is none of theirs.
        """
        factors = dict(self._rate_factors)
        if unknown := sorted(set(factors) - {variable.path for variable in variables}):
            raise ValueError(f"rate factors of unknown variables: {', '.join(unknown)}")
        super().build(variables)  # type: ignore[misc]
        self._factors = tuple(factors.get(variable.path, 1.0) for variable in variables)
        self._decays = tuple(self._decay * (len(variable.shape) > 1) for variable in variables)

    def update_step(self, gradient: Any, variable: tf.Variable, learning_rate: Any) -> None:
        """Change one variable and its moments; under several replicas, one replica's copy."""
        index = self._get_variable_index(variable)  # type: ignore[attr-defined]
        rate = tf.cast(learning_rate, variable.dtype) * self._factors[index]
        if self._decays[index]:
            variable.assign(variable * (1 - rate * self._decays[index]))
        self._apply_kernel(tf.cast(gradient, variable.dtype), variable, rate, index)

    def _apply_kernel(
        self, gradient: tf.Tensor, variable: tf.Variable, rate: tf.Tensor, index: int
    ) -> None:
        raise NotImplementedError


class _FusedAdam(_PerVariable, keras.optimizers.Adam):  # type: ignore[misc]
    """`keras.optimizers.Adam` without amsgrad by one kernel a variable; with decay, AdamW.

    The moments are those of Keras' class, under the names that it keeps for itself and its kind.
    """

    def _apply_kernel(
        self, gradient: tf.Tensor, variable: tf.Variable, rate: tf.Tensor, index: int
    ) -> None:
        step = tf.cast(self.iterations + 1, variable.dtype)
        beta_1, beta_2 = (tf.constant(beta, variable.dtype) for beta in (self.beta_1, self.beta_2))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=beta_1**step,
            beta2_power=beta_2**step,
            lr=rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class _FusedSGD(_PerVariable, keras.optimizers.SGD):  # type: ignore[misc]
    """`keras.optimizers.SGD` by one kernel a variable."""

    def _apply_kernel(
        self, gradient: tf.Tensor, variable: tf.Variable, rate: tf.Tensor, index: int
    ) -> None:
        if self.momentum == 0:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[index].value.handle,
            lr=rate,
            grad=gradient,
            momentum=self.momentum,
            use_nesterov=self.nesterov,
        )


def update_averages(
    averages: Sequence[Any], variables: Sequence[Any], decay: float, step: tf.Tensor
) -> None:
    """Move each average towards its variable: average += (1 - d) * (variable - average).

    d = min(decay, (1 + step) / (10 + step)) lets the averages of a short run forget its start (the
    rule of `tf.train.ExponentialMovingAverage`). Graph operations, to be called after the
    optimizer's step and outside `strategy.run`.

    Args:
        averages: changed in place; same shapes as `variables`, and equal to them at the start.
        variables: what is averaged.
        decay: 0..1, e.g. 0.999.
        step: updates of the averages before this one, as an integer tensor.
    """
    done = tf.cast(step, tf.float32)
    share = 1 - tf.minimum(decay, (1 + done) / (10 + done))
    for average, variable in zip(averages, variables, strict=True):
        average.assign_sub(share * (average - variable))
