"""What a stream did, batch by batch: a small Delta table for people to query. It has one writer, and is written without a JVM,
in milliseconds."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from etl.tables.delta import has_log, open_log
from lakering.errors import IntegrityError
from lakering.lake import Lake

#: ``offsets`` are of each partition the first one and the one behind the last. A row with a ``gap`` tells of messages that were
#: passed over and not of a batch; its numbers of rows are null.
SCHEMA = pa.schema({
    "topic": pa.string(), "topic_id": pa.string(), "checkpoint_id": pa.string(), "batch": pa.int64(),
    "offsets": pa.list_(pa.struct({"partition": pa.int32(), "first": pa.int64(), "end": pa.int64()})),
    "rows_read": pa.int64(), "rows_written": pa.int64(), "rows_already_present": pa.int64(), "rows_superseded": pa.int64(),
    "rows_refused": pa.int64(), "watermark": pa.timestamp("us", "UTC"), "table_version": pa.int64(), "gap": pa.string(),
    "at": pa.timestamp("us", "UTC"), "table_id": pa.string(),
})  # fmt: skip
PROPERTIES = {"delta.checkpointInterval": "10", "delta.logRetentionDuration": "interval 1 day"}
#: After so many rows their files are made one.
ROWS_PER_FILE = 100


def append_progress(lake: Lake, folder: tuple[str, ...], row: Mapping[str, Any], writer: str, number: int) -> None:
    """Adds a row, unless ``writer`` has added its ``number`` or a later one before: what is told again is there once.

    Raises IntegrityError for a table that cannot be read."""
    from deltalake import CommitProperties, Transaction, write_deltalake

    storage, made = lake.storage, has_log(lake, folder)
    with _reading(lake, folder):
        last = open_log(lake, folder).transaction_version(writer) if made else None
    if last is not None and last >= number:
        return
    told = {name: row.get(name) for name in SCHEMA.names} | {"at": datetime.datetime.now(datetime.UTC)}
    options = None if storage.is_local else storage.settings.for_delta()
    once = CommitProperties(app_transactions=[Transaction(writer, number)])
    uri = storage.path(*folder) if storage.is_local else storage.uri(*folder)
    write_deltalake(uri, pa.Table.from_pylist([told], schema=SCHEMA), mode="append", schema_mode="merge", storage_options=options,
                    configuration=None if made else PROPERTIES, commit_properties=once)  # fmt: skip
    if number % ROWS_PER_FILE == ROWS_PER_FILE - 1:
        log = open_log(lake, folder)
        log.optimize.compact()
        log.vacuum(dry_run=False)


def read_progress(lake: Lake, folder: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows in the order in which they were added; none without a table. Raises IntegrityError for one that cannot be read."""
    if not has_log(lake, folder):
        return []
    with _reading(lake, folder):
        rows: list[dict[str, Any]] = open_log(lake, folder).to_pyarrow_table().to_pylist()
    return sorted(rows, key=lambda row: row["at"])


@contextmanager
def _reading(lake: Lake, folder: tuple[str, ...]) -> Iterator[None]:
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, pa.ArrowException, OSError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise IntegrityError(
            f"the table of batches {lake.storage.path(*folder)} cannot be read: {why}",
            next_step="if it is broken, move it away: a stream goes on by its record and its table's commits, and makes another",
        ) from error
