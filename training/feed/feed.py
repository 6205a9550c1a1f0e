"""Batches of a snapshot's split for one rank: threads read and pack ahead, the caller takes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import numpy as np
import pyarrow as pa

from lakering.errors import SettingError
from lakering.lake import Lake
from lakering.manifest import Manifest
from training.feed import plan
from training.feed.ahead import Fill, Loading, Piece, ReadAhead
from training.feed.arena import Arena
from training.feed.batch import Batch, batch_of
from training.feed.blocks import Part, pack, parts_of, room_for, take
from training.feed.plan import Order, Share, Window, Windows
from training.feed.reader import RowGroup, RowGroupReader

MIB = 1 << 20


@dataclass
class FeedStatistics:
    """What a feed did: rows handed out; row groups read, how many of them another rank reads too, and their bytes in the
    files; seconds that the caller waited for input and that were spent in the feed's generator altogether (from first to
    last batch, the caller's own work included)."""

    rows: int = 0
    row_groups: int = 0
    row_groups_shared: int = 0
    bytes_read: int = 0
    waited: float = 0.0
    elapsed: float = 0.0

    @property
    def waiting_share(self) -> float:
        return self.waited / self.elapsed if self.elapsed else 0.0


@dataclass(kw_only=True)
class Feed:
    """The batches of one split, for rank ``rank`` of ``ranks``.

    At most two windows / ranks, two row groups and ``read_ahead`` MiB are held. ``drop_last`` leaves out a short last
    batch. ``row_ids=False``: nobody asks for row ids, so they are not read. ``reading_threads`` beyond the first are
    started only if the read-ahead has room for their row groups; the order is the same whatever their number."""

    lake: Lake
    manifest: Manifest
    split: str
    order: Order
    rank: int = 0
    ranks: int = 1
    drop_last: bool = False
    row_ids: bool = True
    reading_threads: int = 1
    read_ahead: int = 64
    statistics: FeedStatistics = field(default_factory=FeedStatistics)

    def __post_init__(self) -> None:
        if self.ranks > self.order.lanes:
            raise SettingError(f"training.lanes is {self.order.lanes}: {self.ranks} ranks need at least as many lanes")
        groups = self.manifest.split(self.split).unify_dictionaries().combine_chunks()
        paths = groups["path"].combine_chunks() if groups.num_rows else pa.array([], pa.string()).dictionary_encode()
        self._folder = self.lake.storage.path(self.manifest.table)
        self._files, self._file_of = paths.dictionary, paths.indices.to_numpy()
        self._indices, self._counts = groups["row_group"].to_numpy(), groups["num_rows"].to_numpy()
        self._parts: tuple[Part, ...] = parts_of(self.manifest, self.row_ids)
        self._lock = Lock()

    @property
    def num_rows(self) -> int:
        return int(self._counts.sum())

    @property
    def num_steps(self) -> int:
        return plan.num_steps(self.num_rows, self.order.batch_size, self.drop_last)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        manifest = self.manifest
        extra = [manifest.label, manifest.row_id if self.row_ids else None, manifest.weight]
        features = [*manifest.float_columns, *(c.name for c in (*manifest.id_columns, *manifest.binary_columns))]
        return list(dict.fromkeys([*features, *filter(None, extra)]))

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch]:
        """This rank's part of every global batch from ``start_step`` on, the same number of them on every rank.

        Closing the iterator (``contextlib.closing``) ends and joins its threads; so do its end and its errors. An
        exception of a thread, such as IntegrityError for a file that was cut, is raised here."""
        windows = plan.cut_windows(self._counts, self.order, epoch)
        shares = self._shares(windows, epoch, start_step)
        started = time.perf_counter()
        if start_step >= self.num_steps:
            return
        arena = self._arena(windows)
        with closing(ReadAhead(shares, arena, partial(self._open_fill, arena), self._threads)) as ahead:
            try:
                yield from self._batches(ahead, arena, windows, epoch, start_step)
            finally:
                self.statistics.waited += ahead.waited
                self.statistics.elapsed += time.perf_counter() - started

    def row_group(self, number: int) -> RowGroup:
        path = f"{self._folder}/{self._files[int(self._file_of[number])].as_py()}"
        return RowGroup(path, int(self._indices[number]), int(self._counts[number]))

    def _shares(self, windows: Windows, epoch: int, start_step: int) -> Iterator[Share]:
        size = self.order.batch_size
        for window in windows.between(start_step * size, min(self.num_steps * size, self.num_rows)):
            yield self._share(window, epoch)

    def _share(self, window: Window, epoch: int) -> Share:
        return plan.share(window, self.order, epoch, self.rank, self.ranks)

    @property
    def _largest(self) -> int:
        return int(self._counts.max())

    @property
    def _row_bytes(self) -> int:
        return max(sum(part.row_bytes for part in self._parts), 1)

    @property
    def _threads(self) -> int:
        """Each further thread holds a row group, which the read-ahead must have room for."""
        return max(1, min(self.reading_threads, 1 + self.read_ahead * MIB // (self._largest * self._row_bytes)))

    def _arena(self, windows: Windows) -> Arena:
        first, last = plan.lanes_of(self.rank, self.ranks, self.order.lanes)
        two_windows = (windows.most_rows(2) // self.order.lanes + 2) * (last - first)
        beyond = self.read_ahead * MIB // self._row_bytes - (self._threads - 1) * self._largest
        # Places do not wrap round: up to a row group is lost at the ring's end.
        ring = min(two_windows + max(beyond, 0), self.num_rows) + self._largest
        return Arena(self._parts, self._counts, kept_rows=0, ring_rows=ring)

    @contextmanager
    def _open_fill(self, arena: Arena) -> Iterator[Fill]:
        """One thread's way to read."""
        with closing(RowGroupReader(self.lake.storage.filesystem, self.columns)) as reader:
            yield partial(self._fill, arena, reader)

    def _fill(self, arena: Arena, reader: RowGroupReader, piece: Piece) -> None:
        source = self.row_group(piece.row_group)
        table, size = reader.read(source)
        if not piece.place.kept:
            table = table.slice(piece.first, piece.last - piece.first)
        pack(arena.rows, piece.place.at, table, self.manifest, source)
        with self._lock:
            self.statistics.row_groups += 1
            self.statistics.row_groups_shared += piece.first > 0
            self.statistics.bytes_read += size

    def _batches(self, ahead: ReadAhead, arena: Arena, windows: Windows, epoch: int, start_step: int) -> Generator[Batch]:
        loading: Loading | None = None
        size = self.order.batch_size
        for step in range(start_step, self.num_steps):
            first, last = step * size, min((step + 1) * size, self.num_rows)
            if loading is not None and last <= loading.share.window.last_output:
                shares = [loading.share]
            else:
                shares = [self._share(window, epoch) for window in windows.between(first, last)]
            bounds = [(share.num_before(first), share.num_before(last)) for share in shares]
            rows = room_for(self._parts, sum(high - low for low, high in bounds))
            outputs, done = [], 0
            for share, (low, high) in zip(shares, bounds, strict=True):
                if loading is None or loading.share.window.index != share.window.index:
                    loading = ahead.next()
                assert loading.index is not None
                take(arena.rows, loading.index[low:high].astype(np.intp), rows, done)
                outputs.append(share.outputs(low, high))
                done += high - low
            ahead.raise_error()
            self.statistics.rows += done
            output = outputs[0] if len(outputs) == 1 else np.concatenate(outputs)
            yield batch_of(step, rows, output - first, last - first)
