"""Files that only one task can read from start to end: compressed ones, other encodings than UTF-8, records of several lines.

Read in Python, on the executors, a chunk at a time. Lines and records are numbered as they come.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from etl.sources.files import SourceFile, file_storage
from lakering.errors import InputError
from lakering.storage import StorageSettings
from schemas import Dialect

#: By the end of the name, as pyarrow names them.
COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
CHUNK_BYTES = 4 << 20
BATCH_ROWS = 16_384
#: Above this many characters a cell is taken for the rest of a file behind an unclosed quote.
MAX_CELL_CHARS = 64 << 20
BOM = "\ufeff".encode()
SPACES = " \t\v\f\r"
Row = TypeVar("Row")

LINES = pa.schema([("_file", pa.string()), ("_row", pa.int64()), ("_raw", pa.binary())])
RECORDS = pa.schema([("_file", pa.string()), ("_row", pa.int64()), ("_cells", pa.list_(pa.binary()))])


def compression_of(path: str) -> str | None:
    return next((name for end, name in COMPRESSIONS.items() if path.lower().endswith(end)), None)


def is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def is_streamed(file: SourceFile, dialect: Dialect, format: str, settings: StorageSettings) -> bool:
    """Whether a file must be read by one task; all others are cut into blocks by Spark. Of CSV, a BOM goes with the header."""
    if compression_of(file.path) is not None or not is_utf8(dialect.encoding) or has_colon(file):
        return True
    if format == "csv":
        return dialect.multi_line
    return next(Stream(file.path, file.uri, dialect, settings).chunks(len(BOM)), b"") == BOM


def has_colon(file: SourceFile) -> bool:
    """Whether Hadoop, which takes what stands before a colon for a URL's scheme, cannot open a file of this name."""
    return ":" in file.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Stream:
    """One file, opened where it is read. Errors name it."""

    path: str
    uri: str
    dialect: Dialect
    settings: StorageSettings

    def lines(self) -> Iterator[bytes]:
        """Lines without their line feed, in UTF-8; one that is not in the encoding as its bytes are, if need be behind a byte
        that UTF-8 never holds."""
        encoding = self.dialect.encoding
        if is_utf8(encoding):
            yield from _without_bom(_split(self.chunks()))
        elif "\n".encode(encoding) == b"\n":
            for line in _split(self.chunks()):
                try:
                    yield line.decode(encoding).encode()
                except UnicodeError:  # encoding too: UTF-7 can write half a character
                    yield line if not _is_utf8(line) else b"\xff" + line
        else:
            yield from _without_bom(_split(_transcoded(self.chunks(), encoding)))

    def records(self) -> Iterator[list[str]]:
        """CSV records, a quoted cell over several lines in one; a line of nothing but space is an empty one. Raises InputError
        for a quote that is never closed."""
        first, last, is_blank = 1, 0, False

        def texts() -> Iterator[str]:
            nonlocal last, is_blank
            for line in self.lines():
                last, is_blank = last + 1, not line.strip(SPACES.encode())
                # Carriage returns are left in: inside a quoted cell they belong to it.
                yield line.decode("utf-8", "surrogateescape") + "\n"

        try:
            for record in _records(texts(), self.dialect):
                # Of a quoted space the cell is the same, the line is not; and where spaces delimit, they make cells.
                yield [] if is_blank and len(record) < 2 else record
                first = last + 1
        except csv.Error as error:
            raise InputError(
                f"{self.path}: the record that begins on line {first} cannot be read: {error}; nothing of the file was written",
                next_step="mend the file: a quote is not closed, or stands inside a cell undoubled",
            ) from None

    def chunks(self, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The file's bytes, decompressed. Raises InputError for one that cannot be read to its end."""
        storage, kind = file_storage(self.path, self.uri, self.settings), compression_of(self.path)
        try:
            with storage.filesystem.open_input_stream(storage.path(), compression=kind) as stream:
                while chunk := stream.read(size):
                    yield chunk
        except (OSError, EOFError) as error:
            what = f"cannot be read to its end as {kind}" if kind else "cannot be read"
            raise InputError(f"{self.path} {what}: {error}; nothing of it was written",
                             next_step="write the file again, or take it out of the recipe's files") from None  # fmt: skip


def _records(lines: Iterator[str], dialect: Dialect) -> Iterator[list[str]]:
    """Records of lines that end in a line feed. Raises ``csv.Error`` for quotes that are not as CSV has them."""
    if dialect.escape != dialect.quote:
        return _escaped_records(lines, dialect.delimiter, dialect.quote, dialect.escape)
    csv.field_size_limit(MAX_CELL_CHARS)
    return csv.reader(lines, delimiter=dialect.delimiter, quotechar=dialect.quote, strict=True)


def _escaped_records(lines: Iterator[str], delimiter: str, quote: str, escape: str) -> Iterator[list[str]]:
    """As Spark's reader has it, an escape counts within quotes alone, before a quote or an escape; elsewhere it is text. (The
    csv module drops it wherever it stands.)"""
    both = re.escape(quote) + re.escape(escape)
    inside = re.compile(rf"(?:[^{both}]++|{re.escape(escape)}.)*+", re.DOTALL)
    escaped = re.compile(rf"{re.escape(escape)}([{both}])")
    for line in lines:
        cells, at, end = [], 0, 0
        while not end:
            if line.startswith(quote, at):
                close = inside.match(line, at + 1).end()  # type: ignore[union-attr]
                while close == len(line):
                    if len(line) - at > MAX_CELL_CHARS or (more := next(lines, None)) is None:
                        raise csv.Error("unexpected end of data")
                    line += more
                    close = inside.match(line, close).end()  # type: ignore[union-attr]
                cells.append(escaped.sub(r"\1", line[at + 1 : close]))
                at = close + 1
                if line[at:] in ("\n", "\r\n"):
                    end = at
                elif not line.startswith(delimiter, at):
                    raise csv.Error(f"{delimiter!r} expected after {quote!r}")
            else:
                at, start = line.find(delimiter, at), at
                end = 0 if at >= 0 else len(line)
                cells.append(line[start:at] if at >= 0 else line[start:-1].removesuffix("\r"))
            at += len(delimiter)
        yield cells


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _transcoded(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """UTF-8 of an encoding whose line end is not one byte; what is not in it becomes a byte that UTF-8 never holds."""
    codecs.register_error("lakering.bad", lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]
    decoder = codecs.getincrementaldecoder(encoding)("lakering.bad")
    for chunk in chunks:
        yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def _without_bom(lines: Iterator[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(lines):
        yield line.removeprefix(BOM) if number == 0 else line


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def line_batches(stream: Stream, skip: int) -> Iterator[pa.RecordBatch]:
    """All lines but the first ``skip`` and blank ones, as ``LINES``; numbers count from 1."""
    delimiter = stream.dialect.delimiter.encode()  # where it is a tab, a line of nothing else is a row
    numbered = ((number, line.removesuffix(b"\r")) for number, line in enumerate(stream.lines(), start=1)
                if number > skip and (line.strip() or delimiter in line))  # fmt: skip
    for rows in _batches(numbered):
        numbers, lines = zip(*rows, strict=True)
        yield pa.record_batch([[stream.uri] * len(rows), numbers, lines], LINES)


def record_batches(stream: Stream, skip: int) -> Iterator[pa.RecordBatch]:
    """All records but the first ``skip`` and blank ones, as ``RECORDS``; numbers count from 1."""
    numbered = ((number, record) for number, record in enumerate(stream.records(), start=1) if number > skip and record)
    for rows in _batches(numbered):
        numbers = [number for number, _ in rows]
        cells = [[cell.encode("utf-8", "surrogateescape") for cell in record] for _, record in rows]
        yield pa.record_batch([[stream.uri] * len(rows), numbers, cells], RECORDS)


def _batches(rows: Iterator[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    batch: list[tuple[int, Row]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def read_header(file: SourceFile, dialect: Dialect, settings: StorageSettings) -> tuple[str, ...]:
    """The names in a CSV file's first record. Raises InputError when they are not in the encoding, empty or repeated."""
    stream = Stream(file.path, file.uri, dialect, settings)
    if dialect.multi_line:
        names = next(stream.records(), [])
    else:
        line = next(stream.lines(), b"").removesuffix(b"\r").decode("utf-8", "surrogateescape")
        try:
            names = next(_records(iter([line + "\n"]), dialect), [])
        except csv.Error as error:
            reason = "lines end in a carriage return alone" if "\r" in line else str(error)
            raise InputError(f"{file.path}: the header cannot be read: {reason}", next_step="write the file again") from None
    if any(re.search("[\udc80-\udcff]", name) for name in names):
        raise InputError(f"{file.path}: the header is not in {dialect.encoding}",
                         next_step="set the contract's custom property 'encoding'")  # fmt: skip
    if not names or any(not name.strip() for name in names):
        raise InputError(f"{file.path}: the header has an empty name: {dialect.delimiter.join(names)[:200]!r}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{file.path}: the header names {', '.join(repeated)} twice")
    return tuple(names)
