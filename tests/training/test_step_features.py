"""The step and the predictor hand a model every kind of feature, row by row as the table has it."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

from lakering.manifest import Column
from recipes.training import ImageSettings, Training
from tests.training.cells import with_cells
from training.distributed import World
from training.feed import Feed, Order
from training.models import Features, Model, ModelColumns
from training.optimizers import Optimizer
from training.step import Predictor, Step

ORDER = Order(seed=9, batch_size=64, window=2, lanes=8)
GRID, WORDS = Column("grid", "array", shape=(2, 3)), Column("words", "tokens", 9, (4,))
IMAGES = {"photo": ImageSettings(size=(8, 8), channels=1)}


class Sums(Model):
    """Weights of what it is given: a score tells whether each kind came with its row."""

    takes = ("array", "tokens", "image")

    def __init__(self, columns: ModelColumns) -> None:
        self.columns = columns
        self._weights = tf.Variable([1.0, 10.0, 100.0, 1000.0, 10_000.0], name="weights")

    @property
    def variables(self):
        return [self._weights]

    def scores(self, features: Features, dropout=None):
        cells = [features.floats, features.ids, features.arrays["grid"], features.tokens["words"], features.images["photo"]]
        sums = [tf.reduce_sum(tf.cast(cell, tf.float32), axis=list(range(1, cell.shape.rank))) for cell in cells]
        return tf.linalg.matvec(tf.stack(sums, axis=1), self._weights)

    def losses(self, scores, label):
        return scores

    def predictions(self, scores):
        return scores


def grids(random, label):
    return [random.normal(size=(2, 3)).astype("<f4").tobytes() for _ in label]


def words(random, label):
    return [random.integers(0, 9, 4).astype("<i4").tobytes() for _ in label]


def photos(random, label):
    cells = []
    for _ in label:
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (8, 8)).astype(np.uint8)).save(stream, "PNG")
        cells.append(stream.getvalue())
    return cells


def expected_scores(toy):
    """By row id, out of the files."""
    scores = {}
    for file in toy.file("train").parent.glob("train-*.parquet"):
        for row in pq.read_table(file).to_pylist():
            cells = [row["x0"], row["a"], np.frombuffer(row["grid"], "<f4").sum(), np.frombuffer(row["words"], "<i4").sum(),
                     np.asarray(Image.open(io.BytesIO(row["photo"]))).sum() / 255]  # fmt: skip
            scores[row["row_id"]] = float(np.dot(np.array(cells, np.float64), [1, 10, 100, 1000, 10_000]))
    return scores


def test_every_kind_of_feature_reaches_the_model_with_its_row(write_toy):
    toy = with_cells(write_toy(), GRID, grids, keep=("x0", "a"))
    toy = with_cells(toy, WORDS, words, keep=("x0", "a", "grid"))
    toy = with_cells(toy, Column("photo", "image"), photos, keep=("x0", "a", "grid", "words"))
    expected = expected_scores(toy)
    model = Sums(ModelColumns.of(toy.manifest, IMAGES))
    step, predictor = Step(model, Optimizer(Training(optimizer="sgd"), model.variables), World(), seed=1), Predictor(model)
    feed = Feed(lake=toy.lake, manifest=toy.manifest, split="train", order=ORDER, images=IMAGES)
    seen = 0
    for batch in feed.epoch(0):
        rows = [expected[row_id] for row_id in batch.row_id.tolist()]
        np.testing.assert_allclose(predictor(batch), rows, rtol=1e-4)
        assert step(batch, batch.step, 0.0).loss == pytest.approx(np.mean(rows), rel=1e-4)
        seen += batch.num_rows
    assert seen == 650
    assert step.num_traces == 1
