"""Batches of a snapshot's split for one rank: threads read and pack ahead, the caller takes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Literal

import numpy as np
import pyarrow as pa
from pyarrow import fs

from lakering.errors import SettingError, nearest
from lakering.lake import Lake
from lakering.manifest import Manifest
from lakering.names import fingerprint
from recipes.training import ImageSettings
from training.feed import plan
from training.feed.ahead import Fill, Loading, Piece, ReadAhead
from training.feed.arena import Arena
from training.feed.batch import Batch, batch_of
from training.feed.blocks import Part, pack, parts_of, room_for, take
from training.feed.decoding import ImageDecoder, find_row
from training.feed.disk import DiskCache
from training.feed.plan import Order, Share, Window, Windows
from training.feed.reader import RowGroup, RowGroupReader
from training.feed.statistics import FeedStatistics

MIB = 1 << 20
#: Of an arena: what an index of 32 bits can name.
MOST_ROWS = 2**31 - 1


@dataclass(kw_only=True)
class Feed:
    """The batches of one split, for rank ``rank`` of ``ranks``.

    At most two windows / ranks, two row groups, ``read_ahead`` MiB and the memory cache are held, and files kept open, until
    ``close``.
    ``drop_last`` leaves out a short last batch. ``row_ids=False``: nobody asks for row ids, so they are not read.
    ``reading_threads`` beyond the first are started only if the read-ahead has room for their row groups; the order is
    the same whatever their number. ``cache`` keeps row groups as batches need them, up to ``cache_mib`` MiB: in this
    rank's ``memory``, or in files of ``cache_folder`` on the ``disk``, which ranks and trainings may share. The image
    columns of ``images`` are decoded by their settings, ``augment`` at random as in training (``ImageDecoder``): by
    ``reading_threads`` threads more, two batches ahead, which are held beyond what is said above."""

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
    cache: Literal["none", "memory", "disk"] = "none"
    cache_mib: int = 4096
    cache_folder: str | None = None
    images: Mapping[str, ImageSettings] = field(default_factory=dict)
    augment: bool = False
    statistics: FeedStatistics = field(default_factory=FeedStatistics)

    def __post_init__(self) -> None:
        if self.ranks > self.order.lanes:
            lanes, divisor = self.order.lanes, f"0: the largest divisor of the batch up to {plan.MAX_DEFAULT_LANES:,}"
            raise SettingError(
                f"a global batch of {self.order.batch_size:,} is cut into {lanes} lanes, and {self.ranks} ranks need one each",
                next_step=f"set training.lanes ({divisor}) to {self.ranks} or more, or change training.global_batch_size",
            )
        self._validate_images()
        self.row_ids = self.row_ids or bool(self.images)  # what is random in an image is drawn by its row
        groups = self.manifest.split(self.split).unify_dictionaries().combine_chunks()
        paths = groups["path"].combine_chunks() if groups.num_rows else pa.array([], pa.string()).dictionary_encode()
        self._folder = self.lake.storage.path(self.manifest.table)
        self._files, self._file_of = paths.dictionary, paths.indices.to_numpy()
        self._indices, self._counts = groups["row_group"].to_numpy(), groups["num_rows"].to_numpy()
        self._parts: tuple[Part, ...] = parts_of(self.manifest, self.row_ids)
        self._row_bytes = max(sum(part.row_bytes for part in self._parts) + self._image_bytes(groups), 1)
        self._arena: Arena | None = None
        self._readers: list[RowGroupReader] = []
        self._lock = Lock()
        self._modified: dict[str, fs.FileInfo] = {}
        self._disk: DiskCache | None = None
        self._validate_cache()

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
        if self.cache == "disk" and self._disk is None:
            self._disk = DiskCache(str(self.cache_folder), self.cache_mib * MIB, self._parts)
        arena, self._arena = self._arena or self._new_arena(), None  # a second epoch at the same time has its own
        decoder = self._decoder()
        ahead = ReadAhead(shares, arena, partial(self._open_fill, arena), self._threads)
        batches = self._batches(ahead, arena, windows, epoch, start_step)
        batches = decoder.decode(batches, epoch) if decoder else batches
        try:
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                self.statistics.waited += time.perf_counter() - asked
                if batch is None:
                    return
                yield batch
        finally:
            batches.close()
            ahead.close()
            self.statistics.images_skipped += decoder.broken if decoder else 0
            self._arena = self._arena or arena
            self.statistics.elapsed += time.perf_counter() - started

    def close(self) -> None:
        """Gives back the memory and closes the files that are kept from epoch to epoch; an epoch that is under way keeps its
        own. The feed can be used again."""
        self._arena = None
        while self._readers:
            self._readers.pop().close()

    def row_group(self, number: int) -> RowGroup:
        path = f"{self._folder}/{self._files[int(self._file_of[number])].as_py()}"
        return RowGroup(path, int(self._indices[number]), int(self._counts[number]))

    @property
    def has_weight(self) -> bool:
        """Whether batches have weights: those of the table, or to leave out rows whose image is broken."""
        return bool(self.manifest.weight) or any(settings.on_error == "skip" for settings in self.images.values())

    def _validate_images(self) -> None:
        known = [column.name for column in self.manifest.binary_columns if column.kind == "image"]
        unknown = sorted(set(self.images) - set(known))
        if unknown:
            raise SettingError(f"training.images: {unknown[0]!r} is no image column of the examples{nearest(unknown[0], known)}")

    def _decoder(self) -> ImageDecoder | None:
        def where(row_id: int) -> str:
            groups = (self.row_group(number) for number in range(len(self._counts)))
            return find_row(self.lake.storage.filesystem, groups, self.manifest.row_id, row_id)

        return ImageDecoder(settings=self.images, seed=self.order.seed, augment=self.augment, where=where,
                            threads=self.reading_threads) if self.images else None  # fmt: skip

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
    def _threads(self) -> int:
        """Each further thread holds a row group, which the read-ahead must have room for."""
        return max(1, min(self.reading_threads, 1 + self.read_ahead * MIB // (self._largest * self._row_bytes)))

    def _new_arena(self) -> Arena:
        two_windows = plan.most_rows_held(self._counts, self.order, self.rank, self.ranks)
        beyond = self.read_ahead * MIB // self._row_bytes - (self._threads - 1) * self._largest
        # Places do not wrap round: up to a row group is lost at the ring's end.
        ring = min(two_windows + max(beyond, 0), self.num_rows) + self._largest
        kept = min(self.cache_mib * MIB // self._row_bytes, self.num_rows) if self.cache == "memory" else 0
        kept = max(min(kept, MOST_ROWS - ring), 0)
        return Arena(self._parts, self._counts, kept_rows=kept, ring_rows=0 if kept == self.num_rows else ring)

    def _image_bytes(self, groups: pa.Table) -> int:
        """Bytes that a row's images take, on an average: at most what its file takes."""
        if not any(part.dtype.hasobject for part in self._parts):
            return 0
        files = groups.group_by("path").aggregate([("file_bytes", "max"), ("num_rows", "sum")])
        return int(pa.compute.sum(files["file_bytes_max"]).as_py() or 0) // max(self.num_rows, 1)

    def _validate_cache(self) -> None:
        if self.cache == "disk" and self.cache_folder is None:
            raise SettingError("the feed's disk cache needs a folder")
        if self.cache == "disk" and any(part.dtype.hasobject for part in self._parts):
            images = ", ".join(c.name for c in self.manifest.binary_columns if c.kind == "image")
            raise SettingError(f"the feed's disk cache holds no images ({images})", next_step="take cache: memory, or none")

    def _key(self, source: RowGroup) -> str | None:
        """Names all that a packed row group is made of. None for a file that is not there."""
        if source.path not in self._modified:
            self._modified[source.path] = self.lake.storage.filesystem.get_file_info(source.path)
        info = self._modified[source.path]
        if not info.is_file:
            return None
        file = [self.lake.storage.root, source.path, info.size, info.mtime_ns, source.index, source.num_rows]
        columns = [self.columns, [[part.name, part.dtype.str, part.shape] for part in self._parts], self.manifest.schema_hash]
        return fingerprint([file, columns], length=32)

    def _is_unchanged(self, source: RowGroup) -> bool:
        """Whether a file is still the one that its key was made of."""
        before, now = self._modified[source.path], self.lake.storage.filesystem.get_file_info(source.path)
        return bool((before.size, before.mtime_ns) == (now.size, now.mtime_ns))

    @contextmanager
    def _open_fill(self, arena: Arena) -> Iterator[Fill]:
        """One thread's way to read. A reader is kept for the next epoch, with its files open and their footers read."""
        reader = self._readers.pop() if self._readers else RowGroupReader(self.lake.storage.filesystem, self.columns)
        try:
            yield partial(self._fill, arena, reader)
        except BaseException:
            reader.close()
            raise
        self._readers.append(reader)

    def _fill(self, arena: Arena, reader: RowGroupReader, piece: Piece) -> None:
        place, source = piece.place, self.row_group(piece.row_group)
        key = self._key(source) if self._disk is not None else None
        found = place.filled or (
            self._disk is not None
            and key is not None
            and self._disk.read(key, source.num_rows, piece.first, piece.last, arena.rows, place.at)
        )
        if not found:
            self._read(arena, reader, piece, source, key)
        with self._lock:
            self.statistics.cache_hits += found
            self.statistics.cache_misses += not found and self.cache != "none"

    def _read(self, arena: Arena, reader: RowGroupReader, piece: Piece, source: RowGroup, key: str | None) -> None:
        table, size = reader.read(source)
        place, num_rows = piece.place, piece.last - piece.first
        key = key if key is not None and self._is_unchanged(source) else None
        if self._disk is not None and key is not None and num_rows < source.num_rows:
            whole = room_for(self._parts, source.num_rows)
            pack(whole, 0, table, self.manifest, source)
            self._disk.write(key, source.num_rows, whole, 0)
            take(whole, np.arange(piece.first, piece.last), {n: a[place.at : place.at + num_rows] for n, a in arena.rows.items()})
        else:
            pack(arena.rows, place.at, table if place.kept else table.slice(piece.first, num_rows), self.manifest, source)
            if self._disk is not None and key is not None:
                self._disk.write(key, source.num_rows, arena.rows, place.at)
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
