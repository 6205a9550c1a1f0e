"""Metrics that add up: every state is one float64 vector, so that ranks are joined by a sum.

Binary predictions are counted in bins of their log-odds; AUC, ROC and calibration come from the bins.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from training.models.base import Label

Floats = npt.NDArray[np.float64]
NUM_BINS = 16384
MAX_LOG_ODDS = 16.0
CELLS = 40


class Metrics(Protocol):
    """``state`` may be summed over ranks, then put back. ``figures`` are rounded nowhere."""

    state: Floats

    def add(self, predictions: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> None: ...

    def figures(self) -> dict[str, float]: ...


def build_metrics(label: Label) -> Metrics:
    """The metrics for a kind of label. Predictions are probabilities, or values in the label's unit."""
    return BinaryMetrics() if label.kind == "binary" else RegressionMetrics(label.mean, label.std)


class BinaryMetrics:
    """Weights of positives and negatives per bin of log-odds, and sums: log loss, squared error, prediction, rows."""

    def __init__(self) -> None:
        self.state: Floats = np.zeros(2 * NUM_BINS + 4)

    def add(self, predictions: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> None:
        p = np.clip(np.asarray(predictions, np.float64), 1e-15, 1 - 1e-15)
        y = np.asarray(label, np.float64)
        w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
        place = (np.log(p / (1 - p)) / MAX_LOG_ODDS + 1) / 2 * NUM_BINS
        bins = np.clip(place, 0, NUM_BINS - 1).astype(np.int64)
        self.state[:NUM_BINS] += np.bincount(bins, w * y, NUM_BINS)
        self.state[NUM_BINS : 2 * NUM_BINS] += np.bincount(bins, w * (1 - y), NUM_BINS)
        log_loss = -(y * np.log(p) + (1 - y) * np.log1p(-p))
        self.state[-4:] += (w * log_loss).sum(), (w * (p - y) ** 2).sum(), (w * p).sum(), len(y)

    @property
    def positives(self) -> Floats:
        return self.state[:NUM_BINS]

    @property
    def negatives(self) -> Floats:
        return self.state[NUM_BINS : 2 * NUM_BINS]

    def roc(self) -> tuple[Floats, Floats]:
        """False and true positive rates, from the highest bin down; both start at 0 and end at 1."""
        true = np.concatenate([[0], np.cumsum(self.positives[::-1])])
        false = np.concatenate([[0], np.cumsum(self.negatives[::-1])])
        return false / max(false[-1], 1e-300), true / max(true[-1], 1e-300)

    def auc(self) -> float:
        """Area under the ROC curve; rows of one bin count as ties. NaN when only one class is there."""
        if not (self.positives.sum() and self.negatives.sum()):
            return float("nan")
        false, true = self.roc()
        return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))

    def calibration(self, num_groups: int = 20) -> list[tuple[float, float, float]]:
        """(mean prediction, share of positives, weight) in groups of about equal weight, by ascending prediction."""
        weight = self.positives + self.negatives
        centre = 1 / (1 + np.exp(-((np.arange(NUM_BINS) + 0.5) / NUM_BINS * 2 - 1) * MAX_LOG_ODDS))
        cumulated = np.cumsum(weight) - weight / 2
        group = np.minimum((cumulated / max(weight.sum(), 1e-300) * num_groups).astype(int), num_groups - 1)
        total = np.bincount(group, weight, num_groups)
        shown = total > 0
        predicted = np.bincount(group, weight * centre, num_groups)[shown] / total[shown]
        actual = np.bincount(group, self.positives, num_groups)[shown] / total[shown]
        return [(float(p), float(a), float(t)) for p, a, t in zip(predicted, actual, total[shown], strict=True)]

    def figures(self) -> dict[str, float]:
        weight = max(float(self.positives.sum() + self.negatives.sum()), 1e-300)
        log_loss, brier, predicted, rows = self.state[-4:]
        return {"auc": self.auc(), "log_loss": float(log_loss / weight), "brier": float(brier / weight),
                "mean_prediction": float(predicted / weight), "base_rate": float(self.positives.sum() / weight),
                "rows": int(rows)}  # fmt: skip


class RegressionMetrics:
    """Sums of errors, a table of predictions against values, and a histogram of residuals, on the label's scale."""

    def __init__(self, mean: float, std: float) -> None:
        self.edges = mean + std * np.linspace(-3, 3, CELLS + 1)
        self.residual_edges = std * np.linspace(-3, 3, CELLS + 1)
        self.state: Floats = np.zeros(CELLS * CELLS + CELLS + 7)

    def add(self, predictions: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> None:
        p, y = np.asarray(predictions, np.float64), np.asarray(label, np.float64)
        w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
        error = p - y
        cell = _cell(p, self.edges) * CELLS + _cell(y, self.edges)
        self.state[: CELLS * CELLS] += np.bincount(cell, w, CELLS * CELLS)
        self.state[CELLS * CELLS : -7] += np.bincount(_cell(error, self.residual_edges), w, CELLS)
        sums = (w, w * error, w * abs(error), w * error**2, w * y, w * y**2)
        self.state[-7:] += (*(part.sum() for part in sums), len(y))

    @property
    def predicted_and_actual(self) -> Floats:
        """Weights [prediction's cell, value's cell]; what lies beyond the edges is in the outer cells."""
        return self.state[: CELLS * CELLS].reshape(CELLS, CELLS)

    @property
    def residuals(self) -> Floats:
        return self.state[CELLS * CELLS : -7]

    def figures(self) -> dict[str, float]:
        weight, error, absolute, squared, value, value_squared, rows = self.state[-7:]
        weight = max(float(weight), 1e-300)
        variance = value_squared / weight - (value / weight) ** 2
        r2 = float(1 - squared / weight / variance) if variance > 0 else float("nan")
        return {"rmse": float(np.sqrt(squared / weight)), "mae": float(absolute / weight), "bias": float(error / weight),
                "r2": r2, "rows": int(rows)}  # fmt: skip


def _cell(values: Floats, edges: Floats) -> npt.NDArray[np.int64]:
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, CELLS - 1)
