"""A cleaner or a snapshot that stops at a named point: the entry point of tests, in a process of its own.

python stopped_snapshots.py die|wait POINT clean|snapshot LAKE

``die`` is SIGKILL. ``wait`` prints a line, goes on when its input ends, and prints at last what came of it.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import etl.tables.snapshots
from etl.tables.cleaning import Cleaner
from etl.tables.snapshots import make_snapshot
from lakering.errors import LakeringError
from lakering.lake import Lake
from lakering.storage import Storage


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait() -> None:
    print("stopped", flush=True)
    sys.stdin.read()


def in_the_deletion_of(what: str, stop: Callable[[], None], *, after: bool = False) -> None:
    """Stops in the deletion of the first path that ends so: before it, after it, or with a folder's first file gone."""
    delete = Storage.delete

    def stopping(self: Storage, *parts: str) -> None:
        if not self.path(*parts).endswith(what):
            return delete(self, *parts)
        folder = Path(self.path(*parts))
        if after:
            delete(self, *parts)
        elif folder.is_dir():
            next(path for path in folder.rglob("*.parquet")).unlink()
        stop()
        if not after:
            delete(self, *parts)

    Storage.delete = stopping  # type: ignore[method-assign]


def before_the_pin(stop: Callable[[], None]) -> None:
    module: Any = etl.tables.snapshots
    pin = module.write_pin

    def stopping(*args: Any, **kwargs: Any) -> None:
        stop()
        pin(*args, **kwargs)

    module.write_pin = stopping


if __name__ == "__main__":
    how, point, job, root = sys.argv[1:]
    stop = {"die": die, "wait": wait}[how]
    if point == "before the pin":
        before_the_pin(stop)
    else:
        where, _, what = point.partition(" ")
        in_the_deletion_of(what, stop, after=where == "after")
    lake = Lake(Storage(root))
    try:
        if job == "clean":
            Cleaner(lake=lake, recipe="trips", now=datetime.datetime.now(datetime.UTC)).clean()
        else:
            make_snapshot(lake, "trips", by="other")
        print("done")
    except LakeringError as error:
        print(f"{type(error).__name__}: {error}")
