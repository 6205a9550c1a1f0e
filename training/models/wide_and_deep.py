"""Wide and deep (Cheng et al. 2016): a linear model of ids, crosses and binned numbers, beside embeddings and an MLP.

Numbers go in twice: normalised, and as piecewise-linear codes between the train split's quantiles (Gorishniy et al. 2022,
"On Embeddings for Numerical Features in Tabular Deep Learning"), which let a small network bend where trees would cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import tensorflow as tf
from pydantic import Field

from lakering.documents import Settings
from lakering.errors import SettingError, nearest
from training.models.base import Features, Model, ModelColumns
from training.models.dropout import Dropout
from training.models.layers import (
    EMBEDDING_SCALE,
    MLP,
    Variables,
    at_least_float32,
    biased,
    embedded,
    embedding_size,
    new_bias,
    normalised,
)


class WideAndDeepSettings(Settings):
    """``hidden``: units of the MLP's layers. ``crosses``: pairs of id columns whose combinations get a wide weight each,
    hashed into ``cross_buckets``. An id column's embedding has ``min(max_embedding, 1.6 n^0.56)`` dimensions."""

    name: Literal["wide_and_deep"] = "wide_and_deep"
    hidden: tuple[int, ...] = (256, 128)
    dropout: float = Field(0.2, ge=0, lt=1)
    embedding_dropout: float = Field(0.1, ge=0, lt=1)
    max_embedding: int = Field(16, ge=1)
    crosses: tuple[tuple[str, str], ...] = ()
    cross_buckets: int = Field(10_000, ge=1)


class WideAndDeep(Model):
    def __init__(self, settings: WideAndDeepSettings, columns: ModelColumns, *, seed: int, precision: str) -> None:
        self.columns, self._settings = columns, settings
        self._made = made = Variables(seed, precision)
        self._set_numbers()
        self._crosses = [self._cross_of(pair) for pair in settings.crosses]
        self._tables = [
            made.new(f"embedding/{c.name}", (c.num_ids, embedding_size(c.num_ids, settings.max_embedding)), scale=EMBEDDING_SCALE)
            for c in columns.ids
        ]
        scores = columns.label.num_classes or 1
        self._wide_tables = [made.new(f"wide/{c.name}", (c.num_ids, scores)) for c in columns.ids]
        self._cross_tables = [made.new(f"cross/{a}/{b}", (settings.cross_buckets, scores)) for a, b in settings.crosses]
        width = len(columns.floats) + len(self._code_column) + sum(int(table.shape[1]) for table in self._tables)
        self._layers = MLP(made, "dense", width, settings.hidden, settings.dropout)
        width = self._layers.width
        self._out = made.new("out/weight", (width, scores), scale=(1 / max(width, 1)) ** 0.5)
        self._wide_codes = made.new("wide/numbers", (len(self._code_column), scores))
        self._bias = new_bias(made, columns.label)

    @property
    def variables(self) -> Sequence[tf.Variable]:
        return self._made.all

    def scores(self, features: Features, dropout: Dropout | None = None) -> tf.Tensor:
        codes = self._codes(features.floats)
        normal = normalised(features.floats, self.columns.floats, self._made.dtype)
        each = tf.unstack(features.ids, num=len(self.columns.ids), axis=1)
        # One weight each: nothing to win by half precision.
        wide = [
            tf.matmul(tf.cast(codes, self._made.variable_dtype), self._wide_codes),
            *embedded(self._wide_tables, features.ids),
        ]
        pairs = zip(self._cross_tables, self._crosses, strict=True)
        wide += [tf.gather(table, self._crossed(each[a], each[b])) for table, (a, b) in pairs]
        deep = [normal, codes]
        if self._tables:
            ids = tf.concat(embedded(self._tables, features.ids, self._made.dtype), axis=1)
            deep.append(dropout.apply(ids, self._settings.embedding_dropout) if dropout is not None else ids)
        hidden = self._layers(tf.concat(deep, axis=1), dropout)
        scores = tf.cast(tf.matmul(hidden, tf.cast(self._out, hidden.dtype)), self._bias.dtype)
        return biased(scores + tf.add_n(wide), self._bias)

    def _set_numbers(self) -> None:
        """Constants of the numbers' codes: for each code its column, the edge where it starts and its width."""
        steps = [(i, low, high) for i, c in enumerate(self.columns.floats) for low, high in pairwise(c.edges)]
        self._code_column = [i for i, _, _ in steps]
        self._code_low = np.array([low for _, low, _ in steps])
        self._code_width = np.array([high - low for _, low, high in steps])

    def _codes(self, floats: tf.Tensor) -> tf.Tensor:
        """Between edges e_k and e_(k+1): 0 below, 1 above, linear in between; centred."""
        wide = at_least_float32(self._made.dtype)
        values = tf.cast(tf.gather(floats, tf.constant(self._code_column, tf.int32), axis=1), wide)
        low, width = tf.constant(self._code_low, wide), tf.constant(self._code_width, wide)
        return tf.cast(tf.clip_by_value((values - low) / width, 0, 1) - 0.5, self._made.dtype)

    def _cross_of(self, pair: tuple[str, str]) -> tuple[int, int]:
        names = [c.name for c in self.columns.ids]
        for name in pair:
            if name not in names:
                raise SettingError(f"model.crosses: {name!r} is not an id column{nearest(name, names)}")
        return names.index(pair[0]), names.index(pair[1])

    def _crossed(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        """A bucket for each pair of ids (Knuth's multiplicative hashing)."""
        mixed = tf.cast(a, tf.int64) * 2654435761 + tf.cast(b, tf.int64) * 40503
        return tf.math.floormod(tf.bitwise.bitwise_xor(mixed, mixed // 65536), self._settings.cross_buckets)
