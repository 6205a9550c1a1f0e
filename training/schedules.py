"""The learning rate as a pure function of the step, and what it is derived from when batches grow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lakering.errors import SettingError
from recipes.training import Training

MAX_FACTOR = 1_000_000


@dataclass(frozen=True)
class Derived:
    """What ``scale_learning_rate`` comes to: the rate after warm-up, and the steps of warm-up."""

    global_batch_size: int
    learning_rate: float
    warmup_steps: int

    def facts(self, settings: Training) -> dict[str, Any]:
        """For the log, the summary and the record: what is in force and, where it was scaled, out of what."""
        facts = {"global_batch_size": self.global_batch_size, "learning_rate": self.learning_rate,
                 "warmup_steps": self.warmup_steps}  # fmt: skip
        scaling = settings.scale_learning_rate
        if scaling is None:
            return facts
        rule = scaling.rule.replace("_", " ")
        scaled = (f"by the {rule} rule, from {scaling.base_batch_size:,} rows at rate {settings.learning_rate:g} with "
                  f"{settings.warmup_steps:,} warm-up steps")  # fmt: skip
        return {**facts, "scaled": scaled}


def derive(settings: Training) -> Derived:
    """Rate and warm-up for the batch: the rate times ``global_batch_size / base_batch_size`` (linear: Goyal et al. 2017,
    "Accurate, Large Minibatch SGD") or its square root (Krizhevsky 2014; for LAMB You et al. 2020). Warm-up takes as many
    rows as before, rounded up to whole steps."""
    batch, scaling = settings.global_batch_size, settings.scale_learning_rate
    if scaling is None:
        return Derived(batch, settings.learning_rate, settings.warmup_steps)
    factor = batch / scaling.base_batch_size
    rate = settings.learning_rate * (factor if scaling.rule == "linear" else math.sqrt(factor))
    return Derived(batch, rate, -(-settings.warmup_steps * scaling.base_batch_size // batch))


def learning_rate(settings: Training, step: int, total_steps: int) -> float:
    """Linear warm-up, then constant, or half a cosine down to 0 at the last step (Loshchilov, Hutter: SGDR, 2017), or times
    ``step_decay.factor`` at each of its epochs. Epochs and the cosine's end do not depend on the batch size."""
    derived = derive(settings)
    peak, warmup = derived.learning_rate, derived.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "cosine":
        after = max(1, total_steps - warmup)
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / after)))
    if settings.step_decay is not None:
        passed = sum(step * settings.epochs >= epoch * total_steps for epoch in settings.step_decay.at_epochs)
        return float(peak * settings.step_decay.factor**passed)
    return peak


def with_scaled_batch(section: dict[str, Any], factor: int) -> dict[str, Any]:
    """A recipe's ``training`` section with ``factor`` times its batch, and its rate and warm-up scaled: by the section's own
    rule, else linearly for sgd and lars, and by the square root for the others, whose steps do not grow with the gradient.

    Raises SettingError when the factor is not 1 or more."""
    if not 1 <= factor <= MAX_FACTOR:
        raise SettingError(f"--scale-batch {factor}: expected 1 to {MAX_FACTOR:,}")
    batch = section["global_batch_size"]
    rule = "linear" if section["optimizer"] in ("sgd", "lars") else "square_root"
    scaling = section["scale_learning_rate"] or {"rule": rule, "base_batch_size": batch}
    return {**section, "global_batch_size": batch * factor, "scale_learning_rate": scaling}
