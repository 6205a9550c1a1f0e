"""The first rows of a few files, for a contract that is yet to be written; read without Spark."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from etl.sources.files import SourceFile, file_storage
from lakering.errors import InputError
from lakering.storage import StorageSettings

#: Of one file no more than this is read, however long its lines are (decompressed bytes).
MAX_HEAD_BYTES = 64 << 20
CHUNK = 1 << 20


@dataclass(frozen=True)
class Head:
    """The first whole lines of a file, decompressed. ``is_whole``: there are no others."""

    path: str
    content: bytes
    is_whole: bool


def choose_files(files: list[SourceFile], most: int) -> list[SourceFile]:
    """At most so many files: the first, the last, and some evenly between, since what files hold changes with time."""
    if len(files) <= most:
        return files
    places = sorted({round(i * (len(files) - 1) / (most - 1)) for i in range(most)})
    return [files[place] for place in places]


def read_head(file: SourceFile, max_lines: int, settings: StorageSettings | None = None) -> Head:
    """The first lines of a text file; ``.gz``, ``.zst`` and the like are decompressed by their extension.

    Raises InputError when it cannot be decompressed, or is no text of lines."""
    storage = file_storage(file.path, file.uri, settings)
    parts, lines, size = [], 0, 0
    try:
        with storage.filesystem.open_input_stream(storage.path()) as stream:
            while lines <= max_lines and size < MAX_HEAD_BYTES:
                part = stream.read(CHUNK)
                if not part:
                    break
                parts.append(part)
                lines += part.count(b"\n")
                size += len(part)
            is_whole = not part
    except OSError as error:
        raise InputError(f"{file.path} cannot be read: {error}") from None
    content = b"".join(parts)
    if is_whole and lines <= max_lines:
        return Head(file.path, content, True)
    if b"\n" not in content:
        raise InputError(f"{file.path}: no line ends within its first {size:,} bytes; is it text, and are its line ends \\n?")
    return Head(file.path, _first_lines(content, max_lines), False)


def _first_lines(content: bytes, number: int) -> bytes:
    lines = content[: content.rindex(b"\n") + 1].split(b"\n", number)
    return b"\n".join(lines[:number]) + b"\n"


def read_parquet_head(file: SourceFile, max_rows: int, settings: StorageSettings | None = None) -> tuple[pa.Table, bool]:
    """The first rows of a Parquet file, and whether there are no others. Raises InputError when it is none."""
    storage = file_storage(file.path, file.uri, settings)
    try:
        with storage.filesystem.open_input_file(storage.path()) as stream, pq.ParquetFile(stream) as parquet:
            batches, rows = [], 0
            for batch in parquet.iter_batches(batch_size=min(max_rows, 65536)):
                batches.append(batch)
                rows += batch.num_rows
                if rows >= max_rows:
                    break
            table = pa.Table.from_batches(batches, schema=parquet.schema_arrow)
            return table.slice(0, max_rows), parquet.metadata.num_rows <= max_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file.path} cannot be read as Parquet: {error}") from None
