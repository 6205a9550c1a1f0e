"""Rows packed one after the other, as a model takes them: a batch is one gather out of each of their parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakering.errors import IntegrityError
from lakering.manifest import Column, Manifest
from training.feed.reader import REBUILD, RowGroup

FLOATS, IDS, LABEL, WEIGHT, ROW_ID = "floats", "ids", "label", "weight", "row_id"
#: Of a packed cell: see ``lakering.manifest.Column``.
DTYPES = {"array": np.dtype("<f4"), "tokens": np.dtype("<i4"), "image": np.dtype(object)}
ALIGNMENT = 64
#: Rows that are packed at once, so that what one column writes is still in the core's cache for the next.
TILE = 16_384

#: What a column of a file may hold, by the word that an error has for it.
TYPES = {"floats": pa.types.is_floating, "integers": pa.types.is_integer, "binary": pa.types.is_binary}

#: Part by part, arrays [rows, *shape] of the same rows.
Rows = dict[str, npt.NDArray]


@dataclass(frozen=True)
class Part:
    """What rows hold under one name. Parts of binary columns are called kind/column: ``array/grid``."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def parts_of(manifest: Manifest, row_ids: bool = True) -> tuple[Part, ...]:
    """The parts of a manifest's rows: all float columns as one matrix, all ids as one, a vector for each other."""
    parts = [
        Part(FLOATS, np.dtype(np.float32), (len(manifest.float_columns),)),
        Part(IDS, np.dtype(np.int32), (len(manifest.id_columns),)),
        Part(LABEL, np.dtype(np.float32)),
    ]
    if manifest.weight:
        parts.append(Part(WEIGHT, np.dtype(np.float32)))
    if row_ids:
        parts.append(Part(ROW_ID, np.dtype(np.int64)))
    return (*parts, *(Part(part_of(c), DTYPES[c.kind], c.shape or ()) for c in manifest.binary_columns))


def part_of(column: Column) -> str:
    return f"{column.kind}/{column.name}"


def room_for(parts: tuple[Part, ...], rows: int) -> Rows:
    """Room for so many rows, in one piece of fresh memory; every part is aligned to 64 bytes, as TensorFlow needs it."""
    plain = [part for part in parts if not part.dtype.hasobject]
    sizes = [-(-rows * part.row_bytes // ALIGNMENT) * ALIGNMENT for part in plain]
    memory = np.empty(sum(sizes) + ALIGNMENT, np.uint8)
    at = -memory.__array_interface__["data"][0] % ALIGNMENT
    room = {part.name: np.empty((rows, *part.shape), part.dtype) for part in parts if part.dtype.hasobject}
    for part, size in zip(plain, sizes, strict=True):
        room[part.name] = np.ndarray((rows, *part.shape), part.dtype, memory, at)
        at += size
    return room


def take(rows: Rows, index: npt.NDArray[np.intp], out: Rows, at: int = 0) -> None:
    """Copies the rows of an index into ``out`` from row ``at`` on."""
    for name, target in out.items():
        # Any mode but "raise" writes straight into out.
        np.take(rows[name], index, axis=0, mode="clip", out=target[at : at + len(index)])


def pack(rows: Rows, at: int, table: pa.Table, manifest: Manifest, source: RowGroup) -> None:
    """Copies a table's rows to ``at`` and on. Raises IntegrityError, naming the row group, for a column of another type, a
    null, an id that the manifest does not know, or a cell of another size than it tells."""
    end = at + table.num_rows
    for column in manifest.binary_columns:
        rows[part_of(column)][at:end] = _cells(table, column, source)
    vectors = ((LABEL, manifest.label, "floats"), (WEIGHT, manifest.weight, "floats"), (ROW_ID, manifest.row_id, "integers"))
    for name, column_name, wanted in vectors:
        if name in rows and column_name:
            rows[name][at:end] = _values(table, column_name, wanted, source)
    _pack_matrix(rows[FLOATS][at:end], [_values(table, name, "floats", source) for name in manifest.float_columns])
    _pack_matrix(rows[IDS][at:end], [_ids(table, column, source) for column in manifest.id_columns])


def _pack_matrix(matrix: npt.NDArray, columns: list[npt.NDArray]) -> None:
    for start in range(0, len(matrix), TILE):
        tile = matrix[start : start + TILE]
        for j, values in enumerate(columns):
            tile[:, j] = values[start : start + TILE]


def _ids(table: pa.Table, column: Column, source: RowGroup) -> npt.NDArray:
    return _known(_values(table, column.name, "integers", source), column, source)


def _known(values: npt.NDArray, column: Column, source: RowGroup) -> npt.NDArray:
    limit = column.num_ids or np.iinfo(np.int32).max
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < limit:
        raise IntegrityError(
            f"{source}: {column.name} holds ids from {values.min()} to {values.max()}, the manifest says [0, {limit})",
            next_step=REBUILD,
        )
    return values


def _values(table: pa.Table, name: str, wanted: str, source: RowGroup) -> npt.NDArray:
    column = _validated(table, name, wanted, source)
    return column.chunk(0).to_numpy(zero_copy_only=False) if column.num_chunks == 1 else column.to_numpy()


def _validated(table: pa.Table, name: str, wanted: str, source: RowGroup) -> pa.ChunkedArray:
    column = table.column(name)
    if not TYPES[wanted](column.type):
        # numpy would read numbers out of texts, and take a time for one.
        raise IntegrityError(f"{source}: {name} is of type {column.type}, an example table has {wanted} there", next_step=REBUILD)
    if column.null_count:
        # Read on, a null int64 would silently become a number.
        raise IntegrityError(f"{source}: {name} holds {column.null_count:,} nulls, an example table has none", next_step=REBUILD)
    return column


def _cells(table: pa.Table, column: Column, source: RowGroup) -> npt.NDArray:
    """Arrays and tokens are views of the file's bytes; images are copied."""
    if column.kind == "image":
        return _values(table, column.name, "binary", source)
    packed = _validated(table, column.name, "binary", source)
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
