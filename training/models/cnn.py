"""A small convolutional net for images: blocks of a 3 x 3 convolution, group normalisation, ReLU and mean pooling.

Group normalisation (Wu and He 2018) looks at one image alone, so a row's score does not depend on the rows beside it. The mean
over what is left of the image (Lin et al. 2013, "Network In Network"), beside floats and embedded ids, goes through an MLP. Each
image column has convolutions of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import tensorflow as tf
from pydantic import Field

from lakering.documents import Settings
from training.models.base import Features, Model, ModelColumns
from training.models.dropout import Dropout
from training.models.layers import Beside, Head, Variables

EPSILON = 1e-5
Units = Annotated[int, Field(ge=1)]


class CNNSettings(Settings):
    """``channels``: of the blocks, each of which halves height and width. ``groups``: of channels that are normalised
    together, or the largest number below it that divides a block's channels. ``hidden`` and ``dropout``: of the MLP at
    the end."""

    name: Literal["cnn"] = "cnn"
    channels: tuple[Units, ...] = Field((16, 32, 64), min_length=1)
    groups: int = Field(8, ge=1)
    hidden: tuple[Units, ...] = (64,)
    max_embedding: int = Field(16, ge=1, description="of an id column, as in wide_and_deep")
    dropout: float = Field(0.1, ge=0, lt=1)


class CNN(Model):
    takes = ("image",)
    needs = ("image",)

    def __init__(self, settings: CNNSettings, columns: ModelColumns, *, seed: int, precision: str) -> None:
        self.columns = columns
        self._made = made = Variables(seed, precision)
        self._blocks: dict[str, list[_Block]] = {}
        for column in columns.binary:
            assert column.shape
            widths = (column.shape[-1], *settings.channels)
            self._blocks[column.name] = [
                _Block(made, f"image/{column.name}/block_{i}", widths[i], widths[i + 1], settings.groups)
                for i in range(len(settings.channels))
            ]
        self._beside = Beside(made, columns, settings.max_embedding)
        width = len(self._blocks) * settings.channels[-1] + self._beside.width
        self._head = Head(made, width, settings.hidden, settings.dropout, columns.label)

    @property
    def variables(self) -> Sequence[tf.Variable]:
        return self._made.all

    def scores(self, features: Features, dropout: Dropout | None = None) -> tf.Tensor:
        parts = [self._beside(features)]
        for name, blocks in self._blocks.items():
            pixels = tf.cast(features.images[name], self._made.dtype)
            for block in blocks:
                pixels = block(pixels)
            mean = tf.reduce_mean(tf.cast(pixels, self._made.variable_dtype), axis=[1, 2])  # a sum that float16 may not hold
            parts.append(tf.cast(mean, self._made.dtype))
        return self._head(tf.concat(parts, axis=1), dropout)


class _Block:
    """[rows, height, width, channels] -> [rows, height / 2, width / 2, its own channels], both rounded up."""

    def __init__(self, made: Variables, name: str, channels: int, own: int, groups: int) -> None:
        self._groups = next(number for number in range(min(groups, own), 0, -1) if own % number == 0)
        self._kernel = made.new(f"{name}/kernel", (3, 3, channels, own), scale=math.sqrt(2 / (9 * channels)))
        self._scale, self._shift = made.new(f"{name}/scale", (own,), at=1.0), made.new(f"{name}/shift", (own,))

    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        kernel = tf.cast(self._kernel, pixels.dtype)
        pixels = tf.nn.relu(self._normalised(tf.nn.conv2d(pixels, kernel, strides=1, padding="SAME")))
        # Not its maximum: TensorFlow's gradient of that ends the process where a rank has no row of a batch.
        return tf.nn.avg_pool2d(pixels, ksize=2, strides=2, padding="SAME")

    def _normalised(self, pixels: tf.Tensor) -> tf.Tensor:
        height, width, channels = pixels.shape[1:]
        # In the variables' type: squares that float16 may not hold are summed.
        grouped = tf.cast(tf.reshape(pixels, [-1, height, width, self._groups, channels // self._groups]), self._scale.dtype)
        mean, variance = tf.nn.moments(grouped, axes=[1, 2, 4], keepdims=True)
        grouped = (grouped - mean) * tf.math.rsqrt(variance + EPSILON)
        scaled = tf.reshape(grouped, [-1, height, width, channels]) * self._scale + self._shift
        return tf.cast(scaled, pixels.dtype)
