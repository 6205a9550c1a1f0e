"""A batch worked through in parts, one after the other, so that only one part's activations are in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

#: From tensors of the same number of rows to sums over those rows.
Sums = Callable[..., Sequence[tf.Tensor]]


def sum_in_parts(sums: Sums, rows: Sequence[tf.Tensor], parts: int, like: Sequence[tf.Tensor | tf.Variable]) -> list[tf.Tensor]:
    """``sums(*rows)``, as the sum over ``parts`` runs of consecutive rows; for use inside a ``tf.function``. ``like`` have the
    shapes and types of what ``sums`` returns. Equal but for the order of summation, since what is returned are sums over
    rows; parts differ by one row at most, and may be empty."""
    if parts == 1:
        return list(sums(*rows))
    num_rows = tf.shape(rows[0], out_type=tf.int64)[0]

    def add(part: tf.Tensor, *totals: tf.Tensor) -> tuple[tf.Tensor, ...]:
        low, high = num_rows * part // parts, num_rows * (part + 1) // parts
        found = sums(*[tensor[low:high] for tensor in rows])
        return part + 1, *(total + more for total, more in zip(totals, found, strict=True))

    zeros = [tf.zeros(tensor.shape, tensor.dtype) for tensor in like]
    start = (tf.constant(0, tf.int64), *zeros)
    # One iteration at a time: several at once would hold several parts' activations.
    _, *totals = tf.while_loop(lambda part, *_: part < parts, add, start, parallel_iterations=1)
    return list(totals)
