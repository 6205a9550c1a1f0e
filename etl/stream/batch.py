"""One micro-batch: parsed, merged into the table, refused rows into quarantine, then the state record."""

from __future__ import annotations

import datetime
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from pyspark.sql import DataFrame, SparkSession

from etl.parse import all_refused
from etl.reasons import named_counts
from etl.session import session_settings
from etl.sources.broker import Broker, Topic
from etl.sources.read import named_errors
from etl.sources.registry import WriterSchemas
from etl.stream.messages import Habits, Messages, parsed_messages
from etl.stream.start import find_gap, gap_error, validate_table
from etl.stream.state import Place, State
from etl.tables import Batch, Counts, SmallFiles, read_state, table_lock, write_quarantine, write_rows
from etl.transforms.lateness import BUCKETS
from lakering.errors import IntegrityError, SettingError, StreamRefusedError
from lakering.names import fingerprint
from schemas import Contract

log = logging.getLogger(__name__)
#: A broker that restarts is waited for so long, in seconds.
BROKER_PATIENCE_S = 120.0
#: Spark turns it off in a stream's session; within a batch, which is a query like any other, it is worth having.
SETTINGS = {"spark.sql.adaptive.enabled": "true"}


@dataclass
class StreamResult:
    """What one topic's stream into one table did. ``rows_read`` is the sum of all that became of them."""

    batches: int = 0
    rows_read: int = 0
    rows_written: int = 0
    rows_already_present: int = 0
    rows_superseded: int = 0
    rows_refused: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    lateness: dict[str, int] = field(default_factory=dict)
    watermark: str | None = None
    rows_behind: int | None = None


