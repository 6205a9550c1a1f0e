"""Each model trains from a recipe on small data, learns what there is to learn, and predicts the same once it was written."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from lakering.errors import SettingError
from lakering.manifest import Column
from recipes import read_recipe
from recipes.training import ImageSettings, Training
from tests.training.cells import with_cells
from training.distributed import World
from training.evaluate import evaluate, evaluate_request
from training.feed import Feed, Order
from training.models import Features, ModelColumns, build_model, read_model_section
from training.models.base import BinaryColumn, FloatColumn, IdColumn, Label
from training.models.dropout import Dropout, row_keys
from training.optimizers import Optimizer
from training.requests import train_request
from training.step import Predictor, Step, empty_batch
from training.steplog import read_steps
from training.train import train

SIZES = {"train": [[400, 350], [450]], "validation": [[300]], "test": [[100]]}
ORDER = Order(seed=1, batch_size=64, window=2, lanes=8)
LENGTH, FIRST, SECOND = 6, 11, 12
WORDS = Column("words", "tokens", 13, (LENGTH,))
PHOTO = Column("photo", "image")
PHOTOS = ImageSettings(size=(8, 8), channels=1)
TEXT = "model={name: text_transformer, width: 16, heads: 2, blocks: 1, feed_forward: 32, hidden: [16]}"
DLRM = "model={name: dlrm, width: 4, bottom: [8], top: [16]}"
CNN = "model={name: cnn, channels: [8, 16], hidden: [16]}"
IMAGES = "training.images={photo: {size: [8, 8], channels: 1, crop: random, scale: [0.8, 1]}}"
FAST = ("training.learning_rate=0.01", "training.global_batch_size=64", "training.lanes=8")


def orders_of_words(random, label):
    """FIRST stands before SECOND where the label is 1, after it where it is 0, both among other words, with padding behind."""
    cells = []
    for one in label:
        words = random.integers(2, FIRST, LENGTH)
        at, later = np.sort(random.permutation(LENGTH - 1)[:2])
        words[at], words[later] = (FIRST, SECOND) if one else (SECOND, FIRST)
        words[random.integers(later + 1, LENGTH + 1) :] = 0
        cells.append(words.astype("<i4").tobytes())
    return cells


def bright_halves(random, label):
    """Noise whose left half is brighter where the label is 1, the right half where it is 0."""
    cells = []
    for one in label:
        pixels = random.integers(0, 120, (8, 8)).astype(np.uint8)
        pixels[:, :4] += np.uint8(100 * one)
        pixels[:, 4:] += np.uint8(100 * (1 - one))
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        cells.append(stream.getvalue())
    return cells


def train_and_reload(toy, *overrides):
    """The figures of validation at the training's end, after those of the model as read back are seen to be the same."""
    request = train_request(read_recipe(toy.recipe, overrides=[*FAST, *overrides]), snapshot=toy.manifest.id)
    run = train(World(), request)
    figures = run["record"]["metrics"]["final"]
    recipe = read_recipe(toy.recipe, overrides=["evaluation.trees=false", "evaluation.split=validation"])
    again = evaluate(World(), evaluate_request(recipe, run=run["run"]))["figures"]["model"]
    assert again["rows"] == 300
    assert {f"validation_{name}": value for name, value in again.items()} == pytest.approx(
        {name: value for name, value in figures.items() if name.startswith("validation_")}, rel=1e-6
    )
    losses = [step["loss"] for step in read_steps(toy.lake, toy.lake.run("toy", run["run"]))]
    return figures["validation_log_loss"], losses


def base_rate_loss(label):
    rate = label.mean()
    return -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))


def test_dlrm_learns(write_toy):
    toy = write_toy(SIZES)
    # Without b, whose 300 ids say nothing: the few rows would be learnt by heart.
    loss, losses = train_and_reload(toy, DLRM, "training.epochs=8", "training.columns=[x0, x1, a]")
    assert loss < base_rate_loss(toy.rows["validation"]["y"]) - 0.12
    assert np.mean(losses[-19:]) < base_rate_loss(toy.rows["train"]["y"]) - 0.12


def test_the_text_transformer_learns_the_order_of_words(write_toy):
    toy = with_cells(write_toy(SIZES), WORDS, orders_of_words)
    loss, _ = train_and_reload(toy, TEXT, "training.epochs=15")
    assert loss < 0.1


