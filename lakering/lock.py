"""One at a time, on a local file system. Object stores and HDFS put files atomically, and nothing is locked there.

The lock is the kernel's (``flock``) on a file beside what it guards: it goes with the process that held it.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lakering.errors import BusyError
from lakering.storage import Storage


@contextmanager
def storage_lock(storage: Storage, *parts: str, what: str, wait: bool = True) -> Iterator[None]:
    """Holds ``PARTS.lock``. Another holder is waited for, which is said once, or with ``wait=False`` raises BusyError."""
    if not storage.is_local:
        yield
        return
    path = storage.path(*parts) + ".lock"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise BusyError(f"another process works on {what} ({path})", next_step="wait until it ends, or end it") from None
            print(f"waiting for another process that works on {what} ({path})", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_locked(storage: Storage, *parts: str) -> bool:
    """Whether another process holds ``PARTS.lock`` at this moment. Makes no file, and is False where nothing is locked."""
    path = storage.path(*parts) + ".lock"
    if not storage.is_local or not os.path.exists(path):
        return False
    with open(path) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
