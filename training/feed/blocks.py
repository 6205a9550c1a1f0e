"""Rows of a window, packed row by row: a batch is then one gather for each part of it."""

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

#: Of a packed cell: see ``lakering.manifest.Column``.
DTYPES = {"array": np.dtype("<f4"), "tokens": np.dtype("<i4")}


@dataclass
class Block:
    """A rank's share of a window, packed row by row, and its order. ``binary`` holds arrays and tokens in their shape, and
    images as objects of bytes, each by its column."""

    share: Share
    floats: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    label: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32] | None
    row_id: npt.NDArray[np.int64]
    binary: dict[str, npt.NDArray]


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
        {c.name: np.empty((rows, *(c.shape or ())), DTYPES.get(c.kind, object)) for c in manifest.binary_columns},
    )


def pack(block: Block, at: int, table: pa.Table, manifest: Manifest, source: RowGroup) -> None:
    """Copies a table's rows into the block from row ``at`` on. Raises IntegrityError, naming the row group, for a null
    an id that the manifest does not know, or a cell of another size than it tells."""
    rows = slice(at, at + table.num_rows)
    for j, name in enumerate(manifest.float_columns):
        block.floats[rows, j] = _values(table, name, source)
    for j, column in enumerate(manifest.id_columns):
        block.ids[rows, j] = _ids(table, column, source)
    block.label[rows] = _values(table, manifest.label, source)
    block.row_id[rows] = _values(table, manifest.row_id, source)
    if block.weight is not None and manifest.weight:
        block.weight[rows] = _values(table, manifest.weight, source)
    for column in manifest.binary_columns:
        block.binary[column.name][rows] = _cells(table, column, source)


def _ids(table: pa.Table, column: Column, source: RowGroup) -> npt.NDArray:
    return _known(_values(table, column.name, source), column, source)


def _known(values: npt.NDArray, column: Column, source: RowGroup) -> npt.NDArray:
    limit = column.num_ids or np.iinfo(np.int32).max
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < limit:
        raise IntegrityError(
            f"{source}: {column.name} holds ids from {values.min()} to {values.max()}, the manifest says [0, {limit})",
            next_step=REBUILD,
        )
    return values


def _values(table: pa.Table, name: str, source: RowGroup) -> npt.NDArray:
    column = table.column(name)
    _validate_whole(column, name, source)
    return column.to_numpy()


def _validate_whole(column: pa.ChunkedArray, name: str, source: RowGroup) -> None:
    if column.null_count:
        # Read on, a null int64 would silently become a number.
        raise IntegrityError(f"{source}: {name} holds {column.null_count:,} nulls, an example table has none", next_step=REBUILD)


def _cells(table: pa.Table, column: Column, source: RowGroup) -> npt.NDArray:
    """Arrays and tokens are views of the file's bytes; images are copied."""
    if column.kind == "image":
        return _values(table, column.name, source)
    packed = table.column(column.name)
    _validate_whole(packed, column.name, source)
    if not pa.types.is_binary(packed.type):
        raise IntegrityError(f"{source}: {column.name} is {packed.type}, not binary", next_step=REBUILD)
    parts = [_unpacked(chunk, column, source) for chunk in packed.chunks if len(chunk)]
    cells = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return _known(cells, column, source) if column.kind == "tokens" else cells


def _unpacked(cells: pa.Array, column: Column, source: RowGroup) -> npt.NDArray:
    _, ends, data = cells.buffers()
    bounds = np.frombuffer(ends, np.int32)[cells.offset : cells.offset + len(cells) + 1]
    sizes = np.diff(bounds)
    if (sizes != column.cell_bytes).any():
        raise IntegrityError(
            f"{source}: {column.name} holds cells of {sizes.min():,} to {sizes.max():,} bytes, the manifest's shape "
            f"{list(column.shape or ())} takes {column.cell_bytes:,}",
            next_step=REBUILD,
        )
    packed = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
    return packed.view(DTYPES[column.kind]).reshape(len(cells), *(column.shape or ()))


class Rows(NamedTuple):
    floats: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    label: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32] | None
    row_id: npt.NDArray[np.int64]
    binary: dict[str, npt.NDArray]
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
        {name: np.take(cells, rows, axis=0) for name, cells in block.binary.items()},
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
        {name: np.concatenate([part.binary[name] for part in parts]) for name in parts[0].binary},
        np.concatenate([part.output for part in parts]),
    )
