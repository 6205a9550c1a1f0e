"""Metrics of a label that is one of several classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.metrics.base import TINY, Floats, ratio, weights_of
from training.metrics.histograms import EPSILON, LogOddsBins, area_under_curve

#: Bins of all classes together: with many classes, each has fewer.
ALL_BINS = 131_072
MOST_BINS = 4096
#: With more classes nobody reads a confusion matrix.
MOST_CONFUSED = 50
SUMS = 3
#: Probabilities that are worked on at once, to bound memory.
CELLS = 1 << 19


class MulticlassMetrics:
    """Of each class bins of its probability's log-odds, for rows of the class and for all others; the weight of each class;
    up to ``MOST_CONFUSED`` classes a confusion matrix; and sums of log loss, weight that is rightly told, and rows."""

    def __init__(self, num_classes: int, num_bins: int | None = None) -> None:
        self._classes = num_classes
        self._bins = LogOddsBins(num_bins or min(MOST_BINS, max(ALL_BINS // num_classes, 32)))
        self._confused = num_classes if num_classes <= MOST_CONFUSED else 0
        self._histogram = 2 * num_classes * self._bins.number
        self.state: Floats = np.zeros(self._histogram + num_classes + self._confused**2 + SUMS)

    def add(self, predictions: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> None:
        """Predictions are probabilities [rows, classes], labels the numbers of classes."""
        p, y = np.asarray(predictions, np.float64), np.asarray(label).astype(np.int64)
        w = weights_of(weight, len(y))
        rows = max(CELLS // self._classes, 1)
        for start in range(0, len(y), rows):
            self._add(p[start : start + rows], y[start : start + rows], w[start : start + rows])

    def _add(self, p: Floats, y: npt.NDArray[np.int64], w: Floats) -> None:
        is_class = y[:, None] == np.arange(self._classes)
        # One histogram for each class, and whether the row is of it.
        places = self._bins.places(p) + self._bins.number * (np.arange(self._classes) + self._classes * ~is_class)
        weights = np.broadcast_to(w[:, None], places.shape)
        self.state[: self._histogram] += np.bincount(places.ravel(), weights.ravel(), self._histogram)
        self.class_weights[:] += np.bincount(y, w, self._classes)
        told = p.argmax(1)
        if self._confused:
            self._matrix()[:] += np.bincount(y * self._classes + told, w, self._confused**2)
        log_loss = -np.log(np.clip(p[np.arange(len(y)), y], EPSILON, 1))
        self.state[-SUMS:] += (w * log_loss).sum(), w[told == y].sum(), len(y)

    @property
    def class_weights(self) -> Floats:
        return self.state[self._histogram : self._histogram + self._classes]

    def _matrix(self) -> Floats:
        return self.state[self._histogram + self._classes : -SUMS]

    @property
    def confusion(self) -> Floats | None:
        """Weights [class, class that is told]; None of more than ``MOST_CONFUSED`` classes."""
        return self._matrix().reshape(self._classes, self._classes) if self._confused else None

    def auc(self) -> float:
        """Each class against the others, in the mean over the classes that have rows (Fawcett 2006, without its weights)."""
        own, other = self.state[: self._histogram].reshape(2, self._classes, -1)
        areas = np.array([area_under_curve(*pair) for pair in zip(own, other, strict=True)])
        return float(np.mean(areas[np.isfinite(areas)])) if np.isfinite(areas).any() else float("nan")

    def figures(self) -> dict[str, float]:
        """``auc`` is the mean of each class's against the others; normalised entropy is the log loss over that of the
        shares of the classes (He et al. 2014): 1 is no better than those."""
        weight = max(float(self.class_weights.sum()), TINY)
        log_loss, right, rows = self.state[-SUMS:]
        shares = self.class_weights[self.class_weights > 0] / weight
        entropy = float(-(shares * np.log(shares)).sum())
        return {"log_loss": float(log_loss / weight), "accuracy": float(right / weight),
                "normalised_entropy": ratio(log_loss / weight, entropy), "auc": self.auc(), "rows": int(rows)}  # fmt: skip
