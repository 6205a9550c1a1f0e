"""Models, their settings, dropout, learning rates."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lakering.errors import SettingError
from recipes import read_recipe
from recipes.training import Training
from training.models import Features, ModelColumns, build_model, read_model_section
from training.models.base import FloatColumn, IdColumn, Label
from training.models.dropout import Dropout, row_keys
from training.models.layers import embedding_size
from training.schedules import learning_rate

COLUMNS = ModelColumns(
    (FloatColumn("x", 1.0, 2.0, (0.0, 1.0, 3.0)),), (IdColumn("a", 6), IdColumn("b", 9)), Label("y", "binary", 0.25, 0.4)
)


def model(**settings):
    return build_model({"name": "wide_and_deep", **settings}, COLUMNS, seed=1)


def inputs(rows: int = 8):
    random = np.random.default_rng(0)
    ids = np.stack([random.integers(0, 6, rows), random.integers(0, 9, rows)], 1).astype(np.int32)
    return random.normal(size=(rows, 1)).astype(np.float32), ids


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.name=wide_and_dep", r"toy.yaml:11: model.name: no model is named 'wide_and_dep'; did you mean 'wide_and_deep'"),
        ("model.hiden=[4]", r"toy.yaml:11: model: unknown key 'hiden'; did you mean 'hidden'"),
        ("model.dropout=1.5", r"toy.yaml:11: model.dropout: Input should be less than 1, got 1.5"),
    ],
)
def test_wrong_settings_name_file_line_and_the_nearest_key(write_toy, override, says):
    recipe = read_recipe(write_toy().recipe, overrides=[override])
    with pytest.raises(SettingError, match=says):
        read_model_section(recipe)


def test_settings_are_filled_with_defaults(write_toy):
    section = read_model_section(read_recipe(write_toy().recipe))
    assert section["hidden"] == [16, 8]
    assert section["crosses"] == []


def test_crosses_of_unknown_columns_are_refused():
    with pytest.raises(SettingError, match="'aa' is not an id column; did you mean 'a'"):
        model(crosses=[["aa", "b"]])


def test_the_seed_alone_sets_the_variables():
    first, second, other = model(), model(), build_model({"name": "wide_and_deep"}, COLUMNS, seed=2)
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert not np.array_equal(first.variables[0].numpy(), other.variables[0].numpy())


def test_rows_do_not_depend_on_each_other():
    net = model(crosses=[["a", "b"]], cross_buckets=7)
    floats, ids = inputs()
    whole = net.scores(Features(floats, ids)).numpy()
    np.testing.assert_allclose(whole[3:5], net.scores(Features(floats[3:5], ids[3:5])).numpy(), rtol=1e-6)
    assert net.scores(Features(floats[:0], ids[:0])).shape == (0,)


def test_an_untrained_model_starts_near_the_base_rate():
    net = build_model({"name": "wide_and_deep", "hidden": []}, COLUMNS, seed=1)
    bias = next(variable for variable in net.variables if "out/bias" in variable.name)
    assert 1 / (1 + np.exp(-bias.numpy())) == pytest.approx(0.25, rel=1e-5)


def test_regression_losses_are_squared_deviations():
    columns = ModelColumns(COLUMNS.floats, COLUMNS.ids, Label("y", "regression", 10.0, 2.0))
    net = build_model({"name": "wide_and_deep"}, columns, seed=1)
    assert net.losses(tf.constant([1.0]), tf.constant([13.0])).numpy().tolist() == [0.25]
    assert net.predictions(np.array([1.5])).tolist() == [13.0]


def test_dropout_of_a_row_is_the_same_in_any_company():
    rows = np.arange(100, dtype=np.int64) * 7919
    ones = tf.ones([100, 64])
    whole = Dropout(tf.constant(row_keys(rows, 5, 3))).apply(ones, 0.3).numpy()
    part = Dropout(tf.constant(row_keys(rows[40:60], 5, 3))).apply(ones[40:60], 0.3).numpy()
    np.testing.assert_array_equal(whole[40:60], part)


def test_dropout_drops_its_share_and_differs_by_row_unit_step_and_layer():
    rows = np.arange(4096, dtype=np.int64)
    ones = tf.ones([4096, 64])

    def masks(step: int) -> tuple[np.ndarray, np.ndarray]:
        dropout = Dropout(tf.constant(row_keys(rows, 5, step)))
        return dropout.apply(ones, 0.3).numpy() > 0, dropout.apply(ones, 0.3).numpy() > 0

    first, second = masks(1)
    (third, _) = masks(2)
    assert first.mean() == pytest.approx(0.7, abs=0.005)
    assert np.abs(np.corrcoef(first.T) - np.eye(64)).max() < 0.1
    for a, b in ((first, second), (first, third)):
        assert (a == b).mean() == pytest.approx(0.7**2 + 0.3**2, abs=0.01)


def test_embedding_sizes_grow_with_cardinality():
    assert [embedding_size(n, 16) for n in (1, 10, 100, 10_000)] == [2, 6, 16, 16]


def test_learning_rate_warms_up_and_falls():
    settings = Training(learning_rate=1.0, warmup_steps=4, schedule="cosine")
    assert [learning_rate(settings, step, 14) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(settings, 4, 14) == 1.0
    assert learning_rate(settings, 9, 14) == pytest.approx(0.5)
    assert learning_rate(settings, 14, 14) == pytest.approx(0.0)
    assert learning_rate(Training(learning_rate=0.1), 10**6, 10) == 0.1
