"""Two towers: one makes a vector of the query's columns, the other of the item's; their dot product tells how well they fit
(Covington, Adams, Sargin 2016, "Deep Neural Networks for YouTube Recommendations"; Yi et al. 2019, "Sampling-Bias-Corrected
Neural Modeling for Large Corpus Item Recommendations").

Vectors have unit length. A clicked row (label 1) is trained by the softmax, over the items of the global batch on all ranks,
of its query's dot products divided by ``temperature``: its own item against the others, which are its negatives whether they
were clicked or not. Left out of a row's negatives are rows of the same item as its own, and rows of no weight. An unclicked
row has no loss of its own. The sampling-bias correction of Yi et al. is not made: items that are in many batches are
negatives more often.

Each rank compares its rows with those of all ranks: [its rows, rows of the global batch] numbers are in memory at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import tensorflow as tf
from pydantic import Field

from lakering.documents import Settings
from lakering.errors import SettingError, nearest
from recipes.settings import Name
from training.models.base import Features, Gather, Model, ModelColumns
from training.models.dropout import Dropout
from training.models.layers import EMBEDDING_SCALE, MLP, Dense, Variables, embedded, embedding_size, normalised

#: Odd 64-bit numbers, by which the parts of an item's key are mixed.
_MIX = (0x9E3779B97F4A7C15 - (1 << 64), 0xBF58476D1CE4E5B9 - (1 << 64))


class TwoTowerSettings(Settings):
    """``query`` and ``item``: the columns of each tower. ``hidden``: units of a tower's layers before its last, which has
    ``dimension``. ``dropout`` is within these. Rows whose items have equal ids are the same item; without an id column
    among the item's, rows of equal tokens and numbers."""

    name: Literal["two_tower"] = "two_tower"
    query: tuple[Name, ...] = Field(min_length=1)
    item: tuple[Name, ...] = Field(min_length=1)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128,)
    dimension: int = Field(64, ge=1)
    temperature: float = Field(0.05, gt=0)
    max_embedding: int = Field(32, ge=1, description="of an id column or of tokens, as in wide_and_deep")
    dropout: float = Field(0.0, ge=0, lt=1)


class TwoTower(Model):
    """A score is the dot product of a row's own query and item: its order among rows is what was learnt, and the probability
    made of it is none that could be trusted as such."""

    takes = ("tokens",)
    spans_batch = True

    def __init__(self, settings: TwoTowerSettings, columns: ModelColumns, *, seed: int, precision: str) -> None:
        _validate(settings, columns)
        self.columns, self._temperature = columns, settings.temperature
        self._made = made = Variables(seed, precision)
        self._query = _Tower(made, "query", settings.query, settings, columns)
        self._item = _Tower(made, "item", settings.item, settings, columns)

    @property
    def variables(self) -> Sequence[tf.Variable]:
        return self._made.all

    def scores(self, features: Features, dropout: Dropout | None = None) -> tf.Tensor:
        return tf.reduce_sum(self._query(features, dropout) * self._item(features, dropout), axis=1)

    def batch_losses(self, features: Features, label: tf.Tensor, weight: tf.Tensor, dropout: Dropout,
                     gather: Gather) -> tuple[tf.Tensor, tf.Tensor]:  # fmt: skip
        query, item = self._query(features, dropout), self._item(features, dropout)
        items, first = gather(item, "two_tower.items")
        keys, _ = gather(tf.stack([self._item.keys(features), tf.cast(weight != 0, tf.int64)], axis=1), "two_tower.keys")
        first = tf.cast(first, tf.int64)
        own_key = keys[first : first + tf.shape(label, out_type=tf.int64)[0], 0]
        no_negative = (own_key[:, None] == keys[None, :, 0]) | (keys[None, :, 1] == 0)
        fit = tf.matmul(query, items, transpose_b=True) / tf.constant(self._temperature, query.dtype)
        own = tf.reduce_sum(query * item, axis=1, keepdims=True) / tf.constant(self._temperature, query.dtype)
        # Its own item stands first, and once: as one of the items of the batch it is among those of its key.
        fit = tf.concat([own, tf.where(no_negative, fit.dtype.min, fit)], axis=1)
        losses = tf.reduce_logsumexp(fit, axis=1) - own[:, 0]
        return losses, tf.cast(weight, losses.dtype) * tf.cast(label, losses.dtype)