def test_the_cnn_learns_where_an_image_is_bright(write_toy):
    toy = with_cells(write_toy(SIZES), PHOTO, bright_halves)
    loss, _ = train_and_reload(toy, CNN, IMAGES, "training.epochs=6")
    assert loss < 0.1


LABEL = Label("y", "binary", 0.25, 0.4)
BESIDE = ((FloatColumn("x", 1.0, 2.0, (0.0, 1.0, 3.0)),), (IdColumn("a", 6), IdColumn("b", 9)))
TOKENS = BinaryColumn("words", "tokens", (LENGTH,), 13)
IMAGE = BinaryColumn("photo", "image", (5, 6, 3))
MODELS = {
    "dlrm": ({"name": "dlrm", "top": [8], "dropout": 0.3}, ()),
    "text_transformer": ({"name": "text_transformer", "width": 8, "heads": 2, "dropout": 0.3}, (TOKENS,)),
    "cnn": ({"name": "cnn", "channels": [4, 6], "groups": 4, "dropout": 0.3}, (IMAGE,)),
}


def model_of(name, *, seed=1, precision="float64"):
    section, binary = MODELS[name]
    return build_model(section, ModelColumns(*BESIDE, LABEL, binary), seed=seed, precision=precision)


def features_of(name, rows=20):
    random = np.random.default_rng(0)
    binary = MODELS[name][1]
    ids = np.stack([random.integers(0, 6, rows), random.integers(0, 9, rows)], 1).astype(np.int32)
    tokens = {"words": random.integers(0, 13, (rows, LENGTH)).astype(np.int32)} if TOKENS in binary else {}
    images = {"photo": random.normal(size=(rows, 5, 6, 3)).astype(np.float32)} if IMAGE in binary else {}
    return tf.nest.map_structure(tf.constant, Features(random.normal(size=(rows, 1)).astype(np.float32), ids, {}, tokens, images))


def part_of(features, first, last):
    return tf.nest.map_structure(lambda tensor: tensor[first:last], features)


