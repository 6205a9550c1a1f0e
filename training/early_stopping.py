"""Early stopping (Prechelt 1998): a training ends once a figure of the validation split has got no better for some epochs.

It is worked out anew from the figures of the epochs done, which are sums over all ranks and stand in every checkpoint: all ranks
come to the same end, and so does a run that was broken off and resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lakering.errors import SettingError, nearest
from recipes.training import EarlyStopping

PREFIX = "validation_"
#: The metrics of which more is better, and less; of the others a recipe must tell.
HIGHER = frozenset({"auc", "accuracy", "r2"})
LOWER = frozenset({"log_loss", "brier", "normalised_entropy", "calibration_error", "rmse", "mae"})


def validate_early_stopping(settings: EarlyStopping, names: Iterable[str] | None) -> None:
    """Raises SettingError unless the metric is among the ``names`` of the validation split's (None: there is no such split),
    and it is known which way it gets better."""
    if names is None:
        raise SettingError(f"training.early_stopping looks at {settings.metric}, and the snapshot has no validation split",
                           next_step="leave early_stopping out, or build examples with a validation split")  # fmt: skip
    known = [f"{PREFIX}{name}" for name in names if name != "rows"]
    if settings.metric not in known:
        raise SettingError(f"training.early_stopping.metric: there is no {settings.metric!r}{nearest(settings.metric, known)}")
    if settings.better is None and settings.metric.removeprefix(PREFIX) not in HIGHER | LOWER:
        raise SettingError(f"training.early_stopping.metric: which way {settings.metric} gets better is not known",
                           next_step="set training.early_stopping.better: higher, or lower")  # fmt: skip


def stopping_reason(settings: EarlyStopping | None, epochs: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a training ends after the epochs done, in words, or None while it goes on. A figure that is no number is no better."""
    if settings is None:
        return None
    higher = settings.better == "higher" if settings.better else settings.metric.removeprefix(PREFIX) in HIGHER
    best, best_epoch = None, -1
    for facts in epochs:
        value = facts.get(settings.metric)
        if value is None or math.isnan(value):
            continue
        if best is None or (value - best if higher else best - value) > settings.min_delta:
            best, best_epoch = value, facts["epoch"]
    last = epochs[-1]["epoch"] if epochs else -1
    if last - best_epoch < settings.patience:
        return None
    shown = "a number" if best is None else f"better than {best:.4g} of epoch {best_epoch}"
    waited = "1 epoch" if settings.patience == 1 else f"{settings.patience} epochs"
    return f"stopped early after epoch {last}: {settings.metric} has not been {shown} for {waited}"
