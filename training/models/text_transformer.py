"""A small transformer encoder (Vaswani et al. 2017, "Attention Is All You Need") over the words of a row's texts.

Normalisation stands before each sublayer (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"), which
trains without a warm-up; positions are learnt. Texts of several columns are one sequence, each with its own vocabulary and
positions. The mean of the words that are no padding, beside floats and embedded ids, goes through an MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import tensorflow as tf
from pydantic import Field, model_validator

from lakering.documents import Settings
from training.models.base import Features, Model, ModelColumns
from training.models.dropout import Dropout
from training.models.layers import EMBEDDING_SCALE, Beside, Dense, Head, Variables

EPSILON = 1e-5


class TextTransformerSettings(Settings):
    """``width``: of a word's vector, cut into ``heads``. ``feed_forward``: units of each block's hidden layer. ``hidden``:
    units of the MLP at the end. ``dropout`` is on the words, on what a block adds, and within that MLP."""

    name: Literal["text_transformer"] = "text_transformer"
    width: int = Field(64, ge=1)
    heads: int = Field(4, ge=1)
    blocks: int = Field(2, ge=1)
    feed_forward: int = Field(128, ge=1)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    max_embedding: int = Field(16, ge=1, description="of an id column, as in wide_and_deep")
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _whole_heads(self) -> TextTransformerSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be cut into {self.heads} heads; take a multiple of {self.heads}")
        return self


class TextTransformer(Model):
    takes = ("tokens",)
    needs = ("tokens",)

    def __init__(self, settings: TextTransformerSettings, columns: ModelColumns, *, seed: int, precision: str) -> None:
        self.columns, self._dropout = columns, settings.dropout
        self._made = made = Variables(seed, precision)
        width = settings.width
        self._words, self._positions = {}, {}
        for column in columns.binary:
            assert column.num_ids
            assert column.shape
            self._words[column.name] = made.new(f"words/{column.name}", (column.num_ids, width), scale=EMBEDDING_SCALE)
            self._positions[column.name] = made.new(f"positions/{column.name}", (*column.shape, width), scale=EMBEDDING_SCALE)
        self._blocks = [_Block(made, f"block_{i}", settings) for i in range(settings.blocks)]
        self._norm = _LayerNorm(made, "norm", width)
        self._beside = Beside(made, columns, settings.max_embedding)
        self._head = Head(made, width + self._beside.width, settings.hidden, settings.dropout, columns.label)

    @property
    def variables(self) -> Sequence[tf.Variable]:
        return self._made.all

    def scores(self, features: Features, dropout: Dropout | None = None) -> tf.Tensor:
        ids = tf.concat([features.tokens[name] for name in self._words], axis=1)
        words = [tf.gather(self._words[name], features.tokens[name]) + self._positions[name] for name in self._words]
        values = _dropped(tf.cast(tf.concat(words, axis=1), self._made.dtype), self._dropout, dropout)
        is_word = tf.cast(ids != 0, self._made.dtype)
        for block in self._blocks:
            values = block(values, is_word, dropout)
        mean = tf.reduce_sum(self._norm(values) * is_word[:, :, None], axis=1)
        mean /= tf.maximum(tf.reduce_sum(is_word, axis=1, keepdims=True), 1)
        return self._head(tf.concat([mean, self._beside(features)], axis=1), dropout)


class _Block:
    """Self-attention and a feed-forward layer, each added to what it was given: [rows, words, width]."""

    def __init__(self, made: Variables, name: str, settings: TextTransformerSettings) -> None:
        width, inner = settings.width, settings.feed_forward
        self._heads, self._dropout = settings.heads, settings.dropout
        self._before_attention = _LayerNorm(made, f"{name}/attention_norm", width)
        self._query_key_value = Dense(made, f"{name}/query_key_value", width, 3 * width, (1 / width) ** 0.5)
        self._attended = Dense(made, f"{name}/attended", width, width, (1 / width) ** 0.5)
        self._before_dense = _LayerNorm(made, f"{name}/dense_norm", width)
        self._up = Dense(made, f"{name}/up", width, inner, (2 / width) ** 0.5)
        self._down = Dense(made, f"{name}/down", inner, width, (1 / inner) ** 0.5)

    def __call__(self, values: tf.Tensor, is_word: tf.Tensor, dropout: Dropout | None) -> tf.Tensor:
        values += _dropped(self._attention(self._before_attention(values), is_word), self._dropout, dropout)
        inner = tf.nn.relu(self._up(self._before_dense(values)))
        return values + _dropped(self._down(inner), self._dropout, dropout)

    def _attention(self, values: tf.Tensor, is_word: tf.Tensor) -> tf.Tensor:
        length, width = values.shape[1:]
        each = width // self._heads
        split = tf.reshape(self._query_key_value(values), [-1, length, 3, self._heads, each])
        query, key, value = tf.unstack(tf.transpose(split, [2, 0, 3, 1, 4]), num=3)  # [rows, heads, words, each]
        scores = tf.matmul(query, key, transpose_b=True) / tf.cast(each**0.5, values.dtype)
        scores = tf.where(is_word[:, None, None, :] > 0, scores, scores.dtype.min)  # finite: a text may have no word
        mixed = tf.transpose(tf.matmul(tf.nn.softmax(scores), value), [0, 2, 1, 3])
        return self._attended(tf.reshape(mixed, [-1, length, width]))


class _LayerNorm:
    """Over a word's own vector (Ba et al. 2016)."""

    def __init__(self, made: Variables, name: str, width: int) -> None:
        self._scale, self._shift = made.new(f"{name}/scale", (width,), at=1.0), made.new(f"{name}/shift", (width,))

    def __call__(self, values: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(values, self._scale.dtype)  # squares that float16 may not hold are summed
        mean, variance = tf.nn.moments(wide, axes=[-1], keepdims=True)
        return tf.cast((wide - mean) * tf.math.rsqrt(variance + EPSILON) * self._scale + self._shift, values.dtype)


def _dropped(values: tf.Tensor, rate: float, dropout: Dropout | None) -> tf.Tensor:
    return values if dropout is None else dropout.apply(values, rate)
