"""The files of an example table, as they stand: exact paths, row groups and row counts, in table order."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable as DeltaLog
from tqdm import tqdm

from etl.tables.delta import open_log
from etl.tables.example_layout import RETENTION, RETENTION_PROPERTIES
from lakering.errors import IntegrityError
from lakering.lake import Lake
from lakering.manifest import ROW_GROUP_SCHEMA, SPLITS

THREADS = 16
REBUILD = "build the examples again: etl/jobs/build_examples.py --recipe FILE --new"


def read_row_groups(lake: Lake, table: tuple[str, ...], format: str) -> tuple[int | None, pa.Table]:
    """The table's version (None for Parquet) and its row groups (``ROW_GROUP_SCHEMA``) by split, file, row group."""
    version, files = _delta_files(lake, table) if format == "delta" else (None, _parquet_files(lake, table))
    files = sorted(files, key=_table_order)
    with ThreadPoolExecutor(THREADS) as pool:
        footers = pool.map(lambda path: _read_footer(lake, table, path), files)
        shown = tqdm(footers, total=len(files), desc="footers", unit="file", disable=not sys.stderr.isatty(), leave=False)
        rows = [row for found in shown for row in found]
    return version, _as_table(rows)


def validate_counts(row_groups: pa.Table, expected: Mapping[str, int], what: str) -> None:
    """Raises IntegrityError when the files of a split hold another number of rows than was counted."""
    found: dict[str, int] = dict.fromkeys(expected, 0)
    for split, rows in zip(row_groups["split"].to_pylist(), row_groups["num_rows"].to_pylist(), strict=True):
        found[split] = found.get(split, 0) + rows
    if found != dict(expected):
        raise IntegrityError(f"{what}: its files hold {found} rows, {dict(expected)} were written", next_step=REBUILD)


def lowered_retention(lake: Lake, table: tuple[str, ...]) -> dict[str, str]:
    """The properties of a Delta table's retention that are not as they were written, each with what it should be."""
    configuration = _open(lake, table).metadata().configuration
    return {name: RETENTION for name in RETENTION_PROPERTIES if configuration.get(name) != RETENTION}


def set_retention(lake: Lake, table: tuple[str, ...], properties: Mapping[str, str]) -> None:
    _open(lake, table).alter.set_table_properties(dict(properties))


def _open(lake: Lake, table: tuple[str, ...]) -> DeltaLog:
    if not lake.storage.exists(*table, "_delta_log"):  # asked of the storage, which says so when it is out of reach
        raise IntegrityError(f"the log of {lake.storage.path(*table)} is gone", next_step=REBUILD)
    try:
        return open_log(lake, table)
    except Exception as error:
        raise IntegrityError(f"the log of {lake.storage.path(*table)} cannot be read: {error}", next_step=REBUILD) from None


def _delta_files(lake: Lake, table: tuple[str, ...]) -> tuple[int, list[str]]:
    log = _open(lake, table)
    configuration = log.metadata().configuration
    if configuration.get("delta.columnMapping.mode", "none") != "none":
        raise IntegrityError(
            f"{lake.storage.path(*table)} has column mapping: its files' columns have other names", next_step=REBUILD
        )
    if configuration.get("delta.enableDeletionVectors", "false") == "true" or "deletionVectors" in (
        log.protocol().reader_features or []
    ):
        raise IntegrityError(
            f"{lake.storage.path(*table)} has deletion vectors: its files hold rows that were deleted", next_step=REBUILD
        )
    return log.version(), pa.table(log.get_add_actions())["path"].to_pylist()


def _parquet_files(lake: Lake, table: tuple[str, ...]) -> list[str]:
    root = lake.storage.path(*table) + "/"
    found = [info.path for info in lake.storage.walk(*table) if info.path.endswith(".parquet")]
    return [path[path.index(root) + len(root) :] for path in found]


def _table_order(path: str) -> tuple[int, int, str]:
    """Split, then the number of the part: the name's other half is random."""
    split, part = _split_of(path), re.search(r"/part-(\d+)-", path)
    if split not in SPLITS or part is None:
        raise IntegrityError(f"{path!r} is no file that build_examples wrote", next_step=REBUILD)
    return SPLITS.index(split), int(part[1]), path


def _split_of(path: str) -> str:
    return path.partition("/")[0].removeprefix("split=")


def _read_footer(lake: Lake, table: tuple[str, ...], path: str) -> list[dict[str, Any]]:
    full = lake.storage.path(*table, path)
    try:
        with lake.storage.filesystem.open_input_file(full) as file:
            size, footer = file.size(), pq.read_metadata(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise IntegrityError(f"{full} cannot be read: {error}", next_step=REBUILD) from None
    return [{"split": _split_of(path), "path": path, "file_bytes": size, "row_group": i, "num_rows": footer.row_group(i).num_rows}
            for i in range(footer.num_row_groups)]  # fmt: skip


def _as_table(rows: list[dict[str, Any]]) -> pa.Table:
    columns = []
    for field in ROW_GROUP_SCHEMA:
        values: list[Any] = [row[field.name] for row in rows]
        if pa.types.is_dictionary(field.type):
            # pyarrow 14 casts no strings to a dictionary.
            known = list(dict.fromkeys(values))
            places = {value: place for place, value in enumerate(known)}
            indices = pa.array([places[value] for value in values], field.type.index_type)
            columns.append(pa.DictionaryArray.from_arrays(indices, pa.array(known, field.type.value_type)))
        else:
            columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=ROW_GROUP_SCHEMA)
