"""Rows of a window, packed row by row: a batch is then one gather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakering.errors import IntegrityError
from lakering.manifest import Column, Manifest
from training.feed.plan import Share
from training.feed.reader import REBUILD, RowGroup


@dataclass
class Block:
    """A rank's share of a window, packed row by row (a batch is then one gather), and its order."""

    share: Share
    floats: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    label: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32] | None
    row_id: npt.NDArray[np.int64]


def empty_block(share: Share, manifest: Manifest) -> Block:
    """Room for a share's rows."""
    rows = share.last - share.first
    return Block(
        share,
        np.empty((rows, len(manifest.float_columns)), np.float32),
        np.empty((rows, len(manifest.id_columns)), np.int32),
        np.empty(rows, np.float32),
        np.empty(rows, np.float32) if manifest.weight else None,
        np.empty(rows, np.int64),
    )


def pack(block: Block, at: int, table: pa.Table, manifest: Manifest, source: RowGroup) -> None:
    """Copies a table's rows into the block from row ``at`` on. Raises IntegrityError, naming the row group, for a null
    or an id that the manifest does not know."""
    rows = slice(at, at + table.num_rows)
    for j, name in enumerate(manifest.float_columns):
        block.floats[rows, j] = _values(table, name, source)
    for j, column in enumerate(manifest.id_columns):
        block.ids[rows, j] = _ids(table, column, source)
    block.label[rows] = _values(table, manifest.label, source)
    block.row_id[rows] = _values(table, manifest.row_id, source)
    if block.weight is not None and manifest.weight:
        block.weight[rows] = _values(table, manifest.weight, source)


def _ids(table: pa.Table, column: Column, source: RowGroup) -> npt.NDArray:
    values = _values(table, column.name, source)
    limit = column.num_ids or np.iinfo(np.int32).max
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < limit:
        raise IntegrityError(
            f"{source}: {column.name} holds ids from {values.min()} to {values.max()}, the manifest says [0, {limit})",
            next_step=REBUILD,
        )
    return values


def _values(table: pa.Table, name: str, source: RowGroup) -> npt.NDArray:
    column = table.column(name)
    if column.null_count:
        # Read on, a null int64 would silently become a number.
        raise IntegrityError(f"{source}: {name} holds {column.null_count:,} nulls, an example table has none", next_step=REBUILD)
    return column.to_numpy()


class Rows(NamedTuple):
    floats: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    label: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32] | None
    row_id: npt.NDArray[np.int64]
    output: npt.NDArray[np.int64]


def take(block: Block, first: int, last: int) -> Rows:
    """The block's rows with outputs [first, last)."""
    low, high = np.searchsorted(block.share.outputs, (first, last))
    rows = block.share.rows[low:high]
    return Rows(
        np.take(block.floats, rows, axis=0),
        np.take(block.ids, rows, axis=0),
        np.take(block.label, rows),
        None if block.weight is None else np.take(block.weight, rows),
        np.take(block.row_id, rows),
        block.share.outputs[low:high],
    )


def joined(parts: list[Rows]) -> Rows:
    """A batch may straddle windows, so it may come from several blocks."""
    if len(parts) == 1:
        return parts[0]
    weights = [part.weight for part in parts if part.weight is not None]
    return Rows(
        np.concatenate([part.floats for part in parts]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.label for part in parts]),
        np.concatenate(weights) if weights else None,
        np.concatenate([part.row_id for part in parts]),
        np.concatenate([part.output for part in parts]),
    )
