"""What the feed is measured against: pyarrow's reader, Petastorm's own way to TensorFlow, and tf.data's cache."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Generator, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from benchmarks.feed_table import Table, Tally


def scan(table: Table, columns: list[str], tally: Tally) -> None:
    """One thread of pyarrow, row group by row group."""
    for found in _row_groups(table, columns):
        cells = (found.column(name).to_numpy() for name in table.features)
        tally.add(cells, found.column(table.manifest.label).to_numpy())


def read_stock(table: Table, batch_size: int, tally: Tally) -> None:
    """Petastorm's batch reader, unbatched. Its thread pool may lose rows, so it reads without one."""
    from petastorm import make_batch_reader
    from petastorm.tf_utils import make_petastorm_dataset

    urls = [f"file://{path}" for path in table.files]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with make_batch_reader(urls, reader_pool_type="dummy") as reader:
            for row in make_petastorm_dataset(reader).unbatch().shuffle(10_000).batch(batch_size):
                batch = row._asdict()
                tally.add((batch[name].numpy() for name in table.features), batch[table.manifest.label].numpy())


def cached_row_groups(table: Table) -> tf.data.Dataset:
    """Row groups in tf.data's memory cache, packed into matrices: the fewer tensors a row has, the faster is unbatch."""
    floats, ids = list(table.manifest.float_columns), [column.name for column in table.manifest.id_columns]

    def packed() -> Generator[tuple[npt.NDArray, ...]]:
        for found in _row_groups(table, [*floats, *ids, table.manifest.label]):
            matrices = (np.stack([found[name].to_numpy() for name in names], 1) for names in (floats, ids))
            yield *matrices, found[table.manifest.label].to_numpy()

    signature = (
        tf.TensorSpec([None, len(floats)], tf.float32),
        tf.TensorSpec([None, len(ids)], tf.int32),
        tf.TensorSpec([None], tf.float32),
    )
    return tf.data.Dataset.from_generator(packed, output_signature=signature).cache()


def read_cached(row_groups: tf.data.Dataset, batch_size: int, tally: Tally) -> None:
    for floats, ids, label in row_groups.unbatch().shuffle(100_000).batch(batch_size):
        tally.add((cells.numpy() for cells in (floats, ids)), label.numpy())


def _row_groups(table: Table, columns: list[str]) -> Iterator[pa.Table]:
    for path in table.files:
        file = pq.ParquetFile(path)
        for index in range(file.num_row_groups):
            yield file.read_row_group(index, columns=columns, use_threads=False)
