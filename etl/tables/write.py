"""Puts valid rows into their table, each key once, with the same answer however often it is run."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from etl.session import TASKS_BY_SIZE, session_settings
from etl.tables.delta import column_names, create_table, is_table, read_commits, spark_schema, table_version, validate_shape
from etl.tables.retry import run_again_on_conflict
from etl.transforms.provenance import key_of, newest_last, with_rank_in_key
from etl.transforms.sql import literal, names
from etl.transforms.validation import INTEGERS
from lakering.lake import Lake
from schemas import Contract
from schemas.expressions import quote_name

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
#: Above this many touched partition values, the literals would outgrow what they save.
MAX_LITERALS = 1000
DATED = ("date", "timestamp")
#: Of types whose values lie evenly on a line: the SQL of a value's number, and the value again.
NUMBERS: dict[str, tuple[str, Callable[[int], object]]] = {
    **dict.fromkeys(INTEGERS, ("CAST({} AS BIGINT)", int)),
    "date": ("unix_date({})", lambda days: EPOCH.date() + datetime.timedelta(days)),
    "timestamp": ("unix_micros({})", lambda micros: EPOCH + datetime.timedelta(microseconds=micros)),
}
#: Of source, for each file and for each task; less where that leaves cores idle, but not so little that tasks cost more.
BYTES_PER_TASK, MIN_BYTES_PER_FILE, MIN_BYTES_PER_TASK, TASKS_PER_CORE = 64 << 20, 16 << 20, 4 << 20, 8
#: Of what a row without a key is known by.
PLACE = {"_source": "string", "_position": "bigint"}
USER_METADATA = "spark.databricks.delta.commitInfo.userMetadata"
REPARTITION = "spark.databricks.delta.merge.repartitionBeforeWrite.enabled"
#: Rows of up to so many partitions in a task are written without being sorted by them first, and, since the tasks are few and
#: not small, without being brought together by them.
FEW_PARTITIONS = 4
OPEN_FILES = {"spark.sql.maxConcurrentOutputFileWriters": str(FEW_PARTITIONS)}


@dataclass(frozen=True)
class Counts:
    """What became of the valid rows of a batch. ``conflicts`` are refused: same key, other content."""

    written: int = 0
    already_present: int = 0
    superseded: int = 0
    conflicts: int = 0


@dataclass(frozen=True)
class Survey:
    """Of a batch the values of its partition columns (None when they are too many, or there are no such columns), whether a key
    may stand in it twice, and the least and the greatest value of columns of the key."""

    values: list[tuple[object, ...]] | None
    is_repeated: bool
    bounds: dict[str, tuple[object, object]]


@dataclass(frozen=True)
class Batch:
    """Valid rows (the contract's columns, provenance, ``_modified``), which are read several times; how many, from how many
    bytes of source. ``id`` is unlike that of every other run: it tells this run's commit from others. ``origin`` is what else
    the commit is to tell of where the rows came from. ``num_tasks`` is how many tasks read the rows, where these have even
    shares; None where they may not. ``survey`` is what ``survey_rows`` says of them, if it was asked."""

    rows: DataFrame
    num_rows: int
    num_bytes: int
    id: str
    origin: Mapping[str, Any] = field(default_factory=dict)
    num_tasks: int | None = None
    survey: Survey | None = None

    @property
    def metadata(self) -> str:
        """The commit's ``userMetadata``."""
        return json.dumps({"batch": self.id, **self.origin}, sort_keys=True)


def write_rows(spark: SparkSession, lake: Lake, contract: Contract, batch: Batch) -> tuple[Counts, DataFrame | None]:
    """Merges a batch into the contract's table, which is made when it is missing.

    Returns the counts, and of conflicts ``_source, _position, _stored``. On a local file system the caller holds the table's
    lock; elsewhere another writer's commit in between makes the merge run again. Raises BusyError when that has no end."""
    with ThreadPoolExecutor(1) as pool:  # the table's log and the rows keep different parts of a machine waiting
        surveying = pool.submit(lambda: batch.survey or survey_rows(batch.rows, contract))
        table = create_table(spark, lake, contract)
        survey = surveying.result()
    before = table_version(lake, contract.table)[1]
    _merge(table, lake, contract, batch, _winners(batch, contract, survey), survey)
    inserted = _num_inserted(lake, contract, before, batch.metadata)
    if contract.repeated_key == "keep" and inserted == batch.num_rows:
        return Counts(written=inserted), None  # every row is there, so no key was twice and none was known
    stored = DeltaTable.forPath(spark, lake.storage.uri(*lake.table(contract.table))).toDF()
    return judge(batch.rows, stored.alias("old").where(_condition(survey, contract, "old")), contract)


def survey_rows(rows: DataFrame, contract: Contract) -> Survey:
    """What ``write_rows`` has to know of valid rows before it merges them."""
    types = {**{column.name: column.type for column in contract.columns}, **PLACE}
    columns = [quote_name(name) for name in contract.partition_by]
    spanned = [name for name in dict.fromkeys((*key_of(contract), *contract.partition_by)) if types[name] in NUMBERS]
    numbers = {f"_of_{name}": NUMBERS[types[name]][0].format(quote_name(name)) for name in spanned}
    each = rows.selectExpr(*columns, f"xxhash64({names(contract.key)}) AS _hash" if contract.key else "1 AS _count",
                           *(f"{number} AS {quote_name(name)}" for name, number in numbers.items()))  # fmt: skip
    if contract.key:
        each = each.groupBy(*columns, "_hash", *map(quote_name, numbers)).agg(F.count("*").alias("_count"))
    ends = [end(quote_name(name)).alias(f"_{end.__name__}{name}") for name in numbers for end in (F.min, F.max)]
    counted = each.groupBy(*columns).agg(F.max("_count").alias("_count"), *ends)
    # As texts, where Python's dates end earlier than Spark's.
    dated = [f"CAST({c} AS STRING)" if types[n] in DATED else c for c, n in zip(columns, contract.partition_by, strict=True)]
    others = (quote_name(name) for name in counted.columns[len(columns) :])
    found = counted.selectExpr(*dated, *others).limit(MAX_LITERALS + 1).collect()
    found = [row for row in found if row["_count"] is not None]  # of no rows, and no partitions, there is one row of nulls
    values = [tuple(row)[: len(columns)] for row in found] if columns and len(found) <= MAX_LITERALS else None
    if len(found) > MAX_LITERALS:
        found = each.groupBy().agg(F.max("_count").alias("_count"), *ends).collect()
    else:  # partitions are told by their values
        spanned = [name for name in spanned if name not in contract.partition_by]
    bounds: dict[str, tuple[object, object]] = {}
    for name in spanned if found else ():
        value_of = NUMBERS[types[name]][1]
        ends_of = (min(row[f"_min_of_{name}"] for row in found), max(row[f"_max_of_{name}"] for row in found))
        bounds[name] = (value_of(ends_of[0]), value_of(ends_of[1]))
    return Survey(values, bool(contract.key) and any(row["_count"] > 1 for row in found), bounds)


def _winners(batch: Batch, contract: Contract, survey: Survey) -> DataFrame:
    """Of each key the row that stands, shuffled once: by the table's partitions, each cut by the key's hash into buckets of
    bounded size. That brings rows of one key together, and each partition and bucket is a file of one task. Rows that lie in
    even shares already, each key once, are not moved where the files are as large without it."""
    cores = batch.rows.sparkSession.sparkContext.defaultParallelism
    num_partitions = len(survey.values) if survey.values else 1
    each = batch.num_bytes / num_partitions
    # Cut further where cores would idle, but for files that would be small.
    buckets = max(1, math.ceil(each / BYTES_PER_TASK), min(math.ceil(cores / num_partitions), int(each / MIN_BYTES_PER_FILE)))
    is_even = batch.num_tasks is not None and batch.num_tasks <= max(buckets, int(each / MIN_BYTES_PER_FILE))
    if is_even and not survey.is_repeated and num_partitions <= FEW_PARTITIONS:
        return batch.rows
    hashed = batch.rows.selectExpr("*", f"xxhash64({names(key_of(contract))}) AS _hash")
    placed = hashed.selectExpr("*", f"pmod(_hash, {buckets}) AS _bucket")
    size = min(BYTES_PER_TASK, max(MIN_BYTES_PER_TASK, batch.num_bytes // (TASKS_PER_CORE * cores)))
    # A number of tasks is kept as it is said: Spark, choosing one, would leave cores idle at the end.
    spread = placed.repartition(math.ceil(batch.num_bytes / size) or 1, *map(quote_name, contract.partition_by), "_bucket")
    if not survey.is_repeated:
        return spread
    return with_rank_in_key(spread, contract, within=(*contract.partition_by, "_bucket", "_hash")).where("_rank = 1")


def _merge(table: DeltaTable, lake: Lake, contract: Contract, batch: Batch, winners: DataFrame,
           survey: Survey) -> None:  # fmt: skip
    spark = winners.sparkSession
    columns = column_names(contract)
    new = winners.selectExpr(*map(quote_name, columns)).alias("new")
    within = _condition(survey, contract, "old")
    same = f"{within} AND {_same_key(contract, 'old', 'new')}"
    touched = within if survey.values is None else _of_partitions(survey.values, contract, "old")
    is_few = survey.values is not None and len(survey.values) <= FEW_PARTITIONS

    def run() -> None:
        # Into partitions without a row nothing is joined, so what comes is spread as it is to be written.
        is_spread = is_few or table_version(lake, contract.table)[1] == 0 or table.toDF().alias("old").where(touched).isEmpty()
        merge = table.alias("old").merge(new, same)
        if contract.repeated_key == "replace":
            order = newest_last(contract)
            merge = merge.whenMatchedUpdateAll(f"struct({_of('new', order)}) > struct({_of('old', order)})")
        settings = {USER_METADATA: batch.metadata, REPARTITION: str(not is_spread).lower()}
        with session_settings(spark, {**settings, **OPEN_FILES, **TASKS_BY_SIZE, **_no_dictionary(contract)}):
            merge.whenNotMatchedInsertAll().execute()

    run_again_on_conflict(run, f"table '{contract.table}'", spread=int(batch.id[:4], 16) / 0xFFFF)


def _no_dictionary(contract: Contract) -> dict[str, str]:
    """Of these columns hardly a value stands twice: Parquet would fill a dictionary as large as what it saves."""
    moments = {contract.event_time, *(column.known_at for column in contract.columns)} - {None}
    return {f"parquet.enable.dictionary#{name}": "false" for name in ("_position", "_content_hash", *sorted(map(str, moments)))}


def _num_inserted(lake: Lake, contract: Contract, before: int, metadata: str) -> int | None:
    """The rows that a batch's commit added, from the log itself; None when it cannot be told."""
    for actions in read_commits(lake, contract.table, before):
        if metadata in (a["commitInfo"].get("userMetadata") for a in actions if "commitInfo" in a):
            stats = [a["add"].get("stats") for a in actions if "add" in a]
            return None if None in stats else sum(json.loads(text)["numRecords"] for text in stats)
    return None


def _of(alias: str, columns: tuple[str, ...]) -> str:
    return ", ".join(f"{alias}.{quote_name(name)}" for name in columns)


def _same_key(contract: Contract, old: str, new: str) -> str:
    return " AND ".join(f"{old}.{quote_name(name)} = {new}.{quote_name(name)}" for name in key_of(contract))


def _condition(survey: Survey, contract: Contract, alias: str) -> str:
    """Where the batch's keys may be stored. Names partitions and bounds as literals: Delta prunes by nothing else; a join on the
    columns reads the whole table."""
    bounds = [f"{alias}.{quote_name(name)} BETWEEN {literal(least)} AND {literal(most)}"
              for name, (least, most) in survey.bounds.items()]  # fmt: skip
    return " AND ".join([_of_partitions(survey.values, contract, alias), *bounds])


def _of_partitions(values: list[tuple[object, ...]] | None, contract: Contract, alias: str) -> str:
    if values is None:
        return "true"
    columns = [f"{alias}.{quote_name(name)}" for name in contract.partition_by]
    types = [contract.require(name, "partitioning").type for name in contract.partition_by]
    typed = [[f"{t} {literal(v)}" if t in DATED else literal(v) for v, t in zip(value, types, strict=True)] for value in values]
    if len(columns) == 1:
        return f"{columns[0]} IN ({', '.join(value for (value,) in typed)})"
    rows = (" AND ".join(f"{name} = {v}" for name, v in zip(columns, value, strict=True)) for value in typed)
    return "(" + " OR ".join(f"({row})" for row in rows) + ")"


def judge(rows: DataFrame, stored: DataFrame, contract: Contract) -> tuple[Counts, DataFrame | None]:
    """Says of each row what became of it, from the table alone (``stored``, alias ``old``): so a retry says the same."""
    key = key_of(contract)
    new = rows.selectExpr(*dict.fromkeys(map(quote_name, (*key, "_source", "_position", "_content_hash")))).alias("new")
    own = "old._source = new._source AND old._position = new._position"
    other = "'superseded'" if contract.repeated_key == "replace" else (
        "if(old._content_hash = new._content_hash, 'already_present', 'conflicts')")  # fmt: skip
    judged = new.join(stored, F.expr(_same_key(contract, "old", "new")), "left").selectExpr(
        "new._source",
        "new._position",
        "concat(old._source, ':', old._position) AS _stored",
        f"if({own}, 'written', {other}) AS _fate",
    )
    counts = Counts(**{row["_fate"]: row["count"] for row in judged.groupBy("_fate").count().collect()})
    return counts, judged.where("_fate = 'conflicts'").drop("_fate") if counts.conflicts else None


def _stored(spark: SparkSession, lake: Lake, contract: Contract) -> DataFrame:
    """The table as it stands; without a row when it is missing."""
    uri = lake.storage.uri(*lake.table(contract.table))
    if not is_table(spark, uri):
        return spark.createDataFrame([], spark_schema(contract))
    validate_shape(lake, contract)
    return spark.read.format("delta").load(uri)


def foresee_rows(spark: SparkSession, lake: Lake, contract: Contract, batch: Batch) -> tuple[Counts, DataFrame | None]:
    """What ``write_rows`` would count, with nothing written. A row that is stored already counts as already present."""
    key = [quote_name(name) for name in key_of(contract)]
    ranked = with_rank_in_key(batch.rows, contract)
    first = "first(_content_hash) OVER (PARTITION BY " + ", ".join(key) + " ORDER BY _rank) AS _first_hash"
    new = ranked.selectExpr(*ranked.columns, first).alias("new")
    table = _stored(spark, lake, contract).alias("old").where(_condition(survey_rows(batch.rows, contract), contract, "old"))
    joined = new.join(table, F.expr(_same_key(contract, "old", "new")), "left")
    if contract.repeated_key == "replace":
        order = newest_last(contract)
        newer = f"old._source IS NULL OR struct({_of('new', order)}) > struct({_of('old', order)})"
        fate = f"if(_rank = 1 AND ({newer}), 'written', 'superseded')"
    else:
        fate = ("CASE WHEN old._source IS NULL AND _rank = 1 THEN 'written' WHEN coalesce(old._content_hash, _first_hash) = "
                "new._content_hash THEN 'already_present' ELSE 'conflicts' END")  # fmt: skip
    counted = joined.selectExpr(f"{fate} AS _fate").groupBy("_fate").count().collect()
    return Counts(**{row["_fate"]: row["count"] for row in counted}), None