@dataclass
class Stream:
    """A topic on its way into a table."""

    place: Place
    contract: Contract
    broker: Broker
    state: State
    schemas: WriterSchemas | None = None
    result: StreamResult = field(default_factory=StreamResult)
    habits: Habits = field(default_factory=Habits)
    small_files: SmallFiles = field(init=False)
    beside: ThreadPoolExecutor = field(init=False)
    #: Set by a batch that was refused beyond the contract's limit, once it is in.
    refused: StreamRefusedError | None = None

    def __post_init__(self) -> None:
        self.small_files = SmallFiles(self.place.lake, self.contract)
        self.beside = ThreadPoolExecutor(1)

    def close(self) -> None:
        """Waits for what runs beside the batches."""
        self.beside.shutdown()

    def take(self, spark: SparkSession, messages: DataFrame, number: int) -> None:
        """Takes in a micro-batch. Raises what batch ingest raises, and IntegrityError for a topic that is not what it was."""
        started = time.monotonic()
        with session_settings(spark, SETTINGS), named_errors([]):
            self._parse_and_take(spark, messages, number, started)

    def _parsed(self, messages: DataFrame) -> AbstractContextManager[Messages]:
        return parsed_messages(messages, self.state.topic_id, self.contract, self.schemas or self.habits)

    def _parse_and_take(self, spark: SparkSession, messages: DataFrame, number: int, started: float) -> None:
        with self._parsed(messages) as batch:
            if self.schemas is None or not (unknown := batch.unknown_schemas) or not self.schemas.learn(unknown):
                return self._take(spark, batch, number, started)
        # With the schemas that were learnt just now. What is unknown still is asked for by the next batch that names it.
        with self._parsed(messages) as batch:
            return self._take(spark, batch, number, started)

    def _take(self, spark: SparkSession, batch: Messages, number: int, started: float) -> None:
        offsets = self.place.batch_offsets(number, self.state.starting)
        if not offsets:  # Spark's first batch, of a topic that holds nothing yet
            return
        # Now that the messages are read: what is the same topic now was the same when they were.
        topic = self._same_topic()
        lake, contract, parsed, now = self.place.lake, self.contract, batch.parsed, datetime.datetime.now(datetime.UTC)
        refused = Counter({reason: count for reason, count in parsed.reasons.items() if reason != (None, None)})
        counts, conflicts = Counts(), None
        with table_lock(spark, lake, contract.table):
            validate_table(self.place, self.state)
            if parsed.num_valid:
                ranges = self.state.with_unchanged(offsets)
                origin = {"topic": topic.name, "topic_id": topic.id, "offsets": {str(p): o for p, o in ranges.items()}}
                rows = Batch(parsed.valid, parsed.num_valid, batch.num_bytes, fingerprint([origin, uuid4().hex]), origin,
                             batch.num_tasks, batch.survey)  # fmt: skip
                counts, conflicts = self._write(spark, rows)
                # Beside what is left of this batch and the next one's parsing. Should it fail, the next merge says why.
                self.beside.submit(read_state, spark, lake, contract.table)
            if counts.conflicts:
                refused[", ".join(contract.key) or "_source, _position", "conflict"] += counts.conflicts
            if refused:
                rows_refused = all_refused(contract, parsed, conflicts)
                write_quarantine(spark, lake, contract, rows_refused, now.date(), batch.within)
            if conflicts is not None:
                self._validate_read_again(rows_refused, counts.conflicts)
            self._record(batch, offsets, counts, refused, topic, number, now)
            if counts.written:
                self.small_files.merge(spark)
        self._report(batch, counts, refused, topic, number, now, time.monotonic() - started)

    def _same_topic(self) -> Topic:
        """The topic, as it is now. Raises IntegrityError when it is not the one that was read before."""
        topic = self.broker.describe_topic(self.state.topic, BROKER_PATIENCE_S)
        if topic.id != self.state.topic_id or len(topic.end) < self.state.partitions:
            raise gap_error(find_gap(self.state, topic) or "")
        return topic

    def _validate_read_again(self, refused: DataFrame, num_conflicts: int) -> None:
        """Conflicts were read from the topic again, for their raw forms. Raises IntegrityError when they were not all there."""
        self._same_topic()
        found = refused.where("_refusal.rule = 'conflict'").count()
        if found < num_conflicts:
            raise IntegrityError(
                f"topic '{self.state.topic}' lost {num_conflicts - found:,} of {num_conflicts:,} messages in conflict with table "
                f"'{self.contract.table}' while they were taken in",
                next_step="run again: the batch is read anew, and nothing is put in twice",
            )

    def _write(self, spark: SparkSession, rows: Batch) -> tuple[Counts, DataFrame | None]:
        try:
            return write_rows(spark, self.place.lake, self.contract, rows)
        except SettingError as error:
            raise SettingError(error.message, next_step="run again: the contract is read when a stream starts, and "
                               "if it was widened since, nothing is lost; else it must be made to fit") from error  # fmt: skip

    def _record(self, batch: Messages, offsets: dict[int, tuple[int, int]], counts: Counts,
                refused: Counter[tuple[str | None, str | None]], topic: Topic, number: int,
                now: datetime.datetime) -> None:  # fmt: skip
        validate_table(self.place, self.state)
        table_id, version = self.place.table_version()
        if table_id is None and batch.parsed.num_valid:
            raise IntegrityError(f"table '{self.contract.table}' was dropped while a micro-batch was written into it",
                                 next_step="run again: the batch is read anew")  # fmt: skip
        fates = {"read": batch.parsed.reasons.total(), "written": counts.written, "already_present": counts.already_present,
                 "superseded": counts.superseded, "refused": refused.total()}  # fmt: skip
        # A batch that was recorded before and comes again, as after a kill, is not counted twice.
        again = number <= self.state.batch
        totals = self.state.totals if again else {n: c + self.state.totals.get(n, 0) for n, c in fates.items()}
        # A record that its producer dated into the future moves it no further than to this moment.
        moved = None if batch.watermark is None else min(batch.watermark, int(now.timestamp() * 1e6))
        watermark = max((w for w in (self.state.watermark, moved) if w is not None), default=None)
        # A partition that was added is read from its beginning: what it has lost by then is missing.
        state = replace(self.state, next={**dict.fromkeys(topic.end, 0), **self.state.after(offsets)},
                        batch=max(number, self.state.batch), partitions=max(len(topic.end), self.state.partitions),
                        totals=totals, watermark=watermark, checkpoint_id=self.place.checkpoint_id(), table_id=table_id,
                        table_version=version)  # fmt: skip
        self.place.tell_batch(state, offsets, fates)
        self.state = state
        self.place.write(self.state)

    def _report(self, batch: Messages, counts: Counts, refused: Counter[tuple[str | None, str | None]], topic: Topic,
                number: int, now: datetime.datetime, seconds: float) -> None:  # fmt: skip
        known = self.state.after({})
        behind = sum(max(end - known.get(p, topic.begin[p]), 0) for p, end in topic.end.items())
        age = (now.timestamp() - batch.newest / 1e6) if batch.newest is not None else 0.0
        late = sum(count for (_, rule), count in refused.items() if rule == "late")
        read, watermark = batch.parsed.reasons.total(), _moment(self.state.watermark)
        facts: dict[str, Any] = {
            "table": self.contract.table, "topic": topic.name, "batch": number, "rows": read, "written": counts.written,
            "already_present": counts.already_present, "superseded": counts.superseded, "refused": refused.total(), "late": late,
            "rows_behind": behind, "seconds_behind": round(age, 1), "watermark": watermark, "seconds": round(seconds, 2),
        }  # fmt: skip
        log.info("micro-batch", extra={"facts": facts})
        self._count(batch, counts, refused, behind)
        if refused.total() > self.contract.max_refused_share * read:
            reasons = dict(list(named_counts(refused).items())[:5])
            self.refused = StreamRefusedError(
                f"table '{self.contract.table}': {refused.total():,} of the {read:,} messages of a micro-batch from topic "
                f"'{topic.name}' break the contract, more than the {self.contract.max_refused_share:.2%} it allows; the batch is "
                f"written, these are in quarantine, and the stream stands behind them. Reasons: {reasons}",
                next_step="mend the producer or the contract; then run again, and etl/jobs/replay_quarantine.py")  # fmt: skip

    def _count(self, batch: Messages, counts: Counts, refused: Counter[tuple[str | None, str | None]], behind: int) -> None:
        result = self.result
        result.batches += 1
        result.rows_read += batch.parsed.reasons.total()
        result.rows_written += counts.written
        result.rows_already_present += counts.already_present
        result.rows_superseded += counts.superseded
        result.rows_refused += refused.total()
        for name, count in named_counts(refused).items():
            result.refused[name] = result.refused.get(name, 0) + count
        lateness = Counter(result.lateness) + Counter(batch.lateness)
        result.lateness = {name: lateness[name] for name in BUCKETS if lateness[name]}
        result.watermark, result.rows_behind = _moment(self.state.watermark), behind


def _moment(micros: int | None) -> str | None:
    if micros is None:
        return None
    try:
        return datetime.datetime.fromtimestamp(micros / 1e6, datetime.UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        return f"{micros} µs"
