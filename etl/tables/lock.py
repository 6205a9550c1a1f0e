"""One writer at a time on a local file system, where two processes would overwrite each other's Delta commits."""

from __future__ import annotations

from contextlib import AbstractContextManager

from lakering.lake import Lake
from lakering.lock import storage_lock


def table_lock(lake: Lake, table: str) -> AbstractContextManager[None]:
    """Held round a whole operation: from the reading of the table's snapshot to its last commit."""
    return storage_lock(lake.storage, *lake.table(table), what=f"table '{table}'")
