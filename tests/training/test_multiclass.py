"""Labels of several classes, from the recipe to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from lakering.errors import SettingError
from lakering.manifest import read_manifest
from recipes import read_recipe
from recipes.training import Training
from tests.training.conftest import CLASSES
from tests.training.test_models_learn import BESIDE, MODELS, features_of
from training.distributed import World
from training.evaluate import evaluate, evaluate_request
from training.feed import Feed, Order
from training.models import Features, ModelColumns, build_model
from training.models.base import Label
from training.optimizers import Optimizer
from training.requests import train_request
from training.step import Step
from training.train import train

LABEL = Label("y", "multiclass", 1.0, 0.8, CLASSES, (0.5, 0.3, 0.2))
SECTIONS: dict[str, Any] = {**MODELS, "wide_and_deep": ({"name": "wide_and_deep", "hidden": [8], "crosses": [["a", "b"]]}, ())}


def model_of(name, label=LABEL):
    section, binary = SECTIONS[name]
    return build_model(section, ModelColumns(*BESIDE, label, binary), seed=1, precision="float64")


def features(name):
    return features_of("dlrm" if name == "wide_and_deep" else name)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_model_gives_a_probability_for_each_class(name):
    model = model_of(name)
    scores = model.scores(features(name))
    probabilities = model.predictions(scores.numpy())
    assert probabilities.shape == (20, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    label = np.arange(20) % 3
    expected = -np.log(probabilities[np.arange(20), label])
    np.testing.assert_allclose(model.losses(scores, tf.constant(label, tf.float32)).numpy(), expected, rtol=1e-9)
    binary = model_of(name, Label("y", "binary", 0.25, 0.4))
    assert binary.scores(features(name)).shape == (20,)


def test_a_model_starts_at_the_shares_of_train():
    model = model_of("wide_and_deep")
    for variable in model.variables:
        if "bias" not in variable.name:
            variable.assign(tf.zeros_like(variable))
    predictions = model.predictions(model.scores(features("wide_and_deep")).numpy())
    np.testing.assert_allclose(predictions, np.tile(LABEL.shares, (20, 1)), rtol=1e-9)


def test_smoothing_gives_each_class_its_part(write_toy):
    toy = write_toy(kind="multiclass")
    order = Order(seed=1, batch_size=200, window=2, lanes=8)
    batch = next(Feed(lake=toy.lake, manifest=toy.manifest, split="train", order=order).epoch(0))
    model = build_model({"name": "wide_and_deep", "hidden": [4], "dropout": 0, "embedding_dropout": 0},
                        ModelColumns.of(toy.manifest), seed=1, precision="float64")  # fmt: skip
    tensors = batch.tensors()
    probabilities = model.predictions(model.scores(Features(tensors.floats, tensors.ids)).numpy())
    shares = 0.7 * np.eye(3)[batch.label.astype(int)] + 0.3 / 3
    step = Step(model, Optimizer(Training(), model.variables), World(), seed=1, label_smoothing=0.3)
    assert step(batch, 0, 0.01).loss == pytest.approx(-(shares * np.log(probabilities)).sum(1).mean(), rel=1e-6)


def test_a_multiclass_label_trains_and_is_compared_with_its_baselines(write_toy):
    toy = write_toy(kind="multiclass", weight=True)
    assert read_manifest(toy.lake, "toy").classes == CLASSES
    recipe = read_recipe(toy.recipe, overrides=["training.epochs=6"])
    final = train(World(), train_request(recipe))["record"]["metrics"]["final"]
    result = evaluate(World(), evaluate_request(recipe))
    label, weight = toy.rows["test"]["y"].astype(int), toy.rows["test"]["w"]
    shares = np.bincount(toy.rows["train"]["y"].astype(int)) / 650
    base = result["figures"]["base rate"]
    assert base["log_loss"] == pytest.approx(np.average(-np.log(shares[label]), weights=weight), rel=1e-6)
    assert base["accuracy"] == pytest.approx(np.average(label == shares.argmax(), weights=weight), rel=1e-6)
    assert base["auc"] == 0.5
    assert final["validation_accuracy"] > 0.55
    assert result["figures"]["model"]["auc"] > 0.7
    assert result["figures"]["boosted trees"]["auc"] > 0.65
    assert result["verdict"]["against_base_rate"].startswith("better by")
    assert "log_loss" in result["verdict"]["against_boosted_trees"]
    page = Path(result["report"]).read_text()
    assert 'alt="Confusion"' in page


def test_a_snapshot_of_before_there_were_classes_reads_as_it_was_named(write_toy):
    toy = write_toy()
    stored = toy.lake.storage.read_json(*toy.lake.snapshot("toy", toy.manifest.id), "manifest.json")
    assert "classes" not in stored
    assert read_manifest(toy.lake, "toy").classes is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("examples.predict.kind=multiclass", "kind: multiclass needs classes"),
        (
            "examples.predict={label: y, moment: t, classes: [a, b]}",
            "classes are of kind: multiclass; the label's kind is binary",
        ),
        ("examples.predict={label: y, moment: t, kind: multiclass, classes: [a, 1, '1']}", "classes name '1' more than once"),
        ("examples.predict={label: y, moment: t, kind: multiclass, classes: [a]}", "at least 2 items"),
        ("examples.predict={label: y, moment: t, kind: multiclass, classes: [yes, no]}", "valid string, got True"),
    ],
)
def test_classes_that_do_not_fit_are_told(write_toy, override, says):
    with pytest.raises(SettingError, match=says):
        read_recipe(write_toy().recipe, overrides=[override])
