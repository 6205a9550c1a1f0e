"""Bins of probabilities, by their log-odds, and what comes out of weights that were counted in them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.metrics.base import TINY, Floats

#: Log-odds that float64 tells from those of 1: the outer bins reach so far.
FARTHEST = 35.0
#: Within these log-odds the bins are narrow; a sixteenth as many, on each side, share what lies beyond.
MAX_LOG_ODDS = 16.0
EPSILON = 1e-15


class LogOddsBins:
    """``inner`` bins of equal width in log-odds, and coarser ones beyond, for models that are very sure."""

    def __init__(self, inner: int) -> None:
        self._inner, self._outer = inner, max(inner // 16, 1)
        self.number = inner + 2 * self._outer

    def places(self, probabilities: Floats) -> npt.NDArray[np.int64]:
        """The bin of each probability, ascending with it."""
        p = np.clip(probabilities, EPSILON, 1 - EPSILON)
        odds = np.log(p) - np.log1p(-p)
        place = self._outer + (odds / MAX_LOG_ODDS + 1) / 2 * self._inner
        beyond = (np.abs(odds) - MAX_LOG_ODDS) / (FARTHEST - MAX_LOG_ODDS) * self._outer
        place = np.where(odds >= MAX_LOG_ODDS, self._outer + self._inner + beyond, place)
        place = np.where(odds < -MAX_LOG_ODDS, self._outer - beyond, place)
        return np.clip(place, 0, self.number - 1).astype(np.int64)

    def centres(self) -> Floats:
        """The probability in the middle of each bin, by log-odds."""
        inner = ((np.arange(self._inner) + 0.5) / self._inner * 2 - 1) * MAX_LOG_ODDS
        outer = MAX_LOG_ODDS + (np.arange(self._outer) + 0.5) / self._outer * (FARTHEST - MAX_LOG_ODDS)
        return 1 / (1 + np.exp(-np.concatenate([-outer[::-1], inner, outer])))


def roc_curve(positives: Floats, negatives: Floats) -> tuple[Floats, Floats]:
    """False and true positive rates, from the highest bin down; both start at 0 and end at 1."""
    true = np.concatenate([[0], np.cumsum(positives[::-1])])
    false = np.concatenate([[0], np.cumsum(negatives[::-1])])
    return false / max(false[-1], TINY), true / max(true[-1], TINY)


def area_under_curve(positives: Floats, negatives: Floats) -> float:
    """Area under the ROC curve; rows of one bin count as ties. NaN when only one class is there."""
    if not (positives.sum() > 0 and negatives.sum() > 0):
        return float("nan")
    false, true = roc_curve(positives, negatives)
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))
