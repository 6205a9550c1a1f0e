"""Dropout that is a function of (seed, step, row): the same for a row on whichever rank it is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tensorflow as tf


def row_keys(output: npt.NDArray[np.int64], seed: int, step: int) -> npt.NDArray[np.uint32]:
    """32 random bits for each row of a step: SplitMix64's finaliser over its index in the global batch, seed and step."""
    with np.errstate(over="ignore"):
        key = output.astype(np.uint64)
        for part in (seed, step):
            key = (key ^ np.uint64(part)) + np.uint64(0x9E3779B97F4A7C15)
            key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            key = key ^ (key >> np.uint64(31))
    return (key >> np.uint64(32)).astype(np.uint32)


class Dropout:
    """Masks for the layers of one pass over a batch. ``keys`` [rows] comes from ``row_keys``."""

    def __init__(self, keys: tf.Tensor) -> None:
        self._keys = keys
        self._layers = 0

    @property
    def draws(self) -> bool:
        """Whether any layer drew by it, so that the keys matter."""
        return self._layers > 0

    def apply(self, values: tf.Tensor, rate: float) -> tf.Tensor:
        """Values [rows, ...], each set to zero with probability ``rate``, the others scaled so that the mean stays. All axes
        but the first have fixed lengths, and hold together at most a million values a row."""
        if rate == 0:
            return values
        if values.shape.rank > 2:
            flat = tf.reshape(values, [-1, values.shape[1:].num_elements()])
            return tf.reshape(self.apply(flat, rate), [-1, *values.shape[1:]])
        units = values.shape[-1]
        self._layers += 1
        # Constants of murmur3's finaliser; the layer's and the unit's bits are mixed before the graph is built.
        unit = (np.arange(units, dtype=np.uint64) + np.uint64(self._layers << 20)) * np.uint64(0x9E3779B97F4A7C15)
        bits = tf.bitwise.bitwise_xor(self._keys[:, None], tf.constant((unit >> np.uint64(32)).astype(np.uint32))[None, :])
        bits = bits * tf.constant(0x85EBCA6B, tf.uint32)
        bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(15, tf.uint32)))
        bits = bits * tf.constant(0xC2B2AE35, tf.uint32)
        kept = bits >= tf.constant(int(rate * 2**32), tf.uint32)
        return values * tf.cast(kept, values.dtype) * tf.cast(1 / (1 - rate), values.dtype)
