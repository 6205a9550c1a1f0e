"""What a feed hands out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from training.feed.blocks import ALIGNMENT, FLOATS, IDS, LABEL, ROW_ID, WEIGHT, Rows

if TYPE_CHECKING:
    import tensorflow as tf


class Tensors(NamedTuple):
    """A batch's numbers as TensorFlow tensors: float32 [rows, floats], int32 [rows, ids], float32 [rows] (twice), and by
    column what else it holds; images only if they are decoded."""

    floats: tf.Tensor
    ids: tf.Tensor
    label: tf.Tensor
    weight: tf.Tensor | None
    arrays: dict[str, tf.Tensor]
    tokens: dict[str, tf.Tensor]
    images: dict[str, tf.Tensor]


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one global batch (possibly none), in output order. ``output`` is a row's index in the
    global batch, ``global_rows`` the number of rows that all ranks have together; ``row_id`` is empty where the feed
    was told that nobody asks for it. By column, ``arrays`` are float32 of [rows, *shape], ``tokens`` int32 ids of
    [rows, length], ``images`` float32 [rows, height, width, channels] where the feed was told how to decode them, else
    objects: each the bytes of a file."""

    step: int
    floats: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    label: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32] | None
    row_id: npt.NDArray[np.int64]
    output: npt.NDArray[np.int64]
    global_rows: int
    arrays: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    tokens: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)
    images: dict[str, npt.NDArray] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return len(self.label)

    def tensors(self) -> Tensors:
        """The same memory as tensors, without a copy (a feed's batches are fresh memory, aligned for it): from then on
        nothing may write to the batch's arrays."""
        weight = None if self.weight is None else tensor_of(self.weight)
        arrays, tokens, images = (
            {name: tensor_of(cells) for name, cells in columns.items() if not cells.dtype.hasobject}
            for columns in (self.arrays, self.tokens, self.images)
        )
        return Tensors(tensor_of(self.floats), tensor_of(self.ids), tensor_of(self.label), weight, arrays, tokens, images)


def tensor_of(array: npt.NDArray) -> tf.Tensor:
    """An array's memory as a tensor; a copy of memory that TensorFlow cannot share."""
    import tensorflow as tf

    facts: dict[str, Any] = array.__array_interface__
    address, read_only = facts["data"]
    # TensorFlow would end the process where memory is not aligned.
    if address % ALIGNMENT or read_only or not array.flags.c_contiguous or not array.size:
        return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


_NO_ROW_ID = np.empty(0, np.int64)


def batch_of(step: int, rows: Rows, output: npt.NDArray[np.int64], global_rows: int) -> Batch:
    """A batch of packed rows."""
    cells: dict[str, dict[str, npt.NDArray]] = {"array": {}, "tokens": {}, "image": {}}
    for name, values in rows.items():
        kind, slash, column = name.partition("/")
        if slash:
            cells[kind][column] = values
    return Batch(step, rows[FLOATS], rows[IDS], rows[LABEL], rows.get(WEIGHT), rows.get(ROW_ID, _NO_ROW_ID), output, global_rows,
                 cells["array"], cells["tokens"], cells["image"])  # fmt: skip
