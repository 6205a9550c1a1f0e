"""A user's own Keras model, loss and metric, named by module in the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lakering.errors import SettingError
from recipes import read_recipe
from training.distributed import World
from training.evaluate import evaluate, evaluate_request
from training.requests import train_request
from training.steplog import read_steps
from training.train import train

MODULE = '''
import keras
import numpy as np
import tensorflow as tf

from lakering.documents import Settings
from training.models import Model
from training.models.own import RowDropout


class Tower(keras.Model):
    """Reads every column by its name."""

    def __init__(self, columns, units=8, dropout=0.1):
        super().__init__()
        self.numbers = [(c.name, c.mean, c.std) for c in columns.floats]
        self.tables = {c.name: keras.layers.Embedding(c.num_ids, 3) for c in columns.ids}
        self.hidden = keras.layers.Dense(units, activation="relu")
        self.dropped = RowDropout(dropout)
        self.out = keras.layers.Dense(1)

    def call(self, features, training=False):
        parts = [(features[name] - mean) / std for name, mean, std in self.numbers]
        parts += [table(features[name])[:, 0] for name, table in self.tables.items()]
        return self.out(self.dropped(self.hidden(keras.ops.concatenate(parts, axis=1))))


def functional(columns):
    x0, a = keras.Input([1], name="x0"), keras.Input([1], name="a", dtype="int32")
    words = keras.layers.Flatten()(keras.layers.Embedding(6, 2)(a))
    hidden = keras.layers.Dense(4)(keras.layers.Concatenate()([x0, words]))
    return keras.Model({"x0": x0, "a": a}, keras.layers.Dense(1)(keras.layers.Dropout(0.1)(hidden)))


def of(*layers):
    return lambda columns: keras.Model(x := keras.Input([1], name="x0"), keras.Sequential(list(layers))(x))


normalised = of(keras.layers.BatchNormalization(), keras.layers.Dense(1))
wide = of(keras.layers.Dense(3))
regular = of(keras.layers.Dense(1, kernel_regularizer="l2"))
adapted = of(keras.layers.Normalization(), keras.layers.Dense(1))
other = of(keras.layers.Dense(1))


def misnamed(columns):
    return keras.Model(x := keras.Input([1], name="x00"), keras.layers.Dense(1)(x))


def no_model(columns):
    return "tower"


class Constant(Model):
    """The same score for every row."""

    class Settings(Settings):
        at: float = 0.0

    def __init__(self, settings, columns, *, seed, precision):
        self.columns = columns
        self._score = tf.Variable(settings.at, dtype=precision, name="score")

    @property
    def variables(self):
        return [self._score]

    def scores(self, features, dropout=None):
        return self._score + tf.zeros(tf.shape(features.floats)[:1], self._score.dtype)


def squared(label, score):
    return tf.square(score - 7 * label)


def mean_squared(label, score):
    return tf.reduce_mean(tf.square(score - label))


class Counts:
    """The weight of rows whose label is 1, and of all."""

    def __init__(self, label):
        self.state = np.zeros(2)

    def add(self, predictions, label, weight=None):
        weight = np.ones(len(label)) if weight is None else weight
        self.state += (weight * label).sum(), weight.sum()

    def figures(self):
        return {"clicked": self.state[0], "all": self.state[1]}


class Same(Counts):
    def figures(self):
        return {"auc": 1.0}


number = 3
'''
TOWER = "model={module: my_models, name: Tower, settings: {units: 6}}"
CONSTANT = "model={module: my_models, name: Constant, settings: {at: 2.0}}"


@pytest.fixture
def toy(write_toy):
    made = write_toy()
    (made.folder / "my_models.py").write_text(MODULE)
    return made


def request_of(toy, *overrides):
    return train_request(read_recipe(toy.recipe, overrides=overrides))


def losses(toy, run):
    return [step["loss"] for step in read_steps(toy.lake, toy.lake.run("toy", run["run"]))]


def weight_of_ones(toy, split):
    return toy.rows[split]["y"].sum()


def test_a_keras_model_learns_goes_on_and_is_evaluated(toy, capfd):
    overrides = (TOWER, "training.epochs=6", "training.metrics=[{module: my_models, name: Counts}]",
                 "training.learning_rate=0.03", "training.columns=[x0, x1, a]")  # fmt: skip
    whole = train(World(), request_of(toy, *overrides))
    assert "Keras's own seeds" not in capfd.readouterr().err
    final = whole["record"]["metrics"]["final"]
    assert final["validation_auc"] > 0.75
    assert (final["validation_clicked"], final["validation_all"]) == (weight_of_ones(toy, "validation"), 150)
    expected = losses(toy, whole)

    folder = Path(toy.lake.storage.path(*toy.lake.run("toy", whole["run"])))
    (folder / "record.json").unlink()
    for newest in sorted((folder / "checkpoints").iterdir())[-2:]:
        (newest / "index.json").unlink()
    resumed = train(World(), request_of(toy, *overrides))
    assert resumed["run"] == whole["run"]
    assert 0 < resumed["record"]["resumed_at"] < 42
    assert losses(toy, resumed) == pytest.approx(expected, rel=1e-5)

    recipe = read_recipe(toy.recipe, overrides=[*overrides, "evaluation.trees=false", "evaluation.split=validation"])
    found = evaluate(World(), evaluate_request(recipe))
    assert found["figures"]["model"]["auc"] == pytest.approx(final["validation_auc"], rel=1e-6)
    assert found["figures"]["model"]["clicked"] == weight_of_ones(toy, "validation")
    assert "has changed" not in capfd.readouterr().err

    with pytest.raises(SettingError, match="the module 'my_models', which the recipe does not name"):
        evaluate(World(), evaluate_request(read_recipe(toy.recipe)))
    (toy.folder / "my_models.py").write_text(MODULE + "\n# changed\n")
    evaluate(World(), evaluate_request(recipe))
    assert "module 'my_models' has changed since run" in capfd.readouterr().err


def test_a_functional_model_gets_the_columns_that_it_names(toy, capfd):
    whole = train(World(), request_of(toy, "model={module: my_models, name: functional}", "training.precision=float64"))
    assert len(losses(toy, whole)) == 14
    assert "draws random numbers by Keras's own seeds" in capfd.readouterr().err
    folder = Path(toy.lake.storage.path(*toy.lake.run("toy", whole["run"])), "model")
    stored = json.loads((folder / "model.json").read_text())
    names = stored["files"]["weights.npz"]["names"]
    assert names == ["000/embeddings", "001/kernel", "002/bias", "003/kernel", "004/bias"]
    with np.load(folder / "weights.npz", allow_pickle=False) as weights:
        assert {weights[name].dtype.name for name in weights.files} == {"float64"}


def test_a_model_of_the_loops_own_kind_and_a_loss(toy):
    """All rows score 2 at first, so the mean loss is that of the batch's share of ones alone."""
    overrides = (CONSTANT, "training.loss={module: my_models, name: squared}", "training.epochs=1",
                 "training.global_batch_size=650", "training.lanes=1")  # fmt: skip
    whole = train(World(), request_of(toy, *overrides))
    ones = toy.rows["train"]["y"].mean()
    assert losses(toy, whole) == pytest.approx([ones * 25 + (1 - ones) * 4], rel=1e-5)


