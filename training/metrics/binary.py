"""Metrics of probabilities of a binary label: AUC, ROC and calibration from bins of log-odds, the others from sums."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.metrics.base import TINY, Floats, ratio, weights_of
from training.metrics.histograms import EPSILON, LogOddsBins, area_under_curve, roc_curve

NUM_BINS = 16384
#: Standard deviations of a 95% interval.
Z = 1.959964
SUMS = 5


class Group(NamedTuple):
    """Rows of about equal prediction: its mean, the share of positives and its 95% interval, and their weight."""

    predicted: float
    actual: float
    low: float
    high: float
    weight: float


class BinaryMetrics:
    """Per bin of log-odds the weights of positives and of negatives, and squared weights; and sums of log loss, squared
    error, prediction, weight that is rightly told at 0.5, and rows."""

    def __init__(self, num_bins: int = NUM_BINS) -> None:
        self._bins = LogOddsBins(num_bins)
        self.state: Floats = np.zeros(3 * self._bins.number + SUMS)

    def add(self, predictions: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> None:
        p = np.clip(np.asarray(predictions, np.float64), EPSILON, 1 - EPSILON)
        y = np.asarray(label, np.float64)
        w = weights_of(weight, len(y))
        places = self._bins.places(p)
        histograms = self._histograms()
        for row, amount in enumerate((w * y, w * (1 - y), w * w)):
            histograms[row] += np.bincount(places, amount, self._bins.number)
        log_loss = -(y * np.log(p) + (1 - y) * np.log1p(-p))
        right = w[(p > 0.5) == (y > 0.5)]
        self.state[-SUMS:] += (w * log_loss).sum(), (w * (p - y) ** 2).sum(), (w * p).sum(), right.sum(), len(y)

    def _histograms(self) -> Floats:
        return self.state[:-SUMS].reshape(3, -1)

    @property
    def positives(self) -> Floats:
        return self._histograms()[0]

    @property
    def negatives(self) -> Floats:
        return self._histograms()[1]

    def roc(self) -> tuple[Floats, Floats]:
        """False and true positive rates, from the highest bin down; both start at 0 and end at 1."""
        return roc_curve(self.positives, self.negatives)

    def auc(self) -> float:
        """Area under the ROC curve; rows of one bin count as ties. NaN when only one class is there."""
        return area_under_curve(self.positives, self.negatives)

    def predictions(self, num_groups: int = 40) -> tuple[Floats, Floats]:
        """A histogram of predictions: edges of bins of equal width from 0 to the largest, and their weights."""
        weight, centres = self.positives + self.negatives, self._bins.centres()
        most = float(centres[np.flatnonzero(weight)[-1]]) if weight.any() else 1.0
        counts, edges = np.histogram(centres, num_groups, (0.0, most), weights=weight)
        return edges, counts

    def calibration(self, num_groups: int = 20) -> list[Group]:
        """Groups of about equal weight, by ascending prediction.

        The interval is Wilson's (1927), of as many rows as the weights are worth: (sum w)^2 / sum w^2 (Kish 1965)."""
        positives, negatives, squares = self._histograms()
        weight = positives + negatives
        cumulated = np.cumsum(weight) - weight / 2
        group = np.minimum((cumulated / max(weight.sum(), TINY) * num_groups).astype(int), num_groups - 1)
        total = np.bincount(group, weight, num_groups)
        shown = total > 0
        total = total[shown]
        predicted = np.bincount(group, weight * self._bins.centres(), num_groups)[shown] / total
        actual = np.bincount(group, positives, num_groups)[shown] / total
        low, high = wilson_interval(actual, total**2 / np.bincount(group, squares, num_groups)[shown])
        return [Group(*map(float, facts)) for facts in zip(predicted, actual, low, high, total, strict=True)]

    def calibration_error(self) -> float:
        """Expected calibration error: how far predictions and shares of positives are apart, in the mean over groups of
        equal weight (Nixon et al. 2019; with groups of equal width, rare positives would all be in the first)."""
        groups = np.array(self.calibration()).reshape(-1, len(Group._fields))
        return ratio(float((groups[:, 4] * np.abs(groups[:, 0] - groups[:, 1])).sum()), float(groups[:, 4].sum()))

    def figures(self) -> dict[str, float]:
        """Normalised entropy is the log loss over that of the base rate (He et al. 2014): 1 is no better than it."""
        weight = max(float(self.positives.sum() + self.negatives.sum()), TINY)
        log_loss, brier, predicted, right, rows = self.state[-SUMS:]
        rate = float(self.positives.sum() / weight)
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) if 0 < rate < 1 else 0.0
        return {"auc": self.auc(), "log_loss": float(log_loss / weight), "brier": float(brier / weight),
                "mean_prediction": float(predicted / weight), "base_rate": rate,
                "normalised_entropy": ratio(log_loss / weight, entropy), "accuracy": float(right / weight),
                "calibration_error": self.calibration_error(), "rows": int(rows)}  # fmt: skip


def wilson_interval(share: Floats, number: Floats) -> tuple[Floats, Floats]:
    """The 95% score interval of a share that was seen among so many rows."""
    middle = (share + Z**2 / (2 * number)) / (1 + Z**2 / number)
    half = Z * np.sqrt(share * (1 - share) / number + Z**2 / (4 * number**2)) / (1 + Z**2 / number)
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)
