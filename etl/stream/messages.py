"""What a topic's messages hold, as rows for the parser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from etl.parse import ParsedRows, Reasons, kept_rows, parse
from etl.sources.read import FileGroup
from etl.transforms.laid_json import Layout, find_layout
from etl.transforms.lateness import LATENESS, TOPIC, with_time_limits
from etl.transforms.parsing import BLANK
from etl.transforms.plain_json import NOT_PLAIN
from etl.transforms.sql import literal
from schemas import Contract
from schemas.expressions import quote_name

#: How a message is taken apart; ``form`` is how its raw form is written.
JSON = FileGroup("json", "json", ())
#: So many messages tell how a topic's are laid out; when more than such a share of a batch is not, it does not pay.
SAMPLE, MAX_OTHERS = 20, 0.5


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
            some = messages.where("value IS NOT NULL").select("value").limit(SAMPLE).collect()
            self.layout, self.is_known = find_layout((bytes(row["value"]) for row in some), contract), True

    def learn(self, num_others: int, num_messages: int) -> None:
        """Takes it that so many messages were not laid out as expected."""
        if num_others > num_messages * MAX_OTHERS:
            self.layout = None


def source_prefix(topic_id: str) -> str:
    """What the sources of a topic's rows begin with; the partition's number follows."""
    return f"{TOPIC}{topic_id}/"


def judged_messages(messages: DataFrame, prefix: str, contract: Contract, layout: Layout | None) -> DataFrame:
    """The rows of messages as Spark's connector gives them (headers included), typed and judged, as yet unread: what
    ``ParsedRows`` holds, and each row's bucket of lateness. Those that are not plain JSON, or not in the layout, are refused as
    ``NOT_PLAIN``, and have to be parsed again.

    Raises SettingError for a contract that Spark cannot carry out."""
    # A cast keeps the bytes, which are checked for UTF-8 when the text is parsed.
    rows = messages.selectExpr(
        f"concat({literal(prefix)}, partition) AS _source", "offset AS _position", "unix_micros(timestamp) * 1000 AS _modified",
        "CAST(value AS STRING) AS _raw", "key AS _key", "headers AS _headers", "timestamp AS _timestamp")  # fmt: skip
    return _judged(rows, contract, quick=True, layout=layout)


def _judged(rows: DataFrame, contract: Contract, *, quick: bool = False, layout: Layout | None = None) -> DataFrame:
    # In the places of file, block and row the parsers hand on what a row keeps: where it came from, its record's time (ns),
    # its offset.
    message = "named_struct('source', _source, 'key', _key, 'headers', _headers, 'timestamp', _timestamp) AS _file"
    placed = rows.selectExpr(message, "_modified AS _block", "_position AS _row", "_raw")
    judged = with_time_limits(parse(placed, JSON, contract, quick=quick, layout=layout), contract, "_block")
    columns = [quote_name(column.name) for column in contract.columns]
    nothing = (f"CASE WHEN _raw IS NULL THEN {_of_no_column('tombstone')} "
               f"WHEN _refusal.rule = {literal(BLANK)} THEN {_of_no_column('empty')} ELSE _refusal END AS _refusal")  # fmt: skip
    return judged.selectExpr(
        *columns, "_content_hash", "_file.source AS _source", "_row AS _position", "_block AS _modified", "'json' AS _form",
        "CAST(NULL AS array<string>) AS _header", "_raw", nothing, "_file.key AS _key", "_file.headers AS _headers",
        "_file.timestamp AS _timestamp", LATENESS)  # fmt: skip


@contextmanager
def parsed_messages(messages: DataFrame, topic_id: str, contract: Contract, habits: Habits) -> Iterator[Messages]:
    """The rows of a micro-batch, kept while the block lasts. Each message is read once, and most are parsed once.

    Raises SettingError for a contract that Spark cannot carry out."""
    prefix = source_prefix(topic_id)
    habits.look(messages, contract)
    left: list[int] = []

    def tell(kept: DataFrame) -> list[Row]:
        told = _tally(kept, contract)
        left.append(sum(row["count"] for row in told if row["rule"] == NOT_PLAIN))
        return told

    again = [lambda rows: _judged(rows, contract, quick=True)] if habits.layout else []
    with kept_rows(judged_messages(messages, prefix, contract, habits.layout), tell, *again,
                   lambda rows: _judged(rows, contract)) as (kept, tally):  # fmt: skip
        habits.learn(left[0], sum(row["count"] for row in tally))
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
            ParsedRows(kept.drop("_lateness"), reasons), dict(sorted(offsets.items())),
            max((row["newest"] for row in tally), default=None),
            max((row["watermark"] for row in tally if row["watermark"] is not None), default=None),
            dict(lateness), sum(row["bytes"] or 0 for row in tally), prefix)  # fmt: skip


def _tally(kept: DataFrame, contract: Contract) -> list[Row]:
    event = "NULL"
    if contract.event_time:
        moment = f"unix_micros(CAST({quote_name(contract.event_time)} AS TIMESTAMP))"
        event = f"if(_refusal IS NULL, least({moment}, _modified div 1000), NULL)"
    return kept.groupBy("_source", "_refusal.column", "_refusal.rule", "_lateness").agg(
        F.count("*").alias("count"), F.min("_position").alias("first"), F.max("_position").alias("last"),
        F.expr("max(_modified) div 1000").alias("newest"), F.expr(f"max(CAST({event} AS BIGINT))").alias("watermark"),
        F.sum(F.octet_length("_raw")).alias("bytes")).collect()  # fmt: skip


def _of_no_column(rule: str) -> str:
    nothing = "CAST(NULL AS STRING)"
    return f"named_struct('column', {nothing}, 'rule', {literal(rule)}, 'value', {nothing})"