def test_changed_code_is_another_run(toy):
    overrides = (CONSTANT, "training.epochs=1")
    first = train(World(), request_of(toy, *overrides))
    assert train(World(), request_of(toy, *overrides))["made"] is False
    (toy.folder / "my_models.py").write_text(MODULE.replace("self._score +", "1 + self._score +"))
    second = train(World(), request_of(toy, *overrides))
    assert second["run"] != first["run"]
    assert losses(toy, second)[0] != losses(toy, first)[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model={module: your_models, name: Tower}", "module 'your_models' is found neither in the recipe's folder"),
        ("model={module: ../my_models, name: Tower}", "expected the name of a Python module"),
        ("model={module: my_models, name: Towr}", "has no 'Towr'; did you mean 'Tower'?"),
        ("model={module: my_models, name: number}", "my_models.number is a int, where a class or a function is expected"),
        ("model={module: my_models, name: no_model}", "gave a str, where a keras.Model is expected"),
        ("model={module: my_models, name: Tower, settings: {unit: 6}}", "unexpected keyword argument 'unit'"),
        ("model={module: my_models, name: Constant, settings: {to: 6}}", "its settings are wrong"),
        ("model={module: my_models, name: normalised}", "has a BatchNormalization"),
        ("model={module: my_models, name: adapted}", "has weights that are not trained"),
        ("model={module: my_models, name: regular}", "adds losses of its own"),
        ("model={module: my_models, name: wide}", "where [rows] or [rows, 1] is expected"),
        ("model={module: my_models, name: misnamed}", "has an input 'x00', and no column is named so; did you mean 'x0'?"),
        ("training.loss={module: my_models, name: mean_squared}", "where a number for each row is expected"),
        ("training.loss={module: my_models, name: no_loss}", "training.loss: module 'my_models'"),
        ("training.metrics=[{module: my_models, name: Same}]", "gives the figure 'auc', which is there already"),
    ],
)
def test_what_cannot_be_used_is_told(toy, override, message):
    with pytest.raises(SettingError) as caught:
        train(World(), request_of(toy, override))
    assert message in str(caught.value)


def test_an_error_names_file_and_line(toy):
    text = toy.recipe.read_text()
    line = next(i for i, each in enumerate(text.splitlines(), 1) if each.startswith("model:"))
    toy.recipe.write_text(
        "\n".join("model: {module: gone, name: Tower}" if t.startswith("model:") else t for t in text.splitlines())
    )
    with pytest.raises(SettingError, match=f"toy.yaml:{line}: model: module 'gone' is found neither"):
        request_of(toy)
