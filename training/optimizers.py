"""Optimizers over plain variables, on TensorFlow's fused kernels.

Keras 3's own cannot be used under Horovod as they stand, and their slots have no stable names; here
a slot's name is its variable's, and the state is exactly ``slots``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from recipes.settings import Training

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7


class Optimizer:
    """SGD, Adam (Kingma, Ba 2015) or AdamW (Loshchilov, Hutter 2019)."""

    def __init__(self, settings: Training, variables: Sequence[tf.Variable]) -> None:
        self._settings = settings
        self._variables = list(variables)
        kinds = () if settings.optimizer == "sgd" else ("m", "v")
        self.slots = {
            f"{kind}/{name_of(variable)}": tf.Variable(tf.zeros_like(variable), trainable=False)
            for kind in kinds
            for variable in self._variables
        }

    def rates(self, learning_rate: float, step: int) -> np.ndarray:
        """The numbers that change with the step (from 0), for ``apply``: worked out in float64 outside the graph."""
        return np.array([learning_rate, BETA_1 ** (step + 1), BETA_2 ** (step + 1)], np.float64)

    def apply(self, gradients: Sequence[tf.Tensor], rates: tf.Tensor) -> None:
        """One step, inside a ``tf.function``."""
        decay = self._settings.weight_decay
        for variable, gradient in zip(self._variables, gradients, strict=True):
            rate, beta_1_power, beta_2_power = tf.unstack(tf.cast(rates, variable.dtype))
            if decay and self._settings.optimizer == "adamw":
                variable.assign_sub(rate * tf.cast(decay, variable.dtype) * variable)
            elif decay:
                gradient += tf.cast(decay, variable.dtype) * variable
            if self._settings.optimizer == "sgd":
                variable.assign_sub(rate * gradient)
                continue
            name = name_of(variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=self.slots[f"m/{name}"].handle, v=self.slots[f"v/{name}"].handle,
                beta1_power=beta_1_power, beta2_power=beta_2_power, lr=rate, beta1=tf.cast(BETA_1, variable.dtype),
                beta2=tf.cast(BETA_2, variable.dtype), epsilon=tf.cast(EPSILON, variable.dtype), grad=gradient)  # fmt: skip


def name_of(variable: tf.Variable) -> str:
    return str(variable.name).removesuffix(":0")
