"""Metrics that add up: every state is one float64 vector, so that ranks are joined by a sum."""

from __future__ import annotations

from training.metrics.base import Metrics
from training.metrics.binary import BinaryMetrics
from training.metrics.multiclass import MulticlassMetrics
from training.metrics.regression import RegressionMetrics
from training.models.base import Label

__all__ = [
    "COMPARED_BY",
    "BinaryMetrics",
    "Metrics",
    "MulticlassMetrics",
    "RegressionMetrics",
    "build_metrics",
    "build_small_metrics",
]

#: By which figure models, and parts of the rows, are compared, and whether more of it is better (1) or less (-1).
COMPARED_BY = {"binary": ("auc", 1), "multiclass": ("log_loss", -1), "regression": ("rmse", -1)}


def build_metrics(label: Label) -> Metrics:
    """The metrics for a kind of label. Predictions are probabilities, or values in the label's unit."""
    if label.kind == "multiclass":
        return MulticlassMetrics(label.num_classes)
    return BinaryMetrics() if label.kind == "binary" else RegressionMetrics(label.mean, label.std)


def build_small_metrics(label: Label) -> Metrics:
    """The same figures from a smaller state, for many parts of the rows: AUC is coarser."""
    if label.kind == "multiclass":
        return MulticlassMetrics(label.num_classes, num_bins=64)
    return BinaryMetrics(num_bins=4096) if label.kind == "binary" else RegressionMetrics(label.mean, label.std, cells=1)