def value_of(model, name):
    return next(variable.numpy() for variable in model.variables if variable.name.removesuffix(":0") == name)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_alone_sets_the_variables(name):
    first, second, other = model_of(name), model_of(name), model_of(name, seed=2)
    names = [variable.name for variable in first.variables]
    assert len(set(names)) == len(names)
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert any(not np.array_equal(a.numpy(), b.numpy()) for a, b in zip(first.variables, other.variables, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_rows_do_not_depend_on_each_other(name):
    model, features = model_of(name), features_of(name)
    keys = tf.constant(row_keys(np.arange(20), 5, 3))
    whole, training = model.scores(features).numpy(), model.scores(features, Dropout(keys)).numpy()
    assert np.std(whole) > 0
    assert not np.allclose(whole, training)
    np.testing.assert_allclose(whole[3:5], model.scores(part_of(features, 3, 5)).numpy(), rtol=1e-9)
    np.testing.assert_allclose(training[3:5], model.scores(part_of(features, 3, 5), Dropout(keys[3:5])).numpy(), rtol=1e-9)
    assert model.scores(part_of(features, 0, 0)).shape == (0,)


@pytest.mark.parametrize(
    ("column", "make", "settings"),
    [(WORDS, orders_of_words, {"name": "text_transformer"}), (PHOTO, bright_halves, {"name": "cnn"})],
    ids=["tokens", "image"],
)
def test_a_short_last_batch_and_an_empty_part_do_not_retrace(write_toy, column, make, settings):
    toy = with_cells(write_toy(), column, make, keep=("x0", "a"))
    images = {"photo": PHOTOS} if column is PHOTO else {}
    columns = ModelColumns.of(toy.manifest, images)
    model = build_model(settings, columns, seed=1)
    step, predictor = Step(model, Optimizer(Training(), model.variables), World(), seed=1), Predictor(model)
    for batch in Feed(lake=toy.lake, manifest=toy.manifest, split="train", order=ORDER, images=images).epoch(0):
        loss = step(batch, batch.step, 0.01).loss
    assert 0 < loss < 2
    assert batch.num_rows == 650 % 64
    assert predictor(batch).shape == (10,)
    assert step(None, 11, 0.01).failed_ranks == 1
    assert predictor(empty_batch(columns)).shape == (0,)
    assert step.num_traces == 1


def test_dlrm_is_the_paper_s_formula():
    model = model_of("dlrm")
    floats, ids = features_of("dlrm")[:2]
    vectors = np.clip((floats.numpy().astype(np.float64) - 1.0) / 2.0, -4, 4)
    for i in range(3):
        vectors = np.maximum(vectors @ value_of(model, f"bottom_{i}/weight") + value_of(model, f"bottom_{i}/bias"), 0)
    a, b = (value_of(model, f"embedding/{name}")[ids.numpy()[:, i]] for i, name in enumerate("ab"))
    dots = [np.sum(x * y, axis=1) for x, y in ((vectors, a), (vectors, b), (a, b))]
    hidden = np.concatenate([vectors, np.stack(dots, axis=1)], axis=1)
    hidden = np.maximum(hidden @ value_of(model, "dense_0/weight") + value_of(model, "dense_0/bias"), 0)
    expected = hidden @ value_of(model, "out/weight")[:, 0] + np.log(0.25 / 0.75)
    np.testing.assert_allclose(model.scores(features_of("dlrm")).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("floats", "ids", "width"), [(BESIDE[0], (), 16), ((), BESIDE[1][:1], 16), ((), BESIDE[1], 1), (*BESIDE, 16 + 3)]
)
def test_dlrm_takes_floats_or_ids_alone(floats, ids, width):
    model = build_model({"name": "dlrm", "top": [8]}, ModelColumns(floats, ids, LABEL), seed=1)
    assert value_of(model, "dense_0/weight").shape == (width, 8)
    features = Features(tf.zeros([2, len(floats)]), tf.zeros([2, len(ids)], tf.int32))
    assert model.scores(features).shape == (2,)


def test_padding_says_nothing():
    model, features = model_of("text_transformer"), features_of("text_transformer")
    padding = features.tokens["words"].numpy() == 0
    assert padding.any()
    before = model.scores(features).numpy()
    words = next(variable for variable in model.variables if variable.name.startswith("words/words"))
    words.assign(tf.tensor_scatter_nd_update(words, [[0]], [np.full(8, 7.0)]))
    np.testing.assert_allclose(model.scores(features).numpy(), before, rtol=1e-9)
    empty = model.scores(features._replace(tokens={"words": tf.zeros_like(features.tokens["words"])})).numpy()
    assert np.isfinite(empty).all()


def test_an_image_s_contrast_is_normalised_and_its_place_is_not():
    model, features = model_of("cnn"), features_of("cnn")
    before = model.scores(features).numpy()
    stretched = features._replace(images={"photo": features.images["photo"] * 100})
    np.testing.assert_allclose(model.scores(stretched).numpy(), before, rtol=1e-3)
    mirrored = features._replace(images={"photo": features.images["photo"][:, :, ::-1]})
    assert not np.allclose(model.scores(mirrored).numpy(), before, rtol=1e-2)


@pytest.mark.parametrize(
    ("settings", "binary", "says", "next_step"),
    [
        ({"name": "text_transformer"}, (), "'text_transformer' needs a column of the kind tokens, and the examples have none", "as: text"),
        ({"name": "cnn"}, (), "'cnn' needs a column of the kind image, and the examples have none", "as: image"),
        ({"name": "cnn"}, (TOKENS, IMAGE), r"takes columns of the kinds float, id, image, and cannot take words \(tokens\)", "leave"),
        ({"name": "cnn"}, (BinaryColumn("photo", "image"),), "takes the image column photo, and nothing tells how to decode it",
         "training.images: {photo: {size: "),
    ],
)  # fmt: skip
def test_columns_that_a_model_lacks_are_told(settings, binary, says, next_step):
    with pytest.raises(SettingError, match=says) as caught:
        build_model(settings, ModelColumns(*BESIDE, LABEL, binary), seed=1)
    assert next_step in str(caught.value)


def test_heads_that_do_not_divide_the_width_are_refused(write_toy):
    recipe = read_recipe(write_toy().recipe, overrides=["model={name: text_transformer, width: 10, heads: 4}"])
    with pytest.raises(SettingError, match="width 10 cannot be cut into 4 heads; take a multiple of 4"):
        read_model_section(recipe)
