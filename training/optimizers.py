"""Optimizers over plain variables, on TensorFlow's fused kernels where it has them.

Keras 3's own cannot be used under Horovod as they stand, and their slots have no stable names; here
a slot's name is its variable's, and the state is exactly ``slots``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from recipes.training import Training
from training.loss_scale import LossScale

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
#: The papers' own: LAMB's epsilon, and what LARS multiplies a layer's ratio with (eta).
LAMB_EPSILON, TRUST_COEFFICIENT = 1e-6, 0.001


class Optimizer:
    """SGD, with momentum where asked for (Goyal et al. 2017, equation 9: v = mu v + g, w -= rate v), Adam (Kingma, Ba 2015),
    AdamW (Loshchilov, Hutter 2019), LARS (You, Gitman, Ginsburg 2017) or LAMB (You et al. 2020).

    LARS and LAMB leave variables of rank 0 or 1, such as biases, out of weight decay and of the scaling by layer, as the
    code of both papers does; where a layer's weights or its step are all zero the ratio is 1."""

    def __init__(self, settings: Training, variables: Sequence[tf.Variable]) -> None:
        self._settings = settings
        self._variables = list(variables)
        self.slots = {
            f"{kind}/{name_of(variable)}": tf.Variable(tf.zeros_like(variable), trainable=False)
            for kind in _slot_kinds(settings)
            for variable in self._variables
        }
        #: With mixed_float16; its state is among the slots.
        self.loss_scale = LossScale() if settings.precision == "mixed_float16" else None
        if self.loss_scale is not None:
            self.slots |= self.loss_scale.variables
        #: Whether a gradient may be ``tf.IndexedSlices``, each id once: rows without a gradient are left as they are.
        self.takes_sparse = settings.optimizer == "sgd" and not settings.momentum and not settings.weight_decay

    def rates(self, learning_rate: float, step: int) -> np.ndarray:
        """The numbers that change with the step (from 0), for ``apply``: worked out in float64 outside the graph."""
        return np.array([learning_rate, BETA_1 ** (step + 1), BETA_2 ** (step + 1)], np.float64)

    def apply(self, gradients: Sequence[tf.Tensor | tf.IndexedSlices], rates: tf.Tensor) -> None:
        """One step, inside a ``tf.function``; with ``takes_sparse`` a gradient may be of some rows."""
        update = {"sgd": self._sgd, "adam": self._adam, "adamw": self._adam, "lars": self._lars, "lamb": self._lamb}
        for variable, gradient in zip(self._variables, gradients, strict=True):
            update[self._settings.optimizer](variable, gradient, rates)

    def _sgd(self, variable: tf.Variable, gradient: tf.Tensor | tf.IndexedSlices, rates: tf.Tensor) -> None:
        rate = tf.cast(rates[0], variable.dtype)
        if isinstance(gradient, tf.IndexedSlices):
            variable.scatter_sub(tf.IndexedSlices(rate * gradient.values, gradient.indices))
            return
        gradient = self._with_decay(variable, gradient)
        if not self._settings.momentum:
            variable.assign_sub(rate * gradient)
            return
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle, accum=self._slot("momentum", variable).handle, lr=rate, grad=gradient,
            momentum=tf.constant(self._settings.momentum, variable.dtype))  # fmt: skip

    def _adam(self, variable: tf.Variable, gradient: tf.Tensor, rates: tf.Tensor) -> None:
        rate, beta_1_power, beta_2_power = tf.unstack(tf.cast(rates, variable.dtype))
        if self._settings.optimizer == "adam":
            gradient = self._with_decay(variable, gradient)
        elif self._settings.weight_decay:
            variable.assign_sub(rate * tf.constant(self._settings.weight_decay, variable.dtype) * variable)
        beta_1, beta_2, epsilon = (tf.constant(value, variable.dtype) for value in (BETA_1, BETA_2, EPSILON))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=self._slot("m", variable).handle, v=self._slot("v", variable).handle,
            beta1_power=beta_1_power, beta2_power=beta_2_power, lr=rate, beta1=beta_1, beta2=beta_2, epsilon=epsilon,
            grad=gradient)  # fmt: skip

    def _lars(self, variable: tf.Variable, gradient: tf.Tensor, rates: tf.Tensor) -> None:
        rate = tf.cast(rates[0], variable.dtype)
        if variable.shape.rank > 1:
            weights, slope = tf.norm(variable), tf.norm(gradient)
            limit = slope + tf.constant(self._settings.weight_decay, variable.dtype) * weights
            rate *= _ratio(tf.constant(TRUST_COEFFICIENT, variable.dtype) * weights, limit)
            gradient = self._with_decay(variable, gradient)
        velocity = self._slot("momentum", variable)
        step = tf.constant(self._settings.momentum, variable.dtype) * velocity + rate * gradient
        velocity.assign(step)
        variable.assign_sub(step)

    def _lamb(self, variable: tf.Variable, gradient: tf.Tensor, rates: tf.Tensor) -> None:
        m, v = self._slot("m", variable), self._slot("v", variable)
        first, second = (tf.cast(1 - power, variable.dtype) for power in (rates[1], rates[2]))
        mean = tf.constant(BETA_1, variable.dtype) * m + tf.constant(1 - BETA_1, variable.dtype) * gradient
        square = tf.constant(BETA_2, variable.dtype) * v + tf.constant(1 - BETA_2, variable.dtype) * tf.square(gradient)
        m.assign(mean)
        v.assign(square)
        step = mean / first / (tf.sqrt(square / second) + tf.constant(LAMB_EPSILON, variable.dtype))
        if variable.shape.rank > 1:
            step = self._with_decay(variable, step)
            step *= _ratio(tf.norm(variable), tf.norm(step))
        variable.assign_sub(tf.cast(rates[0], variable.dtype) * step)

    def _slot(self, kind: str, variable: tf.Variable) -> tf.Variable:
        return self.slots[f"{kind}/{name_of(variable)}"]

    def _with_decay(self, variable: tf.Variable, step: tf.Tensor) -> tf.Tensor:
        # A constant of the variable's type: a cast of a Python number goes through float32.
        decay = self._settings.weight_decay
        return step + tf.constant(decay, variable.dtype) * variable if decay else step


def _slot_kinds(settings: Training) -> tuple[str, ...]:
    if settings.optimizer == "sgd":
        return ("momentum",) if settings.momentum else ()
    return ("momentum",) if settings.optimizer == "lars" else ("m", "v")


def _ratio(weights: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """By how much a layer's step is scaled; 1 where it cannot be told."""
    return tf.where((weights > 0) & (step > 0), tf.math.divide_no_nan(weights, step), tf.ones_like(step))


def name_of(variable: tf.Variable) -> str:
    """Unique in its model: a Keras variable's own name may not be (``training.models.own``)."""
    return str(getattr(variable, "name_in_model", variable.name)).removesuffix(":0")
