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
from training.models.base import Model, ModelColumns
from training.models.dropout import Dropout

CLIP = 4.0


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
        self._dtype = tf.as_dtype(precision)
        self._random = np.random.default_rng([seed, 0x77D])
        self._variables: list[tf.Variable] = []
        self._set_numbers()
        self._crosses = [self._cross_of(pair) for pair in settings.crosses]
        self._tables = [
            self._variable(f"embedding/{c.name}", (c.num_ids, embedding_size(c.num_ids, settings.max_embedding)), 0.05)
            for c in columns.ids
        ]
        self._wide_tables = [self._variable(f"wide/{c.name}", (c.num_ids, 1), 0) for c in columns.ids]
        self._cross_tables = [self._variable(f"cross/{a}/{b}", (settings.cross_buckets, 1), 0) for a, b in settings.crosses]
        width = len(columns.floats) + len(self._code_column) + sum(int(table.shape[1]) for table in self._tables)
        self._layers = []
        for i, units in enumerate(settings.hidden):
            weight = self._variable(f"dense_{i}/weight", (width, units), (2 / max(width, 1)) ** 0.5)
            self._layers.append((weight, self._variable(f"dense_{i}/bias", (units,), 0)))
            width = units
        self._out = self._variable("out/weight", (width, 1), (1 / max(width, 1)) ** 0.5)
        self._wide_codes = self._variable("wide/numbers", (len(self._code_column), 1), 0)
        rate = min(max(columns.label.mean, 1e-4), 1 - 1e-4) if columns.label.kind == "binary" else 0.5
        self._bias = self._variable("out/bias", (), 0, at=float(np.log(rate / (1 - rate))))

    @property
    def variables(self) -> Sequence[tf.Variable]:
        return self._variables

    def scores(self, floats: tf.Tensor, ids: tf.Tensor, dropout: Dropout | None = None) -> tf.Tensor:
        codes, normal = self._codes(floats), self._normalised(floats)
        each = tf.unstack(ids, num=len(self.columns.ids), axis=1)
        wide = [tf.matmul(codes, self._wide_codes)]
        wide += [tf.gather(table, column) for table, column in zip(self._wide_tables, each, strict=True)]
        pairs = zip(self._cross_tables, self._crosses, strict=True)
        wide += [tf.gather(table, self._crossed(each[a], each[b])) for table, (a, b) in pairs]
        embedded = tf.concat([tf.gather(t, c) for t, c in zip(self._tables, each, strict=True)], 1) if each else None
        if dropout is not None and embedded is not None:
            embedded = dropout.apply(embedded, self._settings.embedding_dropout)
        deep = tf.concat([normal, codes] + ([embedded] if embedded is not None else []), axis=1)
        for weight, bias in self._layers:
            deep = tf.nn.relu(tf.matmul(deep, weight) + bias)
            if dropout is not None:
                deep = dropout.apply(deep, self._settings.dropout)
        return tf.squeeze(tf.matmul(deep, self._out) + tf.add_n(wide), axis=1) + self._bias

    def _variable(self, name: str, shape: tuple[int, ...], scale: float, at: float = 0.0) -> tf.Variable:
        value = self._random.standard_normal(shape) * scale if scale else np.full(shape, at)
        variable = tf.Variable(value, dtype=self._dtype, name=name)
        self._variables.append(variable)
        return variable

    def _set_numbers(self) -> None:
        """Constants of the numbers' codes: for each code its column, the edge where it starts and its width."""
        steps = [(i, low, high) for i, c in enumerate(self.columns.floats) for low, high in pairwise(c.edges)]
        self._code_column = [i for i, _, _ in steps]
        self._code_low = np.array([low for _, low, _ in steps])
        self._code_width = np.array([high - low for _, low, high in steps])
        self._mean = np.array([c.mean for c in self.columns.floats])
        self._std = np.array([c.std for c in self.columns.floats])

    def _codes(self, floats: tf.Tensor) -> tf.Tensor:
        """Between edges e_k and e_(k+1): 0 below, 1 above, linear in between; centred."""
        values = tf.cast(tf.gather(floats, tf.constant(self._code_column, tf.int32), axis=1), self._dtype)
        low, width = tf.constant(self._code_low, self._dtype), tf.constant(self._code_width, self._dtype)
        return tf.clip_by_value((values - low) / width, 0, 1) - 0.5

    def _normalised(self, floats: tf.Tensor) -> tf.Tensor:
        mean, std = tf.constant(self._mean, self._dtype), tf.constant(self._std, self._dtype)
        return tf.clip_by_value((tf.cast(floats, self._dtype) - mean) / std, -CLIP, CLIP)

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


def embedding_size(num_ids: int, largest: int) -> int:
    """Dimensions by cardinality, fast.ai's rule of thumb (Howard, Gugger: fastai, 2020)."""
    return int(min(largest, max(1, round(1.6 * num_ids**0.56))))
