"""What files hold, as rows for the parser: where each stands, and its text or its values.

Every frame has ``_file`` (a number, see ``number_files``), ``_block`` and ``_row``: in a file that Spark cuts into blocks, the
row's number within its block and some offset (``position_of_blocks`` turns it into a position); with ``_block`` -1 the
position itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from etl.sources.files import SourceFile, file_storage
from etl.sources.streams import Stream, has_colon, is_streamed, line_batches, read_header, record_batches
from etl.transforms.parsing import NANOS
from lakering.errors import InputError, LakeringError
from lakering.storage import StorageSettings
from schemas import Contract
from schemas.expressions import quote_name

Likeness = tuple[bool, tuple[str, ...], tuple[str, ...]]
EXACT = -1
FOOTER_THREADS = 16
PLACE = ("xxhash64(_metadata.file_path) AS _file", "CAST(_metadata.file_block_start AS BIGINT) AS _block")


@dataclass(frozen=True)
class FileGroup:
    """Files that are read and parsed alike. ``form`` is how a row's raw form is written: csv (a line), cells (a JSON array of
    texts), json, image or avro; ``header`` names a CSV's or Parquet's columns, or the topic of Avro's, ``kinds`` are Parquet's of
    them, as pyarrow writes them; ``base`` is the folder that images are named from; ``is_topic`` says that rows are messages."""

    format: str
    form: str
    files: tuple[SourceFile, ...]
    streamed: bool = False
    header: tuple[str, ...] = ()
    base: str = ""
    kinds: tuple[str, ...] = ()
    is_topic: bool = False


def group_files(
    format: str, files: list[SourceFile], contract: Contract, settings: StorageSettings, base: str
) -> list[FileGroup]:
    """Files by what must be alike for them to be parsed together. Raises InputError for one that cannot be read."""
    form = {"parquet": "json", "images": "image"}.get(format, format)
    if format == "csv" and contract.dialect.multi_line:
        form = "cells"
    if format in ("parquet", "images"):
        named = next((file.path for file in files if has_colon(file)), None)
        if named:
            raise InputError(f"{named}: Hadoop takes a colon in a file's name for the end of a URL's scheme",
                             next_step="give the file another name")  # fmt: skip
    groups: dict[Likeness, list[SourceFile]] = {}
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        found = pool.map(lambda file: _likeness(format, file, contract, settings), files)
        for file, likeness in zip(files, found, strict=True):
            groups.setdefault(likeness, []).append(file)
    return [FileGroup(format, form, tuple(members), streamed, header, base, kinds)
            for (streamed, header, kinds), members in groups.items()]  # fmt: skip


def _likeness(format: str, file: SourceFile, contract: Contract, settings: StorageSettings) -> Likeness:
    """Whether a file is read as a stream, the names of its columns, and of Parquet their kinds."""
    streamed = format in ("csv", "json") and is_streamed(file, contract.dialect, format, settings)
    if format == "csv":
        return streamed, read_header(file, contract.dialect, settings), ()
    if format == "parquet":
        storage = file_storage(file.path, file.uri, settings)
        try:
            with storage.filesystem.open_input_file(storage.path()) as opened:
                schema = pq.read_schema(opened)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file.path} cannot be read as Parquet: {str(error).splitlines()[0]}",
                             next_step="write the file again, or take it out of the recipe's files") from None  # fmt: skip
        return streamed, tuple(schema.names), tuple(map(str, schema.types))
    return streamed, (), ()


def read_rows(spark: SparkSession, group: FileGroup, contract: Contract, settings: StorageSettings) -> DataFrame:
    """The rows of a group: ``_file, _block, _row`` and

    - single-line CSV and JSON: ``_raw``, a line's bytes in a string, blank lines and CSV's header among them;
    - multi-line CSV: ``_cells``, an array of texts;
    - Parquet and images: the file's own columns, by name."""
    uris = [_escape_glob(file.uri) for file in group.files]
    if group.streamed:
        return _read_streams(spark, group, contract, settings)
    if group.format == "parquet":
        return _read_parquet(spark, group, uris, contract)
    if group.format == "images":
        rows = spark.read.format("binaryFile").load(uris)
        relative = f"substring(path, {len(group.base) + 2})"
        return rows.selectExpr(*PLACE, "monotonically_increasing_id() AS _row", f"{relative} AS _path", "content AS _content")
    # The text source keeps bytes as they are (the CSV source turns invalid UTF-8 into U+FFFD). It knows no line numbers.
    # A carriage return goes as a byte: of a text, a broken character before it would go too.
    cut = "CAST(substring(CAST(value AS BINARY), 1, octet_length(value) - 1) AS STRING)"
    lines = spark.read.option("lineSep", "\n").text(uris)
    raw = rf"if(endswith(value, '\r'), {cut}, value) AS _raw"
    return lines.selectExpr(*PLACE, "monotonically_increasing_id() AS _row", raw)