class _Tower:
    """[rows, dimension] of unit length, out of some of the columns: numbers normalised, ids embedded, and of tokens the mean
    of the embedded words."""

    def __init__(self, made: Variables, name: str, own: Sequence[str], settings: TwoTowerSettings, columns: ModelColumns) -> None:
        self._dtype = made.dtype
        # At least float32, whatever the layers compute in: what is divided by the temperature must be exact.
        self._out_dtype = made.dtype if made.dtype.size >= tf.float32.size else tf.float32
        self._float_at = [i for i, c in enumerate(columns.floats) if c.name in own]
        self._id_at = [i for i, c in enumerate(columns.ids) if c.name in own]
        self._floats = [columns.floats[i] for i in self._float_at]
        sizes = {columns.ids[i].name: columns.ids[i].num_ids for i in self._id_at}
        sizes |= {c.name: int(c.num_ids or 0) for c in columns.binary if c.name in own}
        tables = {
            column: made.new(f"{name}/embedding/{column}", (n, embedding_size(n, settings.max_embedding)), scale=EMBEDDING_SCALE)
            for column, n in sizes.items()
        }
        self._id_tables = [tables[columns.ids[i].name] for i in self._id_at]
        self._words = {c.name: tables[c.name] for c in columns.binary if c.name in own}
        width = len(self._floats) + sum(int(table.shape[1]) for table in tables.values())
        self._layers = MLP(made, f"{name}/dense", width, settings.hidden, settings.dropout)
        width = self._layers.width
        self._out = Dense(made, f"{name}/out", width, settings.dimension, (1 / width) ** 0.5)

    def __call__(self, features: Features, dropout: Dropout | None) -> tf.Tensor:
        floats, ids = self._own(features)
        parts = [normalised(floats, self._floats, self._dtype), *embedded(self._id_tables, ids)]
        parts += [_mean_word(table, features.tokens[name]) for name, table in self._words.items()]
        values = self._layers(tf.concat([tf.cast(part, self._dtype) for part in parts], axis=1), dropout)
        return tf.math.l2_normalize(tf.cast(self._out(values), self._out_dtype), axis=1)

    def keys(self, features: Features) -> tf.Tensor:
        """int64 [rows], equal where the rows' ids are (without id columns: tokens and numbers), else different but for one
        pair in 2^64."""
        floats, ids = self._own(features)
        if not self._id_at:
            ids = tf.concat([tf.bitcast(floats, tf.int32), *(features.tokens[name] for name in self._words)], axis=1)
        key = tf.zeros(tf.shape(ids)[:1], tf.int64)
        for part in tf.unstack(tf.cast(ids, tf.int64), axis=1):
            key = (key + part + 1) * tf.constant(_MIX[0], tf.int64)
            key = tf.bitwise.bitwise_xor(key, tf.bitwise.right_shift(key, tf.constant(29, tf.int64)))
            key *= tf.constant(_MIX[1], tf.int64)
        return key

    def _own(self, features: Features) -> tuple[tf.Tensor, tf.Tensor]:
        floats = tf.gather(features.floats, tf.constant(self._float_at, tf.int32), axis=1)
        return floats, tf.gather(features.ids, tf.constant(self._id_at, tf.int32), axis=1)


def _mean_word(table: tf.Variable, words: tf.Tensor) -> tf.Tensor:
    is_word = tf.cast(words != 0, table.dtype)[:, :, None]
    total = tf.reduce_sum(tf.gather(table, words) * is_word, axis=1)
    return total / tf.maximum(tf.reduce_sum(is_word, axis=1), 1)


def _validate(settings: TwoTowerSettings, columns: ModelColumns) -> None:
    if columns.label.kind != "binary":
        raise SettingError(f"model two_tower learns from rows that were clicked (label 1) or not (0), and label "
                           f"{columns.label.name!r} is of the kind {columns.label.kind}",
                           next_step="give it a binary label, or name another model")  # fmt: skip
    named = [*settings.query, *settings.item]
    for name in named:
        if name not in columns.names:
            raise SettingError(f"model.query and model.item: no column is named {name!r}{nearest(name, columns.names)}")
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise SettingError(f"model.query and model.item name {', '.join(twice)} more than once",
                           next_step="give each column to one of the towers")  # fmt: skip
    left = [name for name in columns.names if name not in named]
    if left:
        raise SettingError(f"column {', '.join(left)} is in neither model.query nor model.item",
                           next_step="give it to one of the towers, or leave it out with training.columns")  # fmt: skip
