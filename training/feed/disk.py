"""Packed row groups in files of a folder, which several trainings may share.

A file is called by a hash of all that made it, and holds the parts one after the other behind a header with their
checksum. It is written under another name and then renamed; one that is broken is read anew from the table. The files
together never take more than the limit: room is taken, under a lock on the folder, before a file is written. To make room
what was not used since this cache was opened is removed, oldest first; the rest stays, so that of a table larger than the
limit the same part is found in every epoch.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from training.feed.blocks import Part, Rows, room_for

log = logging.getLogger("training.feed")
MAGIC, HEADER = b"lkrows01", struct.Struct("<8sQQ")  # then rows and checksum
ENTRY, UNDONE, LOCK = ".rows", ".tmp", "lock"
#: Seconds after which a file that nobody completed is taken for a dead training's.
ABANDONED = 3600


class DiskCache:
    """Row groups by their key. What fails for lack of room or of a right is told once, and then done without."""

    def __init__(self, folder: str, limit: int, parts: tuple[Part, ...]) -> None:
        self._folder, self._limit, self._parts = Path(folder), limit, parts
        self._verified: set[str] = set()
        self._broken: set[str] = set()
        self._usable = True
        self._guard = threading.Lock()
        self._opened = time.time()
        with self._or_without():
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock() as lock:
                self._set_total(lock, self._measured())

    def read(self, key: str, num_rows: int, first: int, last: int, rows: Rows, at: int) -> bool:
        """Copies the rows [first, last) of a row group of ``num_rows`` to ``at`` and on. False: they are not there."""
        path = self._path(key)
        try:
            with path.open("rb", buffering=0) as file:
                found = self._read_verified(file.fileno(), key, num_rows, first, last, rows, at)
        except FileNotFoundError:
            return False
        except OSError:
            found = False
        if not found:
            self._verified.discard(key)
            self._broken.add(key)
            log.warning("%s is broken: its row group is read from the table", path)
            return False
        with suppress(OSError):
            os.utime(path)  # used: see ``_make_room``
        return True

    def write(self, key: str, num_rows: int, rows: Rows, at: int) -> None:
        """Keeps the ``num_rows`` rows from ``at`` on, if there is room."""
        if not self._usable:
            return
        size = self._size(num_rows)
        with self._or_without():
            undone = self._take_room(key, size)
            if undone is None:
                return
            try:
                with undone.open("r+b", buffering=0) as file:
                    _write(file.fileno(), HEADER.pack(MAGIC, num_rows, _checksum(self._parts, rows, at, num_rows)), 0)
                    offset = HEADER.size
                    for part in self._parts:
                        offset += _write(file.fileno(), _bytes(rows[part.name][at : at + num_rows]), offset)
                os.replace(undone, self._path(key))
                self._broken.discard(key)
                self._verified.add(key)
            except BaseException:
                self._give_back(undone)
                raise

    def _read_verified(self, file: int, key: str, num_rows: int, first: int, last: int, rows: Rows, at: int) -> bool:
        """The checksum is looked at once, before the first use."""
        if key in self._verified:
            return self._read(file, num_rows, first, last, rows, at)
        header = os.pread(file, HEADER.size, 0)
        whole = room_for(self._parts, num_rows)
        if header[:8] != MAGIC or not self._read(file, num_rows, 0, num_rows, whole, 0):
            return False
        if HEADER.unpack(header)[1:] != (num_rows, _checksum(self._parts, whole, 0, num_rows)):
            return False
        for part in self._parts:
            rows[part.name][at : at + last - first] = whole[part.name][first:last]
        self._verified.add(key)
        return True

    def _read(self, file: int, num_rows: int, first: int, last: int, rows: Rows, at: int) -> bool:
        if os.fstat(file).st_size != self._size(num_rows):
            return False
        start = HEADER.size
        for part in self._parts:
            target = _bytes(rows[part.name][at : at + last - first])
            if not _read_whole(file, target, start + first * part.row_bytes):
                return False
            start += num_rows * part.row_bytes
        return True

    def _take_room(self, key: str, size: int) -> Path | None:
        """An empty file of the full size, which counts from now on; None: there is no room, or the row group is there."""
        with self._lock() as lock:
            if key in self._broken:
                self._path(key).unlink(missing_ok=True)
                self._set_total(lock, self._measured())
            elif self._path(key).exists():
                return None
            total = self._total(lock)
            if total + size > self._limit:
                total = self._make_room(size)
            if total + size > self._limit:
                return None
            undone = self._folder / f"{key}-{os.getpid()}-{threading.get_ident()}{UNDONE}"
            try:
                with undone.open("wb") as file:
                    file.truncate(size)
            except OSError:
                undone.unlink(missing_ok=True)
                raise
            self._set_total(lock, total + size)
            return undone

    def _give_back(self, undone: Path) -> None:
        with suppress(OSError), self._lock() as lock:
            undone.unlink(missing_ok=True)
            self._set_total(lock, self._measured())

    def _make_room(self, size: int) -> int:
        """Removes files that were last used before this cache was opened, until there is room. Returns what is left."""
        total = self._measured()
        for entry in sorted(self._entries(), key=lambda entry: entry.stat().st_mtime):
            if total + size <= self._limit or entry.stat().st_mtime >= self._opened:
                break
            os.unlink(entry)
            total -= entry.stat().st_size
        return total

    def _measured(self) -> int:
        """Bytes of all files; those that nobody goes on writing are removed."""
        total = 0
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):
                if entry.name.endswith(UNDONE) and time.time() - entry.stat().st_mtime > ABANDONED:
                    os.unlink(entry)
                elif entry.name.endswith((ENTRY, UNDONE)):
                    total += entry.stat().st_size
        return total

    def _entries(self) -> list[os.DirEntry[str]]:
        return [entry for entry in os.scandir(self._folder) if entry.name.endswith(ENTRY)]

    @contextmanager
    def _lock(self) -> Iterator[int]:
        """The folder, for this thread alone. What all files take together stands in the lock's own file."""
        with self._guard:
            file = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
            finally:
                os.close(file)

    def _total(self, lock: int) -> int:
        text = os.pread(lock, 32, 0)
        return int(text) if text.strip().isdigit() else self._measured()

    def _set_total(self, lock: int, total: int) -> None:
        os.pwrite(lock, f"{total:<31}\n".encode(), 0)

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        """A cache that cannot be written is no reason to stop."""
        try:
            yield
        except OSError as error:
            if self._usable:
                log.warning("the feed's cache in %s can no longer be written (%s): going on without it", self._folder, error)
            self._usable = False

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{ENTRY}"

    def _size(self, num_rows: int) -> int:
        return HEADER.size + num_rows * sum(part.row_bytes for part in self._parts)


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _checksum(parts: tuple[Part, ...], rows: Rows, at: int, num_rows: int) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(_bytes(rows[part.name][at : at + num_rows]), checksum)
    return checksum


def _read_whole(file: int, target: memoryview, offset: int) -> bool:
    """Fills ``target``, though the system may hand out less at a time. False: the file ends before."""
    done = 0
    while done < len(target):
        got = os.preadv(file, [target[done:]], offset + done)
        if not got:
            return False
        done += got
    return True


def _write(file: int, content: bytes | memoryview, offset: int) -> int:
    """Writes all of it at an offset, and returns how much that is."""
    left = memoryview(content)
    while len(left):
        left = left[os.pwrite(file, left, offset + len(content) - len(left)) :]
    return len(content)
