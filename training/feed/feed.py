"""Batches of a snapshot's split for one rank: one thread reads and packs ahead, the caller takes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakering.errors import IntegrityError, SettingError
from lakering.lake import Lake
from lakering.manifest import Manifest
from training.feed import plan
from training.feed.blocks import Block, Rows, empty_block, joined, pack, take
from training.feed.plan import Order, Window
from training.feed.reader import RowGroup, read_row_groups


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one global batch (possibly none), in output order. ``output`` is a row's index in the
    global batch, ``global_rows`` the number of rows that all ranks have together. By column, ``arrays`` are float32 of
    [rows, *shape], ``tokens`` int32 ids of [rows, length], ``images`` objects: each the bytes of a file, not decoded."""

    step: int
    floats: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    label: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32] | None
    row_id: npt.NDArray[np.int64]
    output: npt.NDArray[np.int64]
    global_rows: int
    arrays: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    tokens: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)
    images: dict[str, npt.NDArray[np.object_]] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return len(self.label)


@dataclass
class FeedStatistics:
    """What a feed did: rows handed out, row groups read, seconds that the caller waited for input and that were spent
    in the feed's generator altogether (from first to last batch, the caller's own work included)."""

    rows: int = 0
    row_groups: int = 0
    waited: float = 0.0
    elapsed: float = 0.0

    @property
    def waiting_share(self) -> float:
        return self.waited / self.elapsed if self.elapsed else 0.0


@dataclass(kw_only=True)
class Feed:
    """The batches of one split, for rank ``rank`` of ``ranks``. At most two blocks (a window / ranks each) are held."""

    lake: Lake
    manifest: Manifest
    split: str
    order: Order
    rank: int = 0
    ranks: int = 1
    statistics: FeedStatistics = field(default_factory=FeedStatistics)

    def __post_init__(self) -> None:
        if self.ranks > self.order.lanes:
            raise SettingError(f"training.lanes is {self.order.lanes}: {self.ranks} ranks need at least as many lanes")
        groups = self.manifest.split(self.split)
        folder = self.lake.storage.path(self.manifest.table)
        self._paths = groups["path"].cast(pa.string()).to_pylist()
        self._folder = folder
        self._indices = groups["row_group"].to_pylist()
        self._counts = groups["num_rows"].to_numpy()

    @property
    def num_rows(self) -> int:
        return int(self._counts.sum())

    @property
    def num_steps(self) -> int:
        return plan.num_steps(self.num_rows, self.order.batch_size)

    @property
    def columns(self) -> list[str]:
        manifest = self.manifest
        extra = [manifest.label, manifest.row_id] + ([manifest.weight] if manifest.weight else [])
        rest = [c.name for c in (*manifest.id_columns, *manifest.binary_columns)]
        return list(dict.fromkeys([*manifest.float_columns, *rest, *extra]))

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch]:
        """This rank's part of every global batch from ``start_step`` on, the same number of them on every rank.

        Closing the iterator (``contextlib.closing``) ends and joins its thread; so do its end and its errors. An
        exception of the thread, such as IntegrityError for a file that was cut, is raised here."""
        windows = plan.cut_windows(self._counts, self.order, epoch)
        first_output = start_step * self.order.batch_size
        wanted = [w for w in windows if w.first_output + w.num_rows > first_output]
        started = time.perf_counter()
        with closing(_ReadAhead(self, wanted, epoch)) as blocks:
            try:
                yield from self._batches(blocks, start_step)
            finally:
                self.statistics.elapsed += time.perf_counter() - started

    def _batches(self, blocks: _ReadAhead, start_step: int) -> Generator[Batch]:
        block: Block | None = None
        size = self.order.batch_size
        for step in range(start_step, self.num_steps):
            first, last = step * size, min((step + 1) * size, self.num_rows)
            parts, output = [], first
            while output < last:
                if block is None or output >= blocks.served_to:
                    block = None  # dropped before the next is asked for: two are held at most
                    block = blocks.next()
                    continue
                parts.append(take(block, output, last))
                output = min(last, blocks.served_to)
            batch = self._batch(step, joined(parts), first, last)
            self.statistics.rows += batch.num_rows
            yield batch

    def _batch(self, step: int, rows: Rows, first: int, last: int) -> Batch:
        kinds = {c.name: c.kind for c in self.manifest.binary_columns}
        arrays, tokens, images = (
            {name: cells for name, cells in rows.binary.items() if kinds[name] == kind} for kind in ("array", "tokens", "image")
        )
        return Batch(step, rows.floats, rows.ids, rows.label, rows.weight, rows.row_id, rows.output - first, last - first,
                     arrays, tokens, images)  # fmt: skip

    def read_block(self, window: Window, epoch: int) -> Block:
        """Reads and packs this rank's share of a window."""
        share = plan.share(window, self.order, epoch, self.rank, self.ranks)
        wanted = list(plan.reads(window, share.first, share.last))
        asked = [RowGroup(f"{self._folder}/{self._paths[g]}", self._indices[g], int(self._counts[g])) for g, _, _ in wanted]
        block = empty_block(share, self.manifest)
        done = 0
        with closing(read_row_groups(self.lake.storage.filesystem, asked, self.columns)) as tables:
            for (_, first, last), row_group, table in zip(wanted, asked, tables, strict=True):
                pack(block, done, table.slice(first, last - first), self.manifest, row_group)
                done += last - first
                self.statistics.row_groups += 1
        if done != share.last - share.first:
            raise IntegrityError(f"window {window.index} of epoch {epoch}: {done:,} of {share.last - share.first:,} rows")
        return block


class _ReadAhead:
    """Blocks of the given windows, in order, read by a thread that is one block ahead of its consumer."""

    def __init__(self, feed: Feed, windows: list[Window], epoch: int) -> None:
        self._feed, self._windows, self._epoch = feed, windows, epoch
        self._ready: queue.Queue[tuple[Block, int] | BaseException] = queue.Queue()
        self._room = threading.Semaphore(2)
        self._stopped = threading.Event()
        self._given = 0
        self.served_to = 0
        self._thread = threading.Thread(target=self._read, name="lakering-feed", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for window in self._windows:
                self._room.acquire()
                if self._stopped.is_set():
                    return
                block = self._feed.read_block(window, self._epoch)
                self._ready.put((block, window.first_output + window.num_rows))
                del block
        except BaseException as error:
            self._ready.put(error)

    def next(self) -> Block:
        """The next window's block. The one before must have been dropped. ``served_to`` tells where its outputs end."""
        if self._given:
            self._room.release()
        self._given += 1
        started = time.perf_counter()
        found = self._ready.get()
        self._feed.statistics.waited += time.perf_counter() - started
        if isinstance(found, BaseException):
            raise found
        block, self.served_to = found
        return block

    def close(self) -> None:
        self._stopped.set()
        self._room.release()
        self._thread.join()
