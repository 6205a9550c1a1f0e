"""What a topic's messages hold, as rows for the parser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from etl.parse import ParsedRows, Reasons, kept_rows, parse
from etl.sources.read import FileGroup
from etl.sources.registry import MAX_IDS, WriterSchemas
from etl.tables import Survey, survey_rows
from etl.transforms.laid_json import Layout, find_layout
from etl.transforms.lateness import LATENESS, TOPIC, with_time_limits
from etl.transforms.message import MESSAGE_FILE
from etl.transforms.parsing import BLANK
from etl.transforms.plain_json import NOT_PLAIN
from etl.transforms.sql import literal, literals
from schemas import Contract
from schemas.expressions import quote_name

#: How a message is taken apart; ``form`` is how its raw form is written.
JSON = FileGroup("json", "json", (), is_topic=True)
#: So many messages, none of them large, tell how a topic's are laid out; when more than such a share of a batch is not, it does
#: not pay.
SAMPLE, SAMPLE_BYTES, MAX_OTHERS = 20, 1 << 20, 0.5


@dataclass(frozen=True)
class Messages:
    """The messages of a micro-batch, parsed. ``offsets`` are of each partition the first one and the one behind the last;
    ``newest`` is the latest timestamp of a record, ``watermark`` the latest event time of a valid row, taken as no later than its
    record (both in microseconds); ``lateness`` counts rows with an event time by how long after it their record was written."""

    parsed: ParsedRows
    offsets: dict[int, tuple[int, int]]
    newest: int | None
    watermark: int | None
    lateness: dict[str, int]
    num_bytes: int
    prefix: str
    num_tasks: int | None
    survey: Survey | None

    @property
    def unknown_schemas(self) -> list[int]:
        """The ids of schemas for which messages are refused, no more than are asked for at once and one."""
        if not self.parsed.reasons[None, "schema_id"]:
            return []
        rows = self.parsed.refused.where("_refusal.rule = 'schema_id'").selectExpr("CAST(_refusal.value AS BIGINT) AS id")
        return [row["id"] for row in rows.distinct().limit(MAX_IDS + 1).collect()]

    @property
    def within(self) -> str:
        """Which entries of a quarantine (alias ``old``) may be of these messages, by source and position."""
        places = [f"(old.source = {literal(f'{self.prefix}{partition}')} AND old.position BETWEEN {first} AND {end - 1})"
                  for partition, (first, end) in self.offsets.items()]  # fmt: skip
        return f"({' OR '.join(places)})"


@dataclass
class Habits:
    """How a stream's messages have been written so far: the layout that most of them have, once some were looked at."""

    layout: Layout | None = None
    is_known: bool = False

    def look(self, messages: DataFrame, contract: Contract) -> None:
        if not self.is_known:
            some = messages.where(f"octet_length(value) < {SAMPLE_BYTES}").select("value").limit(SAMPLE).collect()
            self.layout, self.is_known = find_layout((bytes(row["value"]) for row in some), contract.of_message_values), True

    def learn(self, num_others: int, num_messages: int) -> None:
        """Takes it that so many messages were not laid out as expected."""
        if num_others > num_messages * MAX_OTHERS:
            self.layout = None


def source_prefix(topic_id: str) -> str:
    """What the sources of a topic's rows begin with; the partition's number follows."""
    return f"{TOPIC}{topic_id}/"


def avro_group(topic: str) -> FileGroup:
    """Messages in Avro: their rows keep the topic, since only its schemas tell what they say."""
    return FileGroup("avro", "avro", (), header=(topic,), is_topic=True)


def judged_messages(messages: DataFrame, prefix: str, contract: Contract, written: Habits | WriterSchemas) -> DataFrame:
    """The rows of messages as Spark's connector gives them (headers included), typed and judged, as yet unread: what
    ``ParsedRows`` holds, and each row's bucket of lateness. Those of JSON that are not plain, or not in the layout, are refused
    as ``NOT_PLAIN``, to be parsed again.

    Raises SettingError for a contract that Spark cannot carry out."""
    group = _group_of(written)
    if isinstance(written, WriterSchemas):
        return _judged(_raw_forms(messages, prefix, group), contract, group, schemas=written.known)
    return _judged(_raw_forms(messages, prefix, group), contract, group, quick=True, layout=written.layout)


def _group_of(written: Habits | WriterSchemas) -> FileGroup:
    return avro_group(written.topic) if isinstance(written, WriterSchemas) else JSON


def _raw_forms(messages: DataFrame, prefix: str, group: FileGroup) -> DataFrame:
    """What quarantine holds of a message but for its refusal."""
    # A cast keeps the bytes, which are checked for UTF-8 when the text is parsed.
    return messages.selectExpr(
        f"concat({literal(prefix)}, partition) AS _source", "offset AS _position", "unix_micros(timestamp) * 1000 AS _modified",
        f"{literal(group.form)} AS _form", f"{_header(group)} AS _header", "CAST(value AS STRING) AS _raw", "key AS _key",
        "headers AS _headers", "timestamp AS _timestamp")  # fmt: skip


