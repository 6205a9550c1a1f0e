"""The two-tower model: its loss over the whole batch, what it learns, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from lakering.errors import SettingError
from recipes import read_recipe
from recipes.training import Training
from training.distributed import World
from training.evaluate import evaluate, evaluate_request
from training.feed import Batch
from training.models import Features, ModelColumns, build_model
from training.models.base import BinaryColumn, FloatColumn, IdColumn, Label
from training.models.dropout import Dropout
from training.optimizers import Optimizer, name_of
from training.requests import train_request
from training.step import Step
from training.train import train

FLOATS = (FloatColumn("q0", 0.0, 1.0, (-4.0, 4.0)), FloatColumn("q1", 0.0, 1.0, (-4.0, 4.0)))
COLUMNS = ModelColumns(FLOATS, (IdColumn("item", 6),), Label("y", "binary", 0.5, 0.5))
SECTION = {"name": "two_tower", "query": ["q0", "q1"], "item": ["item"], "hidden": [], "dimension": 2, "max_embedding": 2,
           "temperature": 0.5}  # fmt: skip
TWO_TOWER = "model={name: two_tower, query: [x0, x1, b], item: [a], hidden: [16], dimension: 8, temperature: 0.2}"


def known_model():
    """Towers that do nothing but to give their input unit length; the item's input is its id's row of a known table."""
    model = build_model(SECTION, COLUMNS, seed=1, precision="float64")
    table = np.array([[1.0, 0], [0, 2], [3, 3], [-1, 0], [1, -2], [0.5, 2]])
    for variable in model.variables:
        name = name_of(variable)
        variable.assign(table if "embedding" in name else np.eye(2) if name.endswith("weight") else np.zeros(2))
    return model, table


def expected_losses(queries, items, table, weight):
    """By row: its own item against each row of another item that weighs something."""
    unit = [v / np.linalg.norm(v) for v in np.asarray(table)[items]]
    losses = []
    for i, q in enumerate(queries / np.linalg.norm(queries, axis=1, keepdims=True)):
        others = [np.exp(q @ unit[j] / 0.5) for j in range(len(items)) if items[j] != items[i] and weight[j] > 0]
        own = np.exp(q @ unit[i] / 0.5)
        losses.append(-np.log(own / (own + sum(others))))
    return np.array(losses)


def six_rows():
    queries = np.array([[1, 0.5], [0.2, 2], [-1, 1], [0.3, -0.4], [2, 2], [-1, -3]], np.float32)
    items = np.array([2, 4, 2, 1, 0, 4], np.int32)  # two of them twice
    label, weight = np.array([1, 0, 1, 1, 0, 1], np.float32), np.array([1, 2, 0.5, 3, 0, 1], np.float32)
    return queries, items, label, weight


def test_the_loss_is_the_softmax_over_the_other_items_of_the_batch():
    model, table = known_model()
    queries, items, label, weight = six_rows()
    losses, counts = model.batch_losses(Features(tf.constant(queries), tf.constant(items[:, None])), tf.constant(label),
                                        tf.constant(weight), Dropout(tf.zeros(6, tf.uint32)), World().gather_tensors)  # fmt: skip
    np.testing.assert_allclose(losses, expected_losses(queries.astype(float), items, table, weight), rtol=1e-12)
    np.testing.assert_array_equal(counts, [1, 0, 0.5, 3, 0, 1])


def test_a_step_takes_the_mean_over_clicked_rows_alone():
    model, table = known_model()
    queries, items, label, weight = six_rows()
    step = Step(model, Optimizer(Training(optimizer="sgd", precision="float64"), model.variables), World(), seed=1)
    at = np.arange(6)
    result = step(Batch(0, queries, items[:, None], label, weight, at, at, 6), 0, 0.1)
    expected = np.average(expected_losses(queries.astype(float), items, table, weight), weights=label * weight)
    assert result.loss == pytest.approx(expected, rel=1e-12)
    unclicked = step(Batch(1, queries, items[:, None], np.zeros(6, np.float32), weight, at, at, 6), 1, 0.1)
    assert (unclicked.loss, unclicked.gradient_norm) == (0, 0)


def test_items_without_ids_are_the_same_by_their_words():
    words = BinaryColumn("words", "tokens", (3,), 9)
    columns = ModelColumns(FLOATS, (), COLUMNS.label, (words,))
    model = build_model({**SECTION, "item": ["words"]}, columns, seed=1, precision="float64")
    cells = tf.constant([[2, 3, 0], [2, 3, 0], [3, 2, 0]], tf.int32)
    features = Features(tf.ones([3, 2]), tf.zeros([3, 0], tf.int32), tokens={"words": cells})
    ones = tf.ones(3)
    losses, _ = model.batch_losses(features, ones, ones, Dropout(tf.zeros(3, tf.uint32)), World().gather_tensors)
    # The mean of words is the same for all: each of the first two has one other item beside it, the third has two.
    np.testing.assert_allclose(losses, np.log([2, 2, 3]), rtol=1e-9)


def planted(toy):
    """Clicked are the rows whose item is the one that follows from b, nine times of ten."""
    for path in toy.file("train").parent.glob("*.parquet"):
        table, random = pq.read_table(path), np.random.default_rng(3)
        counts = [pq.ParquetFile(path).metadata.row_group(i).num_rows for i in range(pq.ParquetFile(path).num_row_groups)]
        fits = table["b"].to_numpy() % 5 + 1 == table["a"].to_numpy()
        clicked = np.where(random.random(len(fits)) < 0.9, fits, ~fits).astype(np.float32)
        place = table.schema.get_field_index("y")
        table = table.set_column(place, "y", [clicked])
        with pq.ParquetWriter(path, table.schema) as writer:
            for start, rows in zip(np.cumsum([0, *counts[:-1]]), counts, strict=True):
                writer.write_table(table.slice(start, rows), row_group_size=rows)
    return toy


@pytest.fixture(scope="module")
def trained(toy_writer, tmp_path_factory):
    toy = toy_writer(tmp_path_factory.mktemp("towers"), {"train": [[3000], [3000]], "validation": [[500]], "test": [[500]]})
    sizes = {path.name: path.stat().st_size for path in toy.file("train").parent.glob("*.parquet")}
    planted(toy)
    groups = toy.manifest.row_groups.to_pylist()
    for group in groups:
        group["file_bytes"] += toy.file("train").with_name(group["path"]).stat().st_size - sizes[group["path"]]
    manifest = replace(toy.manifest, row_groups=type(toy.manifest.row_groups).from_pylist(groups, toy.manifest.row_groups.schema))
    manifest.write(toy.lake)
    settings = (TWO_TOWER, "training.epochs=8", "training.learning_rate=0.02", "training.columns=[x0, x1, a, b]",
                "evaluation.trees=false", "evaluation.split=validation")  # fmt: skip
    recipe = read_recipe(toy.recipe, overrides=settings)
    return recipe, train(World(), train_request(recipe, snapshot=manifest.id))


def test_it_learns_which_item_fits(trained):
    assert trained[1]["record"]["metrics"]["final"]["validation_auc"] > 0.75


def test_it_is_evaluated_as_it_was_written(trained):
    recipe, run = trained
    figures = evaluate(World(), evaluate_request(recipe))["figures"]["model"]
    assert figures["rows"] == 500
    assert figures["auc"] == pytest.approx(run["record"]["metrics"]["final"]["validation_auc"], rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"item": ["q1", "item"]}, "model.query and model.item name q1 more than once"),
        ({"query": ["q0"]}, "column q1 is in neither model.query nor model.item"),
        ({"query": ["q0", "q1", "itme"]}, "no column is named 'itme'; did you mean 'item'?"),
    ],
)
def test_every_column_belongs_to_one_tower(settings, message):
    with pytest.raises(SettingError) as caught:
        build_model({**SECTION, **settings}, COLUMNS, seed=1)
    assert message in str(caught.value)


def test_a_label_that_is_no_click_is_refused():
    with pytest.raises(SettingError, match="label 'y' is of the kind regression"):
        build_model(SECTION, replace(COLUMNS, label=Label("y", "regression", 0.0, 1.0)), seed=1)


@pytest.mark.parametrize("setting", ["accumulate=2", "label_smoothing=0.1"])
def test_what_would_change_its_loss_is_refused(write_toy, setting):
    recipe = read_recipe(write_toy().recipe, overrides=[TWO_TOWER, f"training.{setting}"])
    with pytest.raises(SettingError, match=f"training.{setting.split('=')[0]} is .*model 'two_tower'"):
        train(World(), train_request(recipe))
