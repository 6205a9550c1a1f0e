"""Dynamic loss scaling: what keeps small gradients above float16's least number, and large ones below its largest."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

START, GROWTH_STEPS = 2.0**15, 2000
#: It does not grow beyond this: without a limit, many batches of no gradient would take it out of float32.
MOST = 2.0**24


class LossScale:
    """Micikevicius et al. 2018, "Mixed Precision Training", section 3.2, with a scale that finds itself: it is doubled after
    ``GROWTH_STEPS`` updates in a row, and halved by a step whose gradient is not finite, which updates nothing.

    ``variables`` are the whole state, by name. They follow from summed gradients, so they are the same on all ranks."""

    def __init__(self) -> None:
        self.scale = tf.Variable(START, dtype=tf.float32, trainable=False)
        self._good_steps = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._skipped_steps = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.variables = {"loss_scale/scale": self.scale, "loss_scale/good_steps": self._good_steps,
                          "loss_scale/skipped_steps": self._skipped_steps}  # fmt: skip

    def update(self, finite: tf.Tensor, apply: Callable[[], None]) -> None:
        """Calls ``apply`` if ``finite`` is true, and moves the scale; inside a ``tf.function``."""

        def applied() -> tf.Tensor:
            apply()
            return tf.constant(0, tf.int64)

        self._skipped_steps.assign_add(tf.cond(finite, applied, lambda: tf.constant(1, tf.int64)))
        good = self._good_steps + 1
        grows = good >= GROWTH_STEPS
        grown = tf.where(grows, tf.minimum(self.scale * 2, MOST), self.scale)
        self.scale.assign(tf.where(finite, grown, self.scale / 2))
        self._good_steps.assign(tf.where(finite & ~grows, good, 0))

    def facts(self) -> dict[str, float]:
        return {"loss_scale": float(self.scale.numpy()), "skipped_steps": int(self._skipped_steps.numpy())}
