"""Keras' SGD, Adam and AdamW with one fused TensorFlow kernel for each variable.

Keras updates a variable in a dozen element-wise operations, each a pass over memory; for the 51
million parameters of a dense layer on a flat feature map they take longer than the gradient. The
results are those of Keras up to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

OPTIMIZERS = ("adam", "adamw", "sgd")
WEIGHT_DECAY = 0.004
"""Keras' default for AdamW."""


def build_optimizer(
    name: str,
    *,
    momentum: float = 0.9,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    rate_factors: Mapping[str, float] | None = None,
) -> keras.optimizers.Optimizer:
    """Return an optimizer; the loop sets its learning rate before each step.

    Args:
        name: one of `OPTIMIZERS`.
        momentum: of sgd, 0..1, Nesterov's; 0 for plain gradient descent.
        weight_decay: decoupled (Loshchilov and Hutter 2019), for kernels only; see `_PerVariable`.
            None: `WEIGHT_DECAY` for adamw, 0 for sgd and adam.
        clip_norm: upper bound on the norm of all gradients together (Keras' `global_clipnorm`), or
            None.
        rate_factors: path of a variable -> factor on its learning rate; 1 for all others.

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
    """An optimizer with a learning rate, decay and one kernel for each variable.

    Before its step a variable is multiplied by 1 - rate * decay. Unlike Keras' `weight_decay`, this
    uses the variable's own rate and applies only to variables of two axes or more: the kernels of
    dense and convolution layers, not biases or BatchNorm's scales and offsets.

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
        """Create the moments of these variables.

        Raises:
            ValueError: a factor's path is not that of a variable.
        """
        factors = dict(self._rate_factors)
        if unknown := sorted(set(factors) - {variable.path for variable in variables}):
            raise ValueError(f"rate factors of unknown variables: {', '.join(unknown)}")
        super().build(variables)  # type: ignore[misc]
        self._factors = tuple(factors.get(variable.path, 1.0) for variable in variables)
        self._decays = tuple(self._decay * (len(variable.shape) > 1) for variable in variables)

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Take a step along the sum of the replicas' gradients, which is clipped as one."""
        if self._distribution_strategy.num_replicas_in_sync > 1:  # type: ignore[attr-defined]
            replica = tf.distribute.get_replica_context()
            grads = replica.all_reduce(tf.distribute.ReduceOp.SUM, grads)
        super().apply(grads, trainable_variables)  # type: ignore[misc]

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        """Return them as they are: Keras would sum them here, after clipping."""
        return grads_and_vars

    def update_step(self, gradient: Any, variable: tf.Variable, learning_rate: Any) -> None:
        """Update one variable and its moments, in the current replica."""
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
    """`keras.optimizers.Adam` without amsgrad; with decay, AdamW."""

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
    """`keras.optimizers.SGD`."""

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
    """Update exponential moving averages: average += (1 - d) * (variable - average).

    d = min(decay, (1 + step) / (10 + step)), so that the averages of a short run forget its start
    (the rule of `tf.train.ExponentialMovingAverage`). Graph operations, to be called after the
    optimizer's step and outside `strategy.run`.

    Args:
        averages: changed in place; initially equal to `variables`.
        variables: to average.
        decay: 0..1, e.g. 0.999.
        step: integer tensor, the updates before this one.
    """
    done = tf.cast(step, tf.float32)
    weight = 1 - tf.minimum(decay, (1 + done) / (10 + done))
    for average, variable in zip(averages, variables, strict=True):
        average.assign_sub(weight * (average - variable))
