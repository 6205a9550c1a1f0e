"""Metrics of numbers: sums of errors, and tables for the plots."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.metrics.base import TINY, Floats, weights_of

CELLS = 40
SUMS = 7


class RegressionMetrics:
    """Sums of errors, a table of predictions against values, and a histogram of residuals, on the label's scale."""

    def __init__(self, mean: float, std: float, cells: int = CELLS) -> None:
        self._cells = cells
        self.edges = mean + std * np.linspace(-3, 3, cells + 1)
        self.residual_edges = std * np.linspace(-3, 3, cells + 1)
        self.state: Floats = np.zeros(cells * cells + cells + SUMS)

    def add(self, predictions: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> None:
        p, y = np.asarray(predictions, np.float64), np.asarray(label, np.float64)
        w = weights_of(weight, len(y))
        error = p - y
        cell = _cell(p, self.edges) * self._cells + _cell(y, self.edges)
        self.state[: self._cells**2] += np.bincount(cell, w, self._cells**2)
        self.state[self._cells**2 : -SUMS] += np.bincount(_cell(error, self.residual_edges), w, self._cells)
        sums = (w, w * error, w * abs(error), w * error**2, w * y, w * y**2)
        self.state[-SUMS:] += (*(part.sum() for part in sums), len(y))

    @property
    def predicted_and_actual(self) -> Floats:
        """Weights [prediction's cell, value's cell]; what lies beyond the edges is in the outer cells."""
        return self.state[: self._cells**2].reshape(self._cells, self._cells)

    @property
    def residuals(self) -> Floats:
        return self.state[self._cells**2 : -SUMS]

    def figures(self) -> dict[str, float]:
        weight, error, absolute, squared, value, value_squared, rows = self.state[-SUMS:]
        weight = max(float(weight), TINY)
        variance = value_squared / weight - (value / weight) ** 2
        r2 = float(1 - squared / weight / variance) if variance > 0 else float("nan")
        return {"rmse": float(np.sqrt(squared / weight)), "mae": float(absolute / weight), "bias": float(error / weight),
                "r2": r2, "rows": int(rows)}  # fmt: skip


def _cell(values: Floats, edges: Floats) -> npt.NDArray[np.int64]:
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
