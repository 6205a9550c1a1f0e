"""Refused rows, judged again under today's contract: what passes goes into the table and is marked in quarantine.

Order of commits: table, then marks. A run that was killed between is finished by running it again, since the table itself
says of each row what became of it.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import reduce

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from etl.parse import ParsedRows, parse
from etl.reasons import Selection, name_reason
from etl.sources.read import FileGroup, named_errors
from etl.sources.registry import MAX_IDS, WriterSchemas
from etl.tables import (
    Batch,
    Counts,
    foresee_rows,
    has_quarantine,
    mark_replayed,
    read_quarantine,
    table_lock,
    write_rows,
)
from etl.transforms.avro import wire_id
from etl.transforms.lateness import TOPIC, with_time_limits
from etl.transforms.message import MESSAGE_FILE
from etl.transforms.parsing import compare_header
from etl.transforms.sql import literal, literals
from lakering.lake import Lake
from lakering.names import fingerprint
from schemas import Contract
from schemas.expressions import quote_name

IS_MESSAGE = f"startswith(source, '{TOPIC}')"
#: Why a row cannot be judged by what was kept of it.
OBSTACLE = f"""CASE WHEN raw_is_cut AND {IS_MESSAGE} THEN 'cut: read the topic again with --from earliest'
                   WHEN raw_is_cut THEN 'cut: read the file again with --reread'
                   WHEN form = 'image' THEN 'image: read the file again with --reread'
                   WHEN form = 'cells' AND rule = 'utf8' THEN 'utf8'
                   WHEN rule IN ('tombstone', 'empty') THEN rule END"""


@dataclass
class ReplayResult:
    """What one table's replay did. ``rows_read``, each row once however often it was refused, is the sum of all that became
    of them; ``entries_marked`` counts what quarantine holds of those that are in the table now."""

    rows_read: int = 0
    rows_written: int = 0
    rows_already_present: int = 0
    rows_superseded: int = 0
    rows_still_refused: int = 0
    still_refused: dict[str, int] = field(default_factory=dict)
    entries_marked: int = 0

    def refuse(self, reason: str, count: int) -> None:
        self.still_refused[reason] = self.still_refused.get(reason, 0) + count
        self.rows_still_refused += count


def replay_table(
    spark: SparkSession,
    lake: Lake,
    contract: Contract,
    selection: Selection,
    *,
    now: datetime.datetime,
    dry_run: bool = False,
    schemas: Iterable[WriterSchemas] = (),
) -> ReplayResult:
    """Puts those of the selected rows that were not replayed yet, and pass the contract as it is now, into its table. With
    ``dry_run`` all is counted and nothing written. ``schemas`` are those of the table's Avro topics.

    Raises SettingError when the contract and its table differ, or Spark cannot carry it out; LakeringError when a schema
    registry does not answer."""
    result = ReplayResult()
    with nullcontext() if dry_run else table_lock(spark, lake, contract.table):
        if has_quarantine(spark, lake, contract.table):
            rows = _open_rows(read_quarantine(spark, lake, contract.table), contract, selection)
            by_topic = {known.topic: known for known in schemas}
            groups, num_bytes = _readable_groups(rows, contract, by_topic, result)
            if groups:
                run = fingerprint([now.isoformat(), "replay", contract.table])
                _learn_schemas(rows, by_topic)
                with _parsed(rows, groups, contract, by_topic) as parsed, named_errors([]):
                    _replay(spark, lake, contract, parsed, Batch(parsed.valid, parsed.num_valid, num_bytes, run), now, dry_run,
                            result)  # fmt: skip
    result.still_refused = dict(sorted(result.still_refused.items(), key=lambda item: (-item[1], item[0])))
    return result


def _replay(spark: SparkSession, lake: Lake, contract: Contract, parsed: ParsedRows, batch: Batch, now: datetime.datetime,
            dry_run: bool, result: ReplayResult) -> None:  # fmt: skip
    for (column, rule), count in parsed.reasons.items():
        if rule is not None:
            result.refuse(name_reason(column, rule), count)
    if not batch.num_rows:
        return
    counts, conflicts = (foresee_rows if dry_run else write_rows)(spark, lake, contract, batch)
    _count(counts, contract, result)
    if not dry_run and counts.conflicts < batch.num_rows:
        there = batch.rows.select("_source", "_position", "_form")
        if conflicts is not None:
            there = there.join(conflicts, ["_source", "_position"], "left_anti")
        result.entries_marked = mark_replayed(spark, lake, contract.table, there, now.date())


def _count(counts: Counts, contract: Contract, result: ReplayResult) -> None:
    result.rows_written, result.rows_already_present = counts.written, counts.already_present
    result.rows_superseded = counts.superseded
    if counts.conflicts:
        result.refuse(name_reason(", ".join(contract.key) or "_source, _position", "conflict"), counts.conflicts)


def _open_rows(quarantine: DataFrame, contract: Contract, selection: Selection) -> DataFrame:
    """Each selected row once, though versions of the contract refused it several times: as today's version kept it, else as
    the newest entry did. ``_obstacle`` says why it cannot be judged, if so."""
    entries = quarantine.where("replayed_on IS NULL").where(selection.condition)
    order = f"contract_version = {literal(contract.version)} DESC, day DESC, contract_version DESC"
    # By form too: of a file that was once read as lines and once as records, the same number means another row.
    ranked = f"row_number() OVER (PARTITION BY source, position, form ORDER BY {order}) AS _rank"
    return entries.selectExpr("*", ranked).where("_rank = 1").selectExpr("*", f"{OBSTACLE} AS _obstacle")


def _readable_groups(rows: DataFrame, contract: Contract, schemas: Mapping[str, WriterSchemas],
                     result: ReplayResult) -> tuple[list[FileGroup], int]:  # fmt: skip
    """Rows by what must be alike for them to be parsed together, and their bytes; the others are counted as still refused."""
    tally = rows.groupBy("form", "header", "_obstacle", F.expr(IS_MESSAGE).alias("is_topic")).agg(
        F.count("*").alias("rows"), F.sum(F.octet_length("raw")).alias("bytes")).collect()  # fmt: skip
    groups, num_bytes = [], 0
    for row in tally:
        result.rows_read += row["rows"]
        obstacle = row["_obstacle"] or _fault_of_header(row["form"], row["header"], contract, schemas)
        if obstacle:
            result.refuse(obstacle, row["rows"])
        else:
            format = row["form"] if row["form"] in ("json", "avro") else "csv"
            groups.append(FileGroup(format, row["form"], (), header=tuple(row["header"] or ()), is_topic=row["is_topic"]))
            num_bytes += row["bytes"]
    return groups, num_bytes


def _learn_schemas(rows: DataFrame, schemas: Mapping[str, WriterSchemas]) -> None:
    """Asks the registry for schemas that it may have by now."""
    for topic, known in schemas.items():
        if known.has_ids:
            named = rows.where(f"form = 'avro' AND get(header, 0) = {literal(topic)} AND _obstacle IS NULL")
            ids = named.selectExpr(f"{wire_id('raw')} AS id").where("id IS NOT NULL").distinct().limit(MAX_IDS + 1).collect()
            known.learn(row["id"] for row in ids)


def _fault_of_header(form: str, header: list[str] | None, contract: Contract, schemas: Mapping[str, WriterSchemas]) -> str | None:
    if form == "avro":
        (topic,) = header or [""]
        return None if topic in schemas else f"the recipe has no topic '{topic}' of format avro for this table"
    missing, extra = compare_header(header, contract) if header else ([], [])
    if missing:
        return f"the header lacks {', '.join(missing)}"
    refused = extra and contract.dialect.extra_columns == "refuse"
    return f"the header has {', '.join(extra)}, which the contract does not" if refused else None


@contextmanager
def _parsed(rows: DataFrame, groups: list[FileGroup], contract: Contract,
            schemas: Mapping[str, WriterSchemas]) -> Iterator[ParsedRows]:  # fmt: skip
    parts = [_parse_group(rows, group, contract, schemas) for group in groups]
    cached = reduce(DataFrame.unionByName, parts).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        tally = cached.groupBy("_refusal.column", "_refusal.rule").count().collect()
        yield ParsedRows(cached, Counter({(row["column"], row["rule"]): row["count"] for row in tally}))
    finally:
        cached.unpersist()


def _parse_group(rows: DataFrame, group: FileGroup, contract: Contract, schemas: Mapping[str, WriterSchemas]) -> DataFrame:
    header = f"array({literals(group.header)})" if group.header else "CAST(NULL AS array<string>)"
    text = "from_json(CAST(raw AS STRING), 'array<string>') AS _cells" if group.form == "cells" else "CAST(raw AS STRING) AS _raw"
    # In the places of file, block and row the parsers hand on what the row keeps: its source, its file's time, its position;
    # of a message what it held beside its value, too.
    asked = rows.where(f"_obstacle IS NULL AND form = {literal(group.form)} AND header <=> {header} "
                       f"AND {IS_MESSAGE} = {literal(group.is_topic)}")  # fmt: skip
    file, source = (MESSAGE_FILE.format(""), "_file.source") if group.is_topic else ("source AS _file", "_file")
    known = schemas[group.header[0]].known if group.form == "avro" else None
    parsed = parse(asked.selectExpr(file, "modified AS _block", "position AS _row", text), group, _as_written(contract, group),
                   schemas=known)  # fmt: skip
    parsed = with_time_limits(parsed, contract, "_block" if group.is_topic else "CAST(NULL AS BIGINT)")
    columns = [quote_name(column.name) for column in contract.columns]
    places = (f"{source} AS _source", "_row AS _position", "_block AS _modified", f"{literal(group.form)} AS _form")
    return parsed.selectExpr(*columns, *places, "_content_hash", "_refusal")


def _as_written(contract: Contract, group: FileGroup) -> Contract:
    """A row of Parquet (JSON with a header) was written by ingest, timestamps in ISO format whatever the contract's files use."""
    if group.form == "json" and group.header:
        return replace(contract, dialect=replace(contract.dialect, timestamp_format=None))
    return contract
