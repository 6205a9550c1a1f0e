"""What the models are made of. Every layer treats rows alone, and every variable's start follows from the seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training.models.base import Features, FloatColumn, Label, ModelColumns
from training.models.dropout import Dropout

#: Normalised numbers lie within so many deviations of the mean.
CLIP = 4.0
#: Deviation of an embedding's start.
EMBEDDING_SCALE = 0.05


class Variables:
    """A model's variables in the order in which they are made, their values drawn with numpy from the seed alone."""

    def __init__(self, seed: int, precision: str) -> None:
        #: What a model computes in, and what its variables are kept in.
        self.dtype = tf.as_dtype(precision.removeprefix("mixed_"))
        self.variable_dtype = at_least_float32(self.dtype)
        self.all: list[tf.Variable] = []
        self._random = np.random.default_rng([seed, 0x77D])

    def new(self, name: str, shape: tuple[int, ...], *, scale: float = 0.0, at: npt.ArrayLike = 0.0) -> tf.Variable:
        """Normally distributed around 0 with deviation ``scale``; without one, ``at`` everywhere."""
        value = self._random.standard_normal(shape) * scale if scale else np.full(shape, at)
        variable = tf.Variable(value, dtype=self.variable_dtype, name=name)
        self.all.append(variable)
        return variable


class Dense:
    """An affine map of the last axis, without an activation; the weights start with deviation ``scale``."""

    def __init__(self, variables: Variables, name: str, width: int, units: int, scale: float) -> None:
        self._width, self._units = width, units
        self._weight = variables.new(f"{name}/weight", (width, units), scale=scale)
        self._bias = variables.new(f"{name}/bias", (units,))

    def __call__(self, values: tf.Tensor) -> tf.Tensor:
        """[..., width] -> [..., units]; of the axes before, the first alone may be free."""
        if values.shape.rank == 2:
            return tf.matmul(values, tf.cast(self._weight, values.dtype)) + tf.cast(self._bias, values.dtype)
        # As one product: a product for each row would keep a gradient of the weights for each.
        flat = self(tf.reshape(values, [-1, self._width]))
        return tf.reshape(flat, [-1, *values.shape[1:-1], self._units])


class MLP:
    """Dense layers, each with a ReLU and dropout behind it, from He et al.'s start (2015). ``width`` is the last one's."""

    def __init__(self, variables: Variables, name: str, width: int, hidden: Sequence[int], dropout: float) -> None:
        self._layers, self._dropout = [], dropout
        for i, units in enumerate(hidden):
            self._layers.append(Dense(variables, f"{name}_{i}", width, units, (2 / max(width, 1)) ** 0.5))
            width = units
        self.width = width

    def __call__(self, values: tf.Tensor, dropout: Dropout | None) -> tf.Tensor:
        """[rows, units] of the first layer -> [rows, ``width``]."""
        for layer in self._layers:
            values = tf.nn.relu(layer(values))
            if dropout is not None:
                values = dropout.apply(values, self._dropout)
        return values


class Head:
    """An MLP that ends in one score a row, or one for each class, which starts near the label's mean."""

    def __init__(self, variables: Variables, width: int, hidden: Sequence[int], dropout: float, label: Label) -> None:
        self._layers = MLP(variables, "dense", width, hidden, dropout)
        width = self._layers.width
        self._weight = variables.new("out/weight", (width, label.num_classes or 1), scale=(1 / max(width, 1)) ** 0.5)
        self._bias = new_bias(variables, label)

    def __call__(self, values: tf.Tensor, dropout: Dropout | None) -> tf.Tensor:
        """[rows, units] -> [rows], or [rows, classes], in the variables' type."""
        hidden = self._layers(values, dropout)
        scores = tf.matmul(hidden, tf.cast(self._weight, hidden.dtype))
        return biased(tf.cast(scores, self._bias.dtype), self._bias)


class Beside:
    """The floats, normalised, and the ids, embedded, that stand beside a text or an image: [rows, ``width``]."""

    def __init__(self, variables: Variables, columns: ModelColumns, max_embedding: int) -> None:
        self._floats, self._dtype = columns.floats, variables.dtype
        self._tables = [
            variables.new(f"embedding/{c.name}", (c.num_ids, embedding_size(c.num_ids, max_embedding)), scale=EMBEDDING_SCALE)
            for c in columns.ids
        ]
        self.width = len(columns.floats) + sum(int(table.shape[1]) for table in self._tables)

    def __call__(self, features: Features) -> tf.Tensor:
        numbers = normalised(features.floats, self._floats, self._dtype)
        return tf.concat([numbers, *embedded(self._tables, features.ids, self._dtype)], axis=1)


def normalised(floats: tf.Tensor, columns: Sequence[FloatColumn], dtype: tf.DType) -> tf.Tensor:
    """[rows, floats] in deviations from the mean, both the train split's, clipped."""
    wide = at_least_float32(dtype)  # half precision cannot hold a year, nor any number over 65,504
    mean = tf.constant(np.array([c.mean for c in columns]), wide)
    std = tf.constant(np.array([c.std for c in columns]), wide)
    return tf.cast(tf.clip_by_value((tf.cast(floats, wide) - mean) / std, -CLIP, CLIP), dtype)


def embedded(tables: Sequence[tf.Variable], ids: tf.Tensor, dtype: tf.DType | None = None) -> list[tf.Tensor]:
    """Of each column of [rows, ids] its rows of its table: [rows, dimensions], in ``dtype``, by default the table's own."""
    columns = zip(tables, tf.unstack(ids, num=len(tables), axis=1), strict=True)
    # The rows are cast, not the table: its gradient stays one of a few rows.
    return [tf.cast(tf.gather(table, each), dtype or table.dtype) for table, each in columns]


def at_least_float32(dtype: tf.DType) -> tf.DType:
    return dtype if dtype.size >= tf.float32.size else tf.float32


def embedding_size(num_ids: int, largest: int) -> int:
    """Dimensions by cardinality, fast.ai's rule of thumb (Howard, Gugger: fastai, 2020)."""
    return int(min(largest, max(1, round(1.6 * num_ids**0.56))))


def new_bias(variables: Variables, label: Label) -> tf.Variable:
    """The bias of scores, at the train split's: [classes] of several, else one number."""
    if label.num_classes:
        shares = np.log(np.maximum(label.shares, 1e-4))
        return variables.new("out/bias", (label.num_classes,), at=shares - shares.mean())
    return variables.new("out/bias", (), at=mean_score(label))


def biased(values: tf.Tensor, bias: tf.Variable) -> tf.Tensor:
    """[rows, scores of a row] with their bias: [rows, classes], or [rows] where a row has one score."""
    return values + bias if bias.shape.rank else tf.squeeze(values, axis=1) + bias


def mean_score(label: Label) -> float:
    """The score of the train split's mean: log-odds of the base rate, or no deviation."""
    rate = min(max(label.mean, 1e-4), 1 - 1e-4) if label.kind == "binary" else 0.5
    return float(np.log(rate / (1 - rate)))
