"""DLRM (Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and Recommendation Systems").

The numbers, through a bottom MLP, and each id, through an embedding, become vectors of one common width. The dot products of all
pairs of them, beside the numbers' vector itself, go through a top MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import tensorflow as tf
from pydantic import Field

from lakering.documents import Settings
from training.models.base import Features, Model, ModelColumns
from training.models.dropout import Dropout
from training.models.layers import MLP, Head, Variables, embedded, normalised

Units = Annotated[int, Field(ge=1)]


class DLRMSettings(Settings):
    """``width``: of the vectors. ``bottom``: units of the bottom MLP's layers before its last, which has ``width``.
    ``top``: units of the top MLP's layers before its last, which has one. ``dropout`` is within the top MLP."""

    name: Literal["dlrm"] = "dlrm"
    width: int = Field(16, ge=1)
    bottom: tuple[Units, ...] = (64, 32)
    top: tuple[Units, ...] = (128, 64)
    dropout: float = Field(0.0, ge=0, lt=1)


class DLRM(Model):
    def __init__(self, settings: DLRMSettings, columns: ModelColumns, *, seed: int, precision: str) -> None:
        self.columns = columns
        self._made = made = Variables(seed, precision)
        hidden = (*settings.bottom, settings.width)
        self._bottom = MLP(made, "bottom", len(columns.floats), hidden, 0.0) if columns.floats else None
        # The deviation of the uniform start that the paper's code has, from -sqrt(1/n) to sqrt(1/n).
        self._tables = [
            made.new(f"embedding/{c.name}", (c.num_ids, settings.width), scale=(1 / (3 * c.num_ids)) ** 0.5) for c in columns.ids
        ]
        self._num_vectors = bool(columns.floats) + len(columns.ids)
        # A lone vector has no pair: it goes on as it is.
        self._keeps_first = bool(columns.floats) or self._num_vectors == 1
        pairs = self._num_vectors * (self._num_vectors - 1) // 2
        width = pairs + (settings.width if self._keeps_first else 0)
        self._top = Head(made, width, settings.top, settings.dropout, columns.label)

    @property
    def variables(self) -> Sequence[tf.Variable]:
        return self._made.all

    def scores(self, features: Features, dropout: Dropout | None = None) -> tf.Tensor:
        vectors = embedded(self._tables, features.ids, self._made.dtype)
        if self._bottom is not None:
            numbers = normalised(features.floats, self.columns.floats, self._made.dtype)
            vectors.insert(0, self._bottom(numbers, dropout))
        parts = [vectors[0]] if self._keeps_first else []
        return self._top(tf.concat([*parts, pairwise_dots(tf.stack(vectors, axis=1))], axis=1), dropout)


def pairwise_dots(vectors: tf.Tensor) -> tf.Tensor:
    """[rows, n, width] -> [rows, n (n - 1) / 2]: the dot product of each two of a row's vectors."""
    number = vectors.shape[1]
    first, second = np.tril_indices(number, -1)
    dots = tf.reshape(tf.matmul(vectors, vectors, transpose_b=True), [-1, number * number])
    return tf.gather(dots, tf.constant(first * number + second, tf.int32), axis=1)
