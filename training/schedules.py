"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from recipes.settings import Training


def learning_rate(settings: Training, step: int, total_steps: int) -> float:
    """Linear warm-up over ``warmup_steps``, then constant, or half a cosine down to 0 at the last step
    (Loshchilov, Hutter: SGDR, 2017)."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    after = max(1, total_steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - settings.warmup_steps) / after)))
