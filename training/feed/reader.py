"""Petastorm's Reader, told exactly which row groups to read, in which order.

A worker class and a pool of ours, both handed to the public constructor. The pool queues the asked row groups itself and
never starts Petastorm's ventilator (which knows neither order nor lists, and polls); the worker keeps its file open and
publishes Arrow columns by name. Nothing is unpickled: only lists of files go in, never a folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from petastorm.reader import Reader
from petastorm.workers_pool import EmptyResultError
from petastorm.workers_pool.dummy_pool import DummyPool
from petastorm.workers_pool.worker_base import WorkerBase
from pyarrow import filesystem as old_filesystem
from pyarrow import fs

from lakering.errors import IntegrityError

# Petastorm 0.13 works through pyarrow's old dataset classes, each use of which warns.
for _module in (r"petastorm\..*", r"training\.feed\.reader"):
    warnings.filterwarnings("ignore", category=FutureWarning, module=_module)

REBUILD = "build the examples again (build_examples --new), then snapshot"


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


class _Pool(DummyPool):
    """Works in the caller's thread (Petastorm's thread pool loses rows), in the order asked for."""

    def __init__(self, asked: Sequence[RowGroup]) -> None:
        super().__init__()
        self._asked = asked

    def start(self, worker_class: Any, worker_args: Any = None, ventilator: Any = None) -> None:
        super().start(worker_class, worker_args)
        for row_group in self._asked:
            self.ventilate(row_group=row_group)


class _Results:
    """Hands on what the worker published, as it is."""

    batched_output = True

    def read_next(self, pool: DummyPool, schema: Any, ngram: Any) -> Any:
        try:
            return pool.get_results()
        except EmptyResultError:
            raise StopIteration from None


def _worker_of(columns: Sequence[str]) -> type[WorkerBase]:
    class ColumnWorker(WorkerBase):
        """Reads whole row groups of the file that it keeps open; files are asked for one after the other."""

        def __init__(self, worker_id: int, publish_func: Any, args: Any) -> None:
            super().__init__(worker_id, publish_func, args)
            self._filesystem = args[0]
            self._path: str | None = None
            self._file: pq.ParquetFile | None = None

        @staticmethod
        def new_results_queue_reader() -> _Results:
            return _Results()

        def process(self, row_group: RowGroup) -> None:
            try:
                if self._file is None or self._path != row_group.path:
                    self._file = pq.ParquetFile(self._filesystem.open(row_group.path))
                    self._path = row_group.path
                validate_footer(self._file, row_group, columns)
                table = self._file.read_row_group(row_group.index, columns=list(columns), use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise IntegrityError(f"{row_group} cannot be read: {error}", next_step=REBUILD) from error
            if table.num_rows != row_group.num_rows:
                raise IntegrityError(f"{row_group} gave {table.num_rows:,} of its {row_group.num_rows:,} rows", next_step=REBUILD)
            self.publish_func(table)

    return ColumnWorker


def validate_footer(file: pq.ParquetFile, row_group: RowGroup, columns: Sequence[str]) -> None:
    """Raises IntegrityError when a file's footer does not tell what the manifest tells of a row group."""
    metadata = file.metadata
    if row_group.index >= metadata.num_row_groups:
        raise IntegrityError(f"{row_group} is not there: the file has {metadata.num_row_groups}", next_step=REBUILD)
    num_rows = metadata.row_group(row_group.index).num_rows
    if num_rows != row_group.num_rows:
        raise IntegrityError(f"{row_group} has {num_rows:,} rows, the manifest says {row_group.num_rows:,}", next_step=REBUILD)
    missing = sorted(set(columns) - set(file.schema_arrow.names))
    if missing:
        raise IntegrityError(
            f"{row_group} lacks columns {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}",
            next_step=REBUILD,
        )


def read_row_groups(files: fs.FileSystem, asked: Sequence[RowGroup], columns: Sequence[str]) -> Generator[pa.Table]:
    """The asked row groups, in this order, each as a table with these columns.

    Raises IntegrityError, naming file and row group, for one that is gone, cut or not as the manifest says."""
    if not asked:
        return
    paths = list(dict.fromkeys(row_group.path for row_group in asked))
    try:
        reader = Reader(_Files(files), paths, worker_class=_worker_of(columns), reader_pool=_Pool(asked),
                        is_batched_reader=True, shuffle_row_groups=False)  # fmt: skip
    except (OSError, pa.ArrowException, RuntimeError) as error:
        raise _named(files, asked, columns, error) from error
    try:
        yield from reader
    finally:
        reader.stop()
        reader.join()


def _named(files: fs.FileSystem, asked: Sequence[RowGroup], columns: Sequence[str], error: Exception) -> IntegrityError:
    """Petastorm reads all footers at once and does not say whose was bad: the first that we find so."""
    for row_group in asked:
        try:
            validate_footer(pq.ParquetFile(files.open_input_file(row_group.path)), row_group, columns)
        except IntegrityError as found:
            return found
        except (OSError, pa.ArrowException) as found:
            return IntegrityError(f"{row_group} cannot be read: {found}", next_step=REBUILD)
    return IntegrityError(f"{asked[0]} and what follows cannot be read: {error}", next_step=REBUILD)
