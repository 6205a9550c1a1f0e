"""Metrics against scikit-learn's, joined over ranks by a sum."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from training.metrics import BinaryMetrics, MulticlassMetrics, RegressionMetrics, build_metrics
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
    assert figures["accuracy"] == pytest.approx(reference.accuracy_score(label, prediction > 0.5, sample_weight=weight), rel=1e-9)
    rate = np.average(label, weights=weight)
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    assert figures["normalised_entropy"] == pytest.approx(figures["log_loss"] / entropy, rel=1e-9)
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
    assert [(round(g.predicted, 2), round(g.actual, 2), g.weight) for g in groups] == [(0.1, 0.1, 100), (0.8, 0.75, 100)]


def test_calibration_intervals_are_wilsons():
    """10 of 100: from 0.0552 to 0.1744 (Wilson 1927). Rows that weigh alike are worth as many rows, whatever they weigh."""
    for weight in (None, np.full(100, 3.0)):
        metrics = BinaryMetrics()
        metrics.add([0.2] * 100, [1] * 10 + [0] * 90, weight)
        (group,) = metrics.calibration()
        assert (group.low, group.high) == pytest.approx((0.0552, 0.1744), abs=1e-4)


def test_the_calibration_error_is_that_of_groups_of_equal_weight():
    random = np.random.default_rng(2)
    prediction = random.beta(1, 30, 40_000)
    label = (random.random(len(prediction)) < prediction**0.8).astype(float)
    metrics = BinaryMetrics()
    metrics.add(prediction, label)
    parts = np.array_split(np.argsort(prediction), 20)
    expected = np.mean([abs(prediction[part].mean() - label[part].mean()) for part in parts])
    assert metrics.figures()["calibration_error"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("case", ["ties", "sure", "two values"])
def test_auc_of_ties_and_of_models_that_are_too_sure(case):
    random = np.random.default_rng(4)
    label = (random.random(20_000) < 0.3).astype(float)
    odds = random.normal(0, 1, len(label)) + label
    odds = {"ties": np.round(odds), "sure": odds * 12, "two values": np.where(odds > 0.5, 40.0, -40.0)}[case]
    prediction, weight = 1 / (1 + np.exp(-odds)), random.uniform(0, 2, len(label))
    metrics = BinaryMetrics()
    metrics.add(prediction, label, weight)
    assert metrics.auc() == pytest.approx(reference.roc_auc_score(label, prediction, sample_weight=weight), abs=1e-3)


def multiclass_rows(classes, rows=5000):
    random = np.random.default_rng(6)
    label = random.choice(classes, rows, p=(shares := np.arange(10, classes + 10)) / shares.sum())
    scores = random.normal(0, 1, (rows, classes)) + 1.5 * (label[:, None] == np.arange(classes))
    odds = np.exp(scores)
    return odds / odds.sum(1, keepdims=True), label, random.uniform(0.1, 3, rows)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [3, 60])
def test_multiclass_figures_are_scikit_learns(classes, weighted):
    prediction, label, weight = multiclass_rows(classes)
    weight = weight if weighted else None
    metrics = MulticlassMetrics(classes)
    metrics.add(prediction[:100], label[:100], None if weight is None else weight[:100])
    metrics.add(prediction[100:], label[100:], None if weight is None else weight[100:])
    figures = metrics.figures()
    log_loss = reference.log_loss(label, prediction, sample_weight=weight, labels=range(classes))
    assert figures["log_loss"] == pytest.approx(log_loss, rel=1e-9)
    assert figures["accuracy"] == pytest.approx(reference.accuracy_score(label, prediction.argmax(1), sample_weight=weight))
    areas = [reference.roc_auc_score(label == k, prediction[:, k], sample_weight=weight) for k in range(classes)]
    assert figures["auc"] == pytest.approx(np.mean(areas), abs=1e-3)
    shares = np.array([np.average(label == k, weights=weight) for k in range(classes)])
    assert figures["normalised_entropy"] == pytest.approx(log_loss / -(shares * np.log(shares)).sum(), rel=1e-9)
    if classes == 3:
        expected = reference.confusion_matrix(label, prediction.argmax(1), sample_weight=weight)
        assert metrics.confusion is not None
        np.testing.assert_allclose(metrics.confusion, expected)
    else:
        assert metrics.confusion is None


def test_multiclass_ranks_join_by_a_sum_and_a_class_without_rows_has_no_area():
    prediction, label, weight = multiclass_rows(4)
    label = np.where(label == 2, 1, label)
    whole, first, second = (MulticlassMetrics(4) for _ in range(3))
    whole.add(prediction, label, weight)
    first.add(prediction[:700], label[:700], weight[:700])
    second.add(prediction[700:], label[700:], weight[700:])
    first.state = first.state + second.state
    assert first.figures() == pytest.approx(whole.figures(), rel=1e-12)
    areas = [reference.roc_auc_score(label == k, prediction[:, k], sample_weight=weight) for k in (0, 1, 3)]
    assert whole.auc() == pytest.approx(np.mean(areas), abs=1e-3)


@pytest.mark.parametrize("metrics", [BinaryMetrics(), RegressionMetrics(0, 1), MulticlassMetrics(3)])
def test_figures_have_their_names_before_any_row(metrics):
    assert metrics.figures()["rows"] == 0


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
    assert isinstance(build_metrics(Label("y", "multiclass", 0.1, 0.3, ("a", "b"), (0.9, 0.1))), MulticlassMetrics)