def _header(group: FileGroup) -> str:
    return f"array({literals(group.header)})" if group.header else "CAST(NULL AS array<string>)"


def _judged(rows: DataFrame, contract: Contract, group: FileGroup, **how: Any) -> DataFrame:
    # In the places of file, block and row the parsers hand on what a row keeps: where it came from, its record's time (ns),
    # its offset.
    placed = rows.selectExpr(MESSAGE_FILE.format("_"), "_modified AS _block", "_position AS _row", "_raw")
    judged = with_time_limits(parse(placed, group, contract, **how), contract, "_block")
    columns = [quote_name(column.name) for column in contract.columns]
    refusal = (f"CASE WHEN _raw IS NULL THEN {_of_no_column('tombstone')} "
               f"WHEN _refusal.rule = {literal(BLANK)} THEN {_of_no_column('empty')} ELSE _refusal END AS _refusal")  # fmt: skip
    told = judged.selectExpr(*columns, "_content_hash", "_file", "_block", "_row", "_raw", LATENESS, refusal)
    # Of a valid row nothing of the raw form is kept: a conflict, which is rare, reads it again.
    raw = {"_form": literal(group.form), "_header": _header(group), "_raw": "_raw", "_key": "_file.key",
           "_headers": "_file.headers", "_timestamp": "_file.timestamp"}  # fmt: skip
    return told.selectExpr(
        *columns, "_content_hash", "_file.source AS _source", "_row AS _position", "_block AS _modified",
        *(f"if(_refusal IS NULL, NULL, {value}) AS {name}" for name, value in raw.items()), "_refusal",
        "octet_length(_raw) AS _bytes", LATENESS)  # fmt: skip


@contextmanager
def parsed_messages(messages: DataFrame, topic_id: str, contract: Contract,
                    written: Habits | WriterSchemas) -> Iterator[Messages]:  # fmt: skip
    """The rows of a micro-batch, kept while the block lasts. Each message is read once, and most are parsed once.

    Raises SettingError for a contract that Spark cannot carry out."""
    prefix = source_prefix(topic_id)
    again: list[Callable[[DataFrame], DataFrame]] = []
    if isinstance(written, Habits):
        written.look(messages, contract)
        again = [lambda rows: _judged(rows, contract, JSON, quick=True)] if written.layout else []
        again.append(lambda rows: _judged(rows, contract, JSON))
    left: list[int] = []
    surveys: list[Survey] = []

    def tell(kept: DataFrame) -> list[Row]:
        with ThreadPoolExecutor(1) as pool:  # two small queries: more of their time is Spark's planning than their tasks'
            surveying = pool.submit(survey_rows, kept.where("_refusal IS NULL"), contract)
            told = _tally(kept, contract)
            surveys.append(surveying.result())
        left.append(sum(row["count"] for row in told if row["rule"] == NOT_PLAIN))
        return told

    judged = judged_messages(messages, prefix, contract, written)
    with kept_rows(judged, tell, *again, spread_by="_position") as kept:
        tally = kept.told
        if isinstance(written, Habits):
            written.learn(left[0], sum(row["count"] for row in tally))
        reasons: Reasons = Counter()
        lateness: Counter[str] = Counter()
        offsets: dict[int, tuple[int, int]] = {}
        for row in tally:
            reasons[row["column"], row["rule"]] += row["count"]
            if row["_lateness"] is not None:
                lateness[row["_lateness"]] += row["count"]
            partition = int(row["_source"].removeprefix(prefix))
            first, end = offsets.get(partition, (row["first"], row["last"] + 1))
            offsets[partition] = (min(first, row["first"]), max(end, row["last"] + 1))
        yield Messages(
            ParsedRows(kept.rows.drop(LATENESS, "_bytes"), reasons, _raw_forms(messages, prefix, _group_of(written))),
            dict(sorted(offsets.items())),
            max((row["newest"] for row in tally), default=None),
            max((row["watermark"] for row in tally if row["watermark"] is not None), default=None),
            dict(lateness), sum(row["bytes"] or 0 for row in tally), prefix, kept.num_tasks,
            surveys[0] if len(surveys) == 1 else None)  # fmt: skip


def _tally(kept: DataFrame, contract: Contract) -> list[Row]:
    event = "NULL"
    if contract.event_time:
        moment = f"unix_micros(CAST({quote_name(contract.event_time)} AS TIMESTAMP))"
        event = f"if(_refusal IS NULL, least({moment}, _modified div 1000), NULL)"
    return kept.groupBy("_source", "_refusal.column", "_refusal.rule", "_lateness").agg(
        F.count("*").alias("count"), F.min("_position").alias("first"), F.max("_position").alias("last"),
        F.expr("max(_modified) div 1000").alias("newest"), F.expr(f"max(CAST({event} AS BIGINT))").alias("watermark"),
        F.sum("_bytes").alias("bytes")).collect()  # fmt: skip


def _of_no_column(rule: str) -> str:
    nothing = "CAST(NULL AS STRING)"
    return f"named_struct('column', {nothing}, 'rule', {literal(rule)}, 'value', {nothing})"
