"""One writer at a time on a local file system, where two processes would overwrite each other's Delta commits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.sql import SparkSession

from lakering.lake import Lake
from lakering.lock import storage_lock


@contextmanager
def table_lock(spark: SparkSession, lake: Lake, table: str) -> Iterator[None]:
    """Held round a whole operation: from the reading of the table's snapshot to its last commit.

    The JVM holds a lock of its own too. Where Python alone is killed its lock goes with it, but the JVM may finish the commit
    that it is at."""
    what = f"table '{table}'"
    with storage_lock(lake.storage, *lake.table(table), what=what):
        if not lake.storage.is_local:
            yield
            return
        jvm: Any = spark.sparkContext._jvm
        # A file of its own: on NFS the kernel takes Python's kind of lock and the JVM's for the same.
        path = lake.storage.path(*lake.table(table)) + ".jvm.lock"
        channel = jvm.java.io.RandomAccessFile(path, "rw").getChannel()
        try:
            if channel.tryLock() is None:
                print(f"waiting for what a killed job left running on {what} ({path})", file=sys.stderr, flush=True)
                channel.lock()
            yield
        finally:
            _close(channel)


def _close(channel: Any) -> None:
    try:
        channel.close()
    except Py4JJavaError:
        raise
    except (Py4JError, ConnectionError):
        pass  # the JVM is gone, and with it its lock
