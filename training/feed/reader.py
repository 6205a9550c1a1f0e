"""Petastorm's Reader, told exactly which row groups to read, in which order.

A worker class and a pool of ours, both handed to the public constructor. The pool takes one asked row group after the
other and never starts Petastorm's ventilator (which knows neither order nor lists, and polls); the worker keeps files open
and publishes Arrow columns by name. Nothing is unpickled: only lists of files go in, never a folder.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from petastorm.reader import Reader
from petastorm.workers_pool import EmptyResultError
from petastorm.workers_pool.dummy_pool import DummyPool
from petastorm.workers_pool.worker_base import WorkerBase
from pyarrow import filesystem as old_filesystem
from pyarrow import fs

from lakering.errors import IntegrityError, LakeringError

# Petastorm 0.13 works through pyarrow's old dataset classes, each use of which warns.
for _module in (r"petastorm\..*", r"training\.feed\.reader"):
    warnings.filterwarnings("ignore", category=FutureWarning, module=_module)

REBUILD = "build the examples again (build_examples --new), then snapshot"
#: Files that a reader keeps open: row groups come in shuffled order, so the next is often of another file.
OPEN_FILES = 32


@dataclass(frozen=True)
class RowGroup:
    """A row group as the manifest knows it. ``path`` is as the file system takes it."""

    path: str
    index: int
    num_rows: int

    def __str__(self) -> str:
        return f"{self.path}, row group {self.index}"


class _Files(old_filesystem.FileSystem):
    """The file system that Petastorm asks, over the one that the lake has. It has no folders, so none is ever read."""

    def __init__(self, files: fs.FileSystem) -> None:
        self.files = files

    def isdir(self, path: str) -> bool:
        return False

    def isfile(self, path: str) -> bool:
        return bool(self.files.get_file_info(path).is_file)

    def open(self, path: str, mode: str = "rb") -> Any:
        return self.files.open_input_file(path)


class _Results:
    """Hands on what the worker published, as it is."""

    batched_output = True

    def read_next(self, pool: DummyPool, schema: Any, ngram: Any) -> Any:
        try:
            return pool.get_results()
        except EmptyResultError:
            raise StopIteration from None


class _Opened(NamedTuple):
    """A file that is kept open, its footer read, and where that tells of the columns."""

    source: Any
    file: pq.ParquetFile
    indices: list[int]


def _worker_of(columns: Sequence[str]) -> type[WorkerBase]:
    class ColumnWorker(WorkerBase):
        """Reads whole row groups, and keeps the files open that it read last."""

        def __init__(self, worker_id: int, publish_func: Any, args: Any) -> None:
            super().__init__(worker_id, publish_func, args)
            self._filesystem = args[0]
            self._files: OrderedDict[str, _Opened] = OrderedDict()

        @staticmethod
        def new_results_queue_reader() -> _Results:
            return _Results()

        def process(self, row_group: RowGroup) -> None:
            try:
                opened = self._opened(row_group)
                validate_num_rows(opened.file.metadata, row_group)
                table = self._readable(opened).read_row_group(row_group.index, columns=list(columns), use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(row_group, error) from error
            if table.num_rows != row_group.num_rows:
                raise IntegrityError(f"{row_group} gave {table.num_rows:,} of its {row_group.num_rows:,} rows", next_step=REBUILD)
            found = opened.file.metadata.row_group(row_group.index)
            self.publish_func((table, sum(found.column(i).total_compressed_size for i in opened.indices)))

        def _opened(self, row_group: RowGroup) -> _Opened:
            if row_group.path not in self._files:
                source = self._filesystem.open(row_group.path)
                file = pq.ParquetFile(source)
                validate_columns(file, row_group, columns)
                names = [file.schema.column(i).path.split(".")[0] for i in range(len(file.schema))]
                wanted = set(columns)
                self._files[row_group.path] = _Opened(source, file, [i for i, name in enumerate(names) if name in wanted])
                if len(self._files) > OPEN_FILES:
                    self._files.popitem(last=False)[1].file.close(force=True)
            self._files.move_to_end(row_group.path)
            return self._files[row_group.path]

        def _readable(self, opened: _Opened) -> pq.ParquetFile:
            """Away from this machine the columns of a row group are asked for together, not one by one (40 columns: 1 request,
            not 40). The ParquetFile keeps what it fetched so, and is therefore not kept."""
            if isinstance(self._filesystem.files, fs.LocalFileSystem):
                return opened.file
            return pq.ParquetFile(opened.source, metadata=opened.file.metadata, pre_buffer=True)

        def shutdown(self) -> None:
            while self._files:
                self._files.popitem()[1].file.close(force=True)

    return ColumnWorker


class _Pool(DummyPool):
    """Works in the caller's thread (Petastorm's thread pool loses rows), on what it is asked for."""

    def start(self, worker_class: Any, worker_args: Any = None, ventilator: Any = None) -> None:
        super().start(worker_class, worker_args)

    def join(self) -> None:
        self._worker.shutdown()


class RowGroupReader:
    """Reads row groups, each when it is asked for. For one thread; close it to close its files."""

    def __init__(self, files: fs.FileSystem, columns: Sequence[str]) -> None:
        self._filesystem, self._columns = files, columns
        self._pool = _Pool()
        self._reader: Reader | None = None

    def read(self, row_group: RowGroup) -> tuple[pa.Table, int]:
        """The row group as a table with the columns asked for, and the bytes that these take in its file.

        Raises IntegrityError, naming file and row group, for one that is gone, cut or not as the manifest says."""
        if self._reader is None:
            self._reader = self._opened(row_group)
        self._pool.ventilate(row_group=row_group)
        return next(self._reader)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.stop()
            self._reader.join()

    def _opened(self, first: RowGroup) -> Reader:
        """Petastorm reads the footers of all files that it is told of: it is told of one."""
        try:
            return Reader(_Files(self._filesystem), [first.path], worker_class=_worker_of(self._columns),
                          reader_pool=self._pool, is_batched_reader=True, shuffle_row_groups=False)  # fmt: skip
        except (OSError, pa.ArrowException, RuntimeError) as error:
            raise _unreadable(first, error) from error


def _unreadable(row_group: RowGroup, error: Exception) -> LakeringError:
    """What is out of reach is not broken, and need not be built again. (What was missing there is a FileNotFoundError.)"""
    text = f"{row_group} cannot be read: {error}"
    if "AWS Error" in str(error) and not isinstance(error, FileNotFoundError):
        return LakeringError(text, next_step="see that the store answers and lets you in, and run again: a training goes on")
    return IntegrityError(text, next_step=REBUILD)


def validate_num_rows(metadata: pq.FileMetaData, row_group: RowGroup) -> None:
    """Raises IntegrityError when a file's footer does not tell what the manifest tells of a row group."""
    if row_group.index >= metadata.num_row_groups:
        raise IntegrityError(f"{row_group} is not there: the file has {metadata.num_row_groups}", next_step=REBUILD)
    num_rows = metadata.row_group(row_group.index).num_rows
    if num_rows != row_group.num_rows:
        raise IntegrityError(f"{row_group} has {num_rows:,} rows, the manifest says {row_group.num_rows:,}", next_step=REBUILD)


def validate_columns(file: pq.ParquetFile, row_group: RowGroup, columns: Sequence[str]) -> None:
    """Raises IntegrityError when a file lacks columns."""
    names = file.schema_arrow.names
    missing = sorted(set(columns) - set(names))
    if missing:
        raise IntegrityError(f"{row_group} lacks columns {', '.join(missing)}; it has {', '.join(names)}", next_step=REBUILD)
