"""Files: which ones a recipe names, and their lines with line numbers, as bytes were written."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from pyarrow import fs
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from lakering.errors import InputError
from lakering.names import fingerprint
from lakering.storage import Storage, StorageSettings
from schemas import Dialect

WILDCARDS = re.compile(r"[*?\[]")
#: Names that writers use for what is not data.
HIDDEN = (".", "_")
MAX_HEADER_BYTES = 1 << 20
BOM = "\ufeff"


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when it was listed. ``uri`` is how Spark names it; ``modified`` is in nanoseconds."""

    path: str
    uri: str
    size: int
    modified: int

    def identity(self, contract_version: str) -> str:
        """What a row's provenance names: the file, and which state of it under which contract version."""
        return f"{self.uri}#{fingerprint([self.size, self.modified, contract_version], 12)}"


def list_files(pattern: str, settings: StorageSettings | None = None) -> list[SourceFile]:
    """The files that a path, a folder or a glob names, by path. Hidden files (``.x``, ``_x``) are left out,
    unless a glob spells the dot or the underscore.

    Raises InputError when there is none, or when one of them is empty."""
    base, wild = _split_glob(pattern)
    storage = Storage(base, settings or StorageSettings())
    info = storage.filesystem.get_file_info(storage.path())
    if info.is_file and not wild:
        found = [info]
    elif wild:
        matches = re.compile(_glob_regex(storage.path() + "/" + wild)).fullmatch
        selector = fs.FileSelector(storage.path(), recursive=True, allow_not_found=True)
        shown = re.search(r"(^|/)[._]", wild) is not None
        found = [f for f in storage.filesystem.get_file_info(selector)
                 if f.is_file and matches(f.path) and (shown or not _hidden(f.path[len(storage.path()) :]))]  # fmt: skip
    elif info.type == fs.FileType.Directory:
        everything = storage.filesystem.get_file_info(fs.FileSelector(info.path, recursive=True))
        found = [f for f in everything if f.is_file and not _hidden(f.path[len(info.path) :])]
    else:
        raise InputError(f"{pattern} does not exist", next_step="check the 'files' of the recipe's sources")
    if not found:
        what = "matches no file" if wild else "is a folder without files"
        raise InputError(f"{pattern} {what}", next_step="check the 'files' of the recipe's sources")
    empty = sorted(f.path for f in found if f.size == 0)
    if empty:
        raise InputError(
            f"{empty[0]} is empty ({len(empty)} of {len(found)} files are)", next_step="remove it, or write it again"
        )
    root = storage.path()
    return sorted(
        (SourceFile(f.path, _uri(storage, f.path, root), f.size, f.mtime_ns or 0) for f in found),
        key=lambda file: file.path,
    )


def _split_glob(pattern: str) -> tuple[str, str]:
    """``/a/b/*.csv`` is the folder ``/a/b`` and the pattern ``*.csv``."""
    if not WILDCARDS.search(pattern):
        return pattern.rstrip("/") or "/", ""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if WILDCARDS.search(part))
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else "."), "/".join(parts[first:])


def _glob_regex(pattern: str) -> str:
    """``*`` and ``?`` stay within a folder's name, ``**`` crosses folders, ``[!x]`` is any character but x."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern)
    table = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        table.get(part) or (part.replace("[!", "[^", 1) if part.startswith("[") else re.escape(part)) for part in parts
    )


def _hidden(relative: str) -> bool:
    return any(part.startswith(HIDDEN) for part in relative.strip("/").split("/"))


def _uri(storage: Storage, path: str, root: str) -> str:
    return storage.uri(*path[len(root) :].strip("/").split("/")) if path != root else storage.uri()


def validate_unchanged(files: Iterable[SourceFile], settings: StorageSettings | None = None) -> None:
    """Raises InputError when a file is no longer as it was listed: what was read may be half of each."""
    for file in files:
        storage = _storage(file, settings)
        info = storage.filesystem.get_file_info(storage.path())
        if not info.is_file or (info.size, info.mtime_ns or 0) != (file.size, file.modified):
            raise InputError(f"{file.path} changed while it was read; nothing of it was written",
                             next_step="run again when its writer is done")  # fmt: skip


def read_header(file: SourceFile, dialect: Dialect, settings: StorageSettings | None = None) -> tuple[str, ...]:
    """The names in a CSV file's first line. Raises InputError when they are not UTF-8, empty or repeated."""
    storage = _storage(file, settings)
    with storage.filesystem.open_input_stream(storage.path()) as stream:
        line = stream.read(MAX_HEADER_BYTES).split(b"\n", 1)[0].rstrip(b"\r")
    try:
        text = line.decode("utf-8").removeprefix(BOM)
    except UnicodeDecodeError as error:
        raise InputError(f"{file.path}: the header is not UTF-8 at byte {error.start}") from None
    names = next(csv.reader([text], delimiter=dialect.delimiter, quotechar=dialect.quote), [])
    if not names or any(not name.strip() for name in names):
        raise InputError(f"{file.path}: the header has an empty name: {text[:200]!r}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{file.path}: the header names {', '.join(repeated)} twice")
    return tuple(names)


def read_lines(spark: SparkSession, files: list[SourceFile], contract_version: str) -> DataFrame:
    """The lines of files: ``_source``, ``_position`` (line number from 1), ``_raw`` (bytes in a string, without the line's
    end), ``_modified`` (of the file, ns).

    Spark's text source keeps bytes as they are (its CSV source turns invalid UTF-8 into U+FFFD). It knows no line
    numbers: they come from the row's number within its file block, plus the lines of the blocks before it.
    """
    lines = (
        spark.read.option("lineSep", "\n")
        .text([_escape_glob(file.uri) for file in files])
        .select(
            "value",
            F.col("_metadata.file_path").alias("path"),
            F.col("_metadata.file_block_start").alias("block"),
            F.monotonically_increasing_id().alias("id"),
        )
    )
    blocks = lines.groupBy("path", "block").agg(F.min("id").alias("first"), F.count("*").alias("num_lines")).collect()
    by_uri = {file.uri: file for file in files}
    rows, before = [], dict.fromkeys(by_uri, 0)
    for block in sorted(blocks, key=lambda row: (row["path"], row["block"])):
        file = by_uri[unquote(block["path"])]  # file_path is percent-encoded, but for letters beyond ASCII
        offset = block["first"] - before[file.uri] - 1
        rows.append((block["path"], block["block"], offset, file.identity(contract_version), file.modified))
        before[file.uri] += block["num_lines"]
    schema = "path string, block long, offset long, _source string, _modified long"
    starts = spark.createDataFrame(rows, schema)
    position = F.col("id") - F.col("offset")
    text = F.when((position == 1) & F.startswith("value", F.lit(BOM)), F.substring("value", 2, 2**31 - 1)).otherwise(
        F.col("value")
    )
    return lines.join(F.broadcast(starts), ["path", "block"]).select(
        "_source",
        position.alias("_position"),
        _without_carriage_return(text).alias("_raw"),
        "_modified",
    )


def _escape_glob(uri: str) -> str:
    """A path that Spark is to take literally."""
    return re.sub(r"([*?\[\]{}\\])", r"\\\1", uri)


def _storage(file: SourceFile, settings: StorageSettings | None) -> Storage:
    return Storage(file.path if file.uri.startswith("file:") else file.uri, settings or StorageSettings())


def _without_carriage_return(text: Column) -> Column:
    # By substring, which works on bytes: a regular expression would turn invalid UTF-8 into U+FFFD.
    return F.when(F.endswith(text, F.lit("\r")), F.substring(text, F.lit(1), F.length(text) - 1)).otherwise(text)
