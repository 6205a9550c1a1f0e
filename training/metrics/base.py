"""What a metric is."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
#: The least weight that is divided by: a metric that has seen nothing has figures too.
TINY = 1e-300


class Metrics(Protocol):
    """Figures of predictions, from a state that adds up: one float64 vector, of one length on all ranks, that is summed over
    the ranks and put back. ``figures`` of a state that has seen no row are there by name, and rounded nowhere."""

    state: Floats

    def add(self, predictions: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> None:
        """Adds rows: predictions as the model's ``predictions`` gives them, label and weight [rows]; no weight is 1."""

    def figures(self) -> dict[str, float]: ...


def weights_of(weight: npt.ArrayLike | None, rows: int) -> Floats:
    return np.ones(rows) if weight is None else np.asarray(weight, np.float64)


def ratio(value: float, by: float) -> float:
    """NaN where there is nothing to divide by."""
    return float(value / by) if by else float("nan")