def _read_parquet(spark: SparkSession, group: FileGroup, uris: list[str], contract: Contract) -> DataFrame:
    kinds = dict(zip(group.header, group.kinds, strict=True))
    try:
        # Where a writer left checksums of its pages, a flipped bit is an error, not another value.
        rows = spark.read.option("parquet.page.verify-checksum.enabled", "true").parquet(*uris)
        columns = []
        for column in contract.source_columns:
            held, name = rows.schema[column.name].dataType, F.col(quote_name(column.name))
            if isinstance(held, T.LongType) and kinds[column.name].startswith("timestamp[ns"):
                name = name.alias(column.name, metadata={NANOS: "utc" if "tz=" in kinds[column.name] else "local"})
            columns.append(name)
        return rows.select(*columns, *map(F.expr, PLACE), F.expr("_metadata.row_index AS _row"))
    except AnalysisException as error:
        text = f"{group.files[0].path} cannot be read by Spark: {str(error).splitlines()[0]}"
        raise InputError(text, next_step="write the file again without that column, or in another type") from None


def _read_streams(spark: SparkSession, group: FileGroup, contract: Contract, settings: StorageSettings) -> DataFrame:
    streams = [Stream(file.path, file.uri, contract.dialect, settings) for file in group.files]
    multi_line = group.form == "cells"
    batches, skip = (record_batches if multi_line else line_batches), (1 if group.format == "csv" else 0)

    def read(asked: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        for batch in asked:
            for number in batch.column("id").to_pylist():
                yield from batches(streams[number], skip)

    column = "_cells array<binary>" if multi_line else "_raw binary"
    numbers = spark.range(0, len(streams), 1, len(streams))
    rows = numbers.mapInArrow(read, f"_file string, _row bigint, {column}")
    text = "transform(_cells, c -> CAST(c AS STRING)) AS _cells" if multi_line else "CAST(_raw AS STRING) AS _raw"
    return rows.selectExpr("xxhash64(_file) AS _file", f"CAST({EXACT} AS BIGINT) AS _block", "_row", text)


def number_files(spark: SparkSession, groups: list[FileGroup]) -> dict[int, tuple[SourceFile, FileGroup]]:
    """The files by the number in ``_file``: a hash of their names, which would weigh as much as the rows that they are in.

    Raises InputError should two files have one number."""
    files = [(file, group) for group in groups for file in group.files]
    path = spark.sparkContext._jvm.org.apache.hadoop.fs.Path  # type: ignore[union-attr]
    # As Spark writes them: percent-encoded, but for letters beyond ASCII.
    names = [file.uri if group.streamed else path(file.uri).toUri().toString() for file, group in files]
    hashed = spark.createDataFrame(pa.table({"name": names})).selectExpr("xxhash64(name)").collect()
    numbered = {row[0]: found for row, found in zip(hashed, files, strict=True)}
    if len(numbered) < len(files):
        both = [file.path for file, group in files if (file, group) not in numbered.values()]
        raise InputError(f"{both[0]} has the number of another file", next_step="give it another name")
    return numbered


def position_of_blocks(
    files: dict[int, tuple[SourceFile, FileGroup]], blocks: list[Row]
) -> list[tuple[int, int, int, int, str, int]]:
    """Of each block (rows with ``_file, _block, first, last``, the least and greatest ``_row``) the file and block, the
    offset that gives ``_row - offset`` as position, the first position that is data, the source and its file's time (ns).
    """
    before: Counter[int] = Counter()
    found = []
    for block in sorted(blocks, key=lambda row: (row["_file"], row["_block"])):
        number = block["_file"]
        file, group = files[number]
        offset = 0 if block["_block"] == EXACT else block["first"] - before[number] - 1
        before[number] += block["last"] - block["first"] + 1
        found.append((number, block["_block"], offset, 2 if group.format == "csv" else 1, file.source, file.modified))
    return found


@contextmanager
def named_errors(groups: list[FileGroup]) -> Iterator[None]:
    """What Spark says of a file that it cannot read, as an InputError that names the file; of a full disk, as an error that says
    so."""
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:  # PySpark wraps some of Java's exceptions, and not those of tasks
        text = str(error)
        ours = re.search(r"lakering\.errors\.InputError: ([^\n]+)(?:\n +next: ([^\n]+))?", text)
        if ours:
            raise InputError(ours[1], next_step=ours[2]) from None
        paths = [file.path for group in groups for file in group.files]
        named = re.search(r"(?:FAILED_READ_FILE|CANNOT_READ_FILE)[^\n]*?(file:|s3a:|hdfs:)([^\s\n]+)", text)
        if named:
            path = next((path for path in paths if unquote(named[2]).rstrip(".,'\"").endswith(path)), unquote(named[2]))
            causes = re.findall(r"\nCaused by: [\w.$]+: ([^\n]+)", text) or [text.splitlines()[0]]
            raise InputError(f"{path} cannot be read: {causes[-1][:300]}; nothing was written",
                             next_step="write the file again, or take it out of the recipe's files") from None  # fmt: skip
        full = re.search("No space left on device|File too large|Disk quota exceeded", text)
        if full:
            text = f"Spark could not write: {full[0]}; what was not committed does not count"
            raise LakeringError(text, next_step="make room in the lake and in Spark's local folder, then run again") from None
        raise


def _escape_glob(uri: str) -> str:
    """A path that Spark is to take literally."""
    return re.sub(r"([*?\[\]{}\\])", r"\\\1", uri)
