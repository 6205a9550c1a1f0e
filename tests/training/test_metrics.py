"""Metrics against scikit-learn's, joined over ranks by a sum."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from training.metrics import BinaryMetrics, RegressionMetrics, build_metrics
from training.models.base import Label


@pytest.mark.parametrize("base", [0.5, 0.2, 0.001])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_figures_are_scikit_learns(base, weighted):
    random = np.random.default_rng(7)
    label = (random.random(50_000) < base).astype(float)
    score = np.log(base / (1 - base)) + random.normal(0, 0.7, len(label)) + 0.9 * label
    prediction = 1 / (1 + np.exp(-score))
    weight = random.uniform(0.1, 3, len(label)) if weighted else None
    metrics = BinaryMetrics()
    metrics.add(prediction, label, weight)
    figures = metrics.figures()
    assert figures["auc"] == pytest.approx(reference.roc_auc_score(label, prediction, sample_weight=weight), abs=1e-3)
    assert figures["log_loss"] == pytest.approx(reference.log_loss(label, prediction, sample_weight=weight), rel=1e-9)
    assert figures["brier"] == pytest.approx(reference.brier_score_loss(label, prediction, sample_weight=weight), rel=1e-9)
    assert figures["rows"] == 50_000


def test_ranks_join_by_a_sum():
    random = np.random.default_rng(1)
    prediction, label = random.random(1000), (random.random(1000) < 0.3).astype(float)
    whole, first, second = BinaryMetrics(), BinaryMetrics(), BinaryMetrics()
    whole.add(prediction, label)
    first.add(prediction[:300], label[:300])
    second.add(prediction[300:], label[300:])
    first.state = first.state + second.state
    assert first.figures() == pytest.approx(whole.figures(), rel=1e-12)


def test_equal_predictions_have_an_auc_of_a_half_and_one_class_has_none():
    metrics = BinaryMetrics()
    metrics.add([0.2, 0.2, 0.2], [0, 1, 0])
    assert metrics.auc() == 0.5
    one = BinaryMetrics()
    one.add([0.2, 0.9], [1, 1])
    assert np.isnan(one.auc())


def test_extreme_predictions_are_counted():
    metrics = BinaryMetrics()
    metrics.add([0.0, 1.0], [0, 1])
    assert metrics.auc() == 1.0
    assert np.isfinite(metrics.figures()["log_loss"])


def test_calibration_groups_hold_what_was_predicted_and_seen():
    metrics = BinaryMetrics()
    metrics.add([0.1] * 100 + [0.8] * 100, [0] * 90 + [1] * 10 + [0] * 25 + [1] * 75)
    groups = metrics.calibration()
    assert [(round(p, 2), round(a, 2), w) for p, a, w in groups] == [(0.1, 0.1, 100), (0.8, 0.75, 100)]


def test_regression_figures_are_scikit_learns():
    random = np.random.default_rng(3)
    label = random.normal(20, 5, 10_000)
    prediction = label + random.normal(1, 3, len(label))
    metrics = RegressionMetrics(20, 5)
    metrics.add(prediction, label)
    figures = metrics.figures()
    assert figures["rmse"] == pytest.approx(reference.root_mean_squared_error(label, prediction), rel=1e-9)
    assert figures["mae"] == pytest.approx(reference.mean_absolute_error(label, prediction), rel=1e-9)
    assert figures["r2"] == pytest.approx(reference.r2_score(label, prediction), rel=1e-6)
    assert metrics.predicted_and_actual.sum() == metrics.residuals.sum() == 10_000


def test_the_label_chooses_its_metrics():
    assert isinstance(build_metrics(Label("y", "binary", 0.1, 0.3)), BinaryMetrics)
    assert isinstance(build_metrics(Label("y", "regression", 0.1, 0.3)), RegressionMetrics)
