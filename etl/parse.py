"""Rows of files under a contract: parsed, judged, counted and placed, read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.errors import AnalysisException, ParseException, PySparkException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from etl.session import TASKS_BY_SIZE, session_settings
from etl.sources.read import FileGroup, named_errors, number_files, position_of_blocks, read_rows
from etl.transforms.avro import Known, with_avro_cells
from etl.transforms.laid_json import Layout, with_laid_cells
from etl.transforms.message import with_message_cells
from etl.transforms.parsing import BLANK, PLACE, with_csv_cells, with_image_cells, with_json_cells, with_parquet_cells
from etl.transforms.plain_json import NOT_PLAIN, with_plain_cells
from etl.transforms.provenance import with_content_hash
from etl.transforms.sql import literal, literals
from etl.transforms.validation import pattern_probe, with_typed_columns
from lakering.storage import StorageSettings
from schemas import Contract
from schemas.expressions import quote_name

STARTS = pa.schema({"_file": pa.int64(), "_block": pa.int64(), "_offset": pa.int64(), "_first": pa.int64(),
                    "_source": pa.string(), "_modified": pa.int64()})  # fmt: skip
TASKS_PER_CORE = 8
#: Probes of contracts that this process has found good.
PROBED: set[str] = set()
Reasons = Counter[tuple[str | None, str | None]]


@dataclass(frozen=True)
class ParsedRows:
    """``rows`` hold the contract's columns, provenance, ``_modified``, ``_form``, ``_header``, ``_raw`` and ``_refusal``;
    ``reasons`` counts them by refusal (column, rule), of valid rows (None, None). With ``raw``, the raw forms of valid rows are
    there alone."""

    rows: DataFrame
    reasons: Reasons
    raw: DataFrame | None = None

    @property
    def valid(self) -> DataFrame:
        return self.rows.where("_refusal IS NULL")

    @property
    def refused(self) -> DataFrame:
        return self.rows.where("_refusal IS NOT NULL")

    @property
    def num_valid(self) -> int:
        return self.reasons[None, None]


@contextmanager
def parsed_files(
    spark: SparkSession, groups: list[FileGroup], contract: Contract, settings: StorageSettings
) -> Iterator[ParsedRows]:
    """The rows of files, kept while the block lasts. A single pass reads, parses and judges them (a second one the lines of JSON
    that are not plain); line numbers, which need the number of lines in the blocks before, are told from the counts.

    Raises InputError for a file that cannot be read, SettingError for a contract that Spark cannot carry out."""
    with named_errors(groups):
        parts = [parse(read_rows(spark, group, contract, settings), group, contract, number, quick=True)
                 for number, group in enumerate(groups)]  # fmt: skip
        # Small tasks, so that cores end together.
        tasks = TASKS_PER_CORE * spark.sparkContext.defaultParallelism
        with ExitStack() as stack:
            with session_settings(spark, {"spark.sql.files.minPartitionNum": tasks}):
                kept = stack.enter_context(kept_rows(
                    reduce(DataFrame.unionByName, parts), _tally, lambda rows: _parse_again(rows, groups, contract)))  # fmt: skip
            starts = position_of_blocks(number_files(spark, groups), _blocks(kept.told))
            yield ParsedRows(_placed(kept.rows, starts, groups, contract), _reasons(kept.told, starts))


def _tally(kept: DataFrame) -> list[Row]:
    counted = kept.groupBy("_file", "_block", "_refusal.column", "_refusal.rule")
    return counted.agg(F.count("*").alias("count"), F.min("_row").alias("first"), F.max("_row").alias("last")).collect()


def _parse_again(rows: DataFrame, groups: list[FileGroup], contract: Contract) -> DataFrame:
    parts = [parse(rows.where(f"_group = {number}").select(*PLACE, "_raw"), group, contract, number)
             for number, group in enumerate(groups) if group.format == "json"]  # fmt: skip
    return reduce(DataFrame.unionByName, parts)


@dataclass(frozen=True)
class Kept:
    """Judged rows that lie on the executors, and what was told of them. ``num_tasks`` is how many tasks read them, where these
    have even shares."""

    rows: DataFrame
    told: list[Row]
    num_tasks: int | None = None


@contextmanager
def kept_rows(rows: DataFrame, tell: Callable[[DataFrame], list[Row]], *again: Callable[[DataFrame], DataFrame],
              spread_by: str | None = None) -> Iterator[Kept]:  # fmt: skip
    """Judged rows, kept as they are while the block lasts, and what ``tell`` counts of them, by ``rule`` among others. Lines that
    a quick parse left over (``NOT_PLAIN``) are read ``again``, as long as any is left.

    They are kept where they were parsed, and go with their executor, so whoever uses them must be ready to begin again
    (``is_lost``); or ``spread_by`` a column evenly, which Spark itself mends. (A columnar cache took longer to fill than the
    parsing.)"""
    with ExitStack() as stack:
        kept, num_tasks = _keep(rows, stack, spread_by)
        told = tell(kept)
        is_left = f"_refusal IS NOT NULL AND _refusal.rule = {literal(NOT_PLAIN)}"
        for read in again:
            if all(row["rule"] != NOT_PLAIN for row in told):
                break
            others, more = _keep(read(kept.where(is_left)), stack, spread_by)
            kept, num_tasks = kept.where(f"NOT ({is_left})").unionByName(others), num_tasks + more
            told = [row for row in told if row["rule"] != NOT_PLAIN] + tell(others)
        yield Kept(kept, told, num_tasks if spread_by else None)


def _keep(rows: DataFrame, stack: ExitStack, spread_by: str | None) -> tuple[DataFrame, int]:
    """Rows worked out once, and the number of tasks that read them."""
    if spread_by is None:
        kept = rows.localCheckpoint(True, StorageLevel.MEMORY_AND_DISK_DESER)
        stack.callback(lambda: kept._jdf.queryExecution().analyzed().rdd().unpersist(False))
        return kept, 0
    spark = rows.sparkSession
    with session_settings(spark, TASKS_BY_SIZE):
        spread = rows.repartition(spread_by)
        # Asked for its rows, Spark carries out the shuffle and hands on what reads it: as often as we like, from disk, and worked
        # out again where an executor is lost. To hold the rows themselves costs as much as to parse them.
        shuffled = spread._jdf.queryExecution().toRdd()
    stack.callback(lambda: shuffled.cleanShuffleDependencies(False))
    again = spark._jsparkSession.internalCreateDataFrame(shuffled, spread._jdf.schema(), False)
    return DataFrame(again, spark), shuffled.getNumPartitions()


def all_refused(contract: Contract, parsed: ParsedRows, conflicts: DataFrame | None) -> DataFrame:
    """Rows that broke the contract, and rows in conflict with what is stored, as ``write_quarantine`` takes them."""
    names = ["_source", "_position", "_modified", "_form", "_header", "_raw"]
    names += [name for name in ("_key", "_headers", "_timestamp") if name in parsed.rows.columns]
    bad = parsed.refused.select(*names, "_refusal")
    if conflicts is None:
        return bad
    refusal = (f"named_struct('column', {literal(', '.join(contract.key) or '_source, _position')}, 'rule', 'conflict', "
               "'value', concat('stored from ', _stored)) AS _refusal")  # fmt: skip
    raw = parsed.valid.drop("_refusal") if parsed.raw is None else parsed.raw
    return bad.unionByName(raw.join(conflicts, ["_source", "_position"]).selectExpr(*names, refusal))


def is_lost(error: BaseException) -> bool:
    """Whether an error says that kept rows went with the executor that held them."""
    return "CHECKPOINT_RDD_BLOCK_ID_NOT_FOUND" in str(error)


def parse(rows: DataFrame, group: FileGroup, contract: Contract, number: int = 0, *, schemas: Known | None = None,
          quick: bool = False, layout: Layout | None = None) -> DataFrame:  # fmt: skip
    """What ``read_rows`` gives, typed and judged. ``number`` tells the group's rows from others; ``schemas`` are Avro's. If it is
    to be ``quick``, lines of JSON that are not plain, or not in the layout, are refused as ``NOT_PLAIN``, to be parsed again."""
    try:
        values = contract.of_message_values if group.is_topic else contract
        if group.form != "json" or group.format == "parquet":
            cells = _value_cells(rows, group, values, schemas)
        elif layout is not None:
            cells = with_laid_cells(rows, values, layout)
        else:
            cells = (with_plain_cells if quick else with_json_cells)(rows, values)
        if group.is_topic and contract.message_columns:
            cells = with_message_cells(cells, contract)
        probe = pattern_probe(contract)
        if probe and probe not in PROBED:
            rows.sparkSession.sql(probe).collect()
            PROBED.add(probe)  # a stream comes here with each micro-batch
        typed = with_content_hash(with_typed_columns(cells, contract), contract)
        return typed.withColumn("_group", F.lit(number))
    except (AnalysisException, ParseException, PySparkException) as error:
        reason = str(error).split(" SQLSTATE")[0].splitlines()[0]
        raise contract.document.error((), f"Spark cannot carry out the contract of table '{contract.table}': {reason}") from None


def _value_cells(rows: DataFrame, group: FileGroup, contract: Contract, schemas: Known | None) -> DataFrame:
    if group.form in ("csv", "cells"):
        return with_csv_cells(rows, contract, group.header)
    if group.format == "parquet":
        return with_parquet_cells(rows, contract, group.files[0].path)
    if group.format == "images":
        return with_image_cells(rows, contract)
    return with_avro_cells(rows, contract, schemas or {})


def _blocks(tally: list[Row]) -> list[Row]:
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for row in tally:
        place = (row["_file"], row["_block"])
        first, last = found.get(place, (row["first"], row["last"]))
        found[place] = (min(first, row["first"]), max(last, row["last"]))
    return [Row(_file=file, _block=block, first=first, last=last) for (file, block), (first, last) in found.items()]


def _reasons(tally: list[Row], starts: list[tuple[int, int, int, int, str, int]]) -> Reasons:
    """Counts by refusal, without blank lines and without headers, which were parsed like any line."""
    places = {(file, block): (offset, first) for file, block, offset, first, _, _ in starts}
    reasons: Reasons = Counter()
    for row in tally:
        offset, first = places[row["_file"], row["_block"]]
        header = row["first"] - offset < first  # only a header stands before the first row, and only one
        if row["rule"] != BLANK:
            reasons[row["column"], row["rule"]] += row["count"] - header
    return +reasons


def _placed(kept: DataFrame, starts: list[tuple[int, int, int, int, str, int]], groups: list[FileGroup],
            contract: Contract) -> DataFrame:  # fmt: skip
    table = pa.Table.from_pylist([dict(zip(STARTS.names, start, strict=True)) for start in starts], schema=STARTS)
    places = F.broadcast(kept.sparkSession.createDataFrame(table))
    forms = f"get(array({literals(group.form for group in groups)}), _group) AS _form"
    # Of Parquet the columns that were read: a raw form without a column is not one that holds a null there.
    read = tuple(column.name for column in contract.source_columns)
    named = (read if group.format == "parquet" else group.header for group in groups)
    headers = (f"array({literals(header)})" if header else "CAST(NULL AS array<string>)" for header in named)
    columns = [quote_name(name) for name in kept.columns if name not in ("_file", "_block", "_row", "_group")]
    data = kept.join(places, ["_file", "_block"]).where(
        f"_row - _offset >= _first AND (_refusal IS NULL OR _refusal.rule <> {literal(BLANK)})")  # fmt: skip
    return data.selectExpr(
        *columns,
        "_source",
        "_row - _offset AS _position",
        "_modified",
        forms,
        f"get(array({', '.join(headers)}), _group) AS _header",
    )
