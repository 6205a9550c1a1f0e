"""One writer at a time on a local file system, where two processes would overwrite each other's Delta commits."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lakering.lake import Lake


@contextmanager
def table_lock(lake: Lake, table: str) -> Iterator[None]:
    """Held round a whole operation: from the reading of the table's snapshot to its last commit.

    Object stores and HDFS commit with an atomic put, so nothing is locked there. The lock is the kernel's (``flock``): it
    goes with the process that held it."""
    if not lake.storage.is_local:
        yield
        return
    path = lake.storage.path(*lake.table(table)) + ".lock"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another writer of table '{table}' ({path})", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
