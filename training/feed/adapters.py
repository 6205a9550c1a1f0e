"""The feed's batches as other libraries take them: the same rows in the same order, and the same number of batches.

Each goes once over one epoch, from ``start_step`` on. An element is a dict of a batch's columns:

    floats   float32 [rows, float columns]
    ids      int32 [rows, id columns]
    label    float32 [rows]
    weight   float32 [rows], if the table has one, or rows with a broken image are left out
    row_id   int64 [rows], if the feed reads them
    arrays   {column: float32 [rows, *shape]}, if there are any
    tokens   {column: int32 [rows, length]}, if there are any
    images   {column: float32 [rows, height, width, channels], or not decoded bytes of a file [rows]}, if there are any

The last batch may be short, and a rank's part of a batch may have no row. Where an iterator is left early, close it or
drop it: that ends the feed's thread.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from lakering.errors import LakeringError, SettingError
from training.feed.feed import Batch, Feed

if TYPE_CHECKING:
    import tensorflow as tf

Columns = dict[str, Any]


def numpy_batches(feed: Feed, epoch: int, start_step: int = 0) -> Generator[Columns]:
    """Arrays of numpy; an image that is not decoded is a bytes object. Raises what ``Feed.epoch`` raises."""
    with closing(feed.epoch(epoch, start_step)) as batches:
        for batch in batches:
            yield _columns(batch, row_ids=feed.row_ids)


def tf_dataset(feed: Feed, epoch: int, start_step: int = 0) -> tf.data.Dataset:
    """A ``tf.data.Dataset`` of tensors; an image that is not decoded is a ``tf.string``.

    Each iterator over it has a thread of the feed of its own, and begins at ``start_step`` again. An exception of the
    feed comes as a ``tf.errors.OpError`` with the exception's type and message in its text."""
    import tensorflow as tf

    def spec(shape: tuple[int, ...], dtype: Any) -> tf.TensorSpec:
        return tf.TensorSpec([None, *shape], dtype)

    manifest = feed.manifest
    signature: Columns = {
        "floats": spec((len(manifest.float_columns),), tf.float32),
        "ids": spec((len(manifest.id_columns),), tf.int32),
        "label": spec((), tf.float32),
    }
    if feed.row_ids:
        signature["row_id"] = spec((), tf.int64)
    if feed.has_weight:
        signature["weight"] = spec((), tf.float32)
    for key, kind, dtype in (("arrays", "array", tf.float32), ("tokens", "tokens", tf.int32), ("images", "image", tf.string)):
        found = {column.name: spec(column.shape or (), dtype) for column in manifest.binary_columns if column.kind == kind}
        if key == "images":
            found |= {name: spec((*s.size, s.channels), tf.float32) for name, s in feed.images.items()}
        if found:
            signature[key] = found
    return tf.data.Dataset.from_generator(lambda: numpy_batches(feed, epoch, start_step), output_signature=signature)


def torch_dataset(feed: Feed, epoch: int, start_step: int = 0) -> Any:
    """A ``torch.utils.data.IterableDataset`` of tensors; images that are not decoded are lists of bytes.

    Its elements are batches: give it to a ``DataLoader`` with ``batch_size=None``. The feed reads ahead in a thread, so no
    workers are needed; with more than one of them each would hand on every row, and iterating raises SettingError. Ranks
    are the feed's: no sampler is needed. Raises LakeringError where torch is not installed."""
    try:
        from torch import from_numpy
        from torch.utils.data import IterableDataset, get_worker_info
    except ImportError as error:
        raise LakeringError(f"torch cannot be imported: {error}", next_step="pip install 'lakering[torch]'") from error

    def tensors(columns: Columns) -> Columns:
        return {name: tensors(cells) if isinstance(cells, dict) else _of(cells) for name, cells in columns.items()}

    def _of(cells: np.ndarray) -> Any:
        return cells.tolist() if cells.dtype == object else from_numpy(cells)

    class FeedDataset(IterableDataset):
        def __iter__(self) -> Generator[Columns]:
            worker = get_worker_info()
            if worker is not None and worker.num_workers > 1:
                raise SettingError(
                    f"DataLoader(num_workers={worker.num_workers}): each worker would hand on every row",
                    next_step="num_workers=0: the feed reads ahead in a thread of its own",
                )
            return self._batches()

        def _batches(self) -> Generator[Columns]:
            with closing(numpy_batches(feed, epoch, start_step)) as batches:
                for columns in batches:
                    yield tensors(columns)

    return FeedDataset()


def _columns(batch: Batch, *, row_ids: bool) -> Columns:
    columns: Columns = {"floats": batch.floats, "ids": batch.ids, "label": batch.label}
    if row_ids:
        columns["row_id"] = batch.row_id
    if batch.weight is not None:
        columns["weight"] = batch.weight
    groups = {"arrays": batch.arrays, "tokens": batch.tokens, "images": batch.images}
    return columns | {name: cells for name, cells in groups.items() if cells}
