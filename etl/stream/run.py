"""The queries of a stream job: one for each topic of each table, in one session, until all is drained or someone asks them
to stop."""

from __future__ import annotations

import gc
import json
import re
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming import StreamingQuery

from etl.sources.broker import Broker
from etl.sources.registry import WriterSchemas, open_schemas
from etl.stream.batch import Stream, StreamResult
from etl.stream.start import begin, find_gap, gap_error
from etl.stream.state import Place
from etl.transforms.avro import misfits
from lakering.errors import LakeringError, SettingError
from lakering.lock import storage_lock
from recipes import Recipe
from recipes.kafka import Kafka
from recipes.settings import TopicSource
from schemas import Contract
from schemas.avro import UnusableSchemaError, WriterSchema

POLL_S, PATIENCE_S, COMMIT_PATIENCE_S = 0.2, 10.0, 60.0
#: At a topic's end a broker waits for more (500 ms by default), and with it the consumer that reads ahead, and its task. With
#: each poll, of 500 messages by default, Spark asks the broker twice where the partition begins and ends: so it is to be a fetch.
READING = {"kafka.fetch.max.wait.ms": "10", "kafka.max.poll.records": "10000"}
#: In the trace of what ended a task: its consumer did not get what it was to read.
KAFKA = re.compile(r"org\.apache\.kafka|KAFKA_DATA_LOSS|kafka010\.Kafka\w+Exception")
#: Py4j ties a Java object and its methods into a cycle. Python looks for cycles ever more rarely, and as long the JVM keeps what
#: batches made (24 MB after seven minutes): so after so many batches it is told to look.
COLLECT_EVERY = 10
BROKEN_CHECKPOINT = ("Malformed log file", "Incomplete log file", "Failed to read log file", "log files should exist")


class Stopping(Exception):
    """A batch that is not to begin, since the job is about to end."""


@dataclass(frozen=True)
class Start:
    """How a job's queries begin and end: with ``every`` None, once all that is there is in; else a trigger such as
    ``5 seconds``. A broker that does not answer at the start is waited for, ``wait`` seconds at most."""

    every: str | None
    start: str | None = None
    accept_gap: bool = False
    wait: float = PATIENCE_S


class Query:
    """One topic's stream, as Spark runs it."""

    def __init__(self, spark: SparkSession, stream: Stream, source: TopicSource, kafka: Kafka, every: str | None) -> None:
        self.stream = stream
        self._gate, self._stopping = threading.Lock(), threading.Event()
        self._failure: BaseException | None = None
        self._was_stopped = False
        place, state = stream.place, stream.state
        rows = spark.readStream.format("kafka").options(**kafka.for_spark()).option("subscribe", source.topic)
        # Looked at for the first batch alone, and then to name each partition. Of one that is added later Spark takes all.
        rows = rows.option("startingOffsets", _offsets(source.topic, state.starting)).option("includeHeaders", "true")
        rows = rows.option("maxOffsetsPerTrigger", _most(stream, source)).option("failOnDataLoss", "true")
        rows = rows.option("kafka.isolation.level", "read_committed").options(**READING)
        writer = rows.load().writeStream.foreachBatch(self._take)
        writer = writer.option("checkpointLocation", place.lake.storage.uri(*place.checkpoint))
        writer = writer.queryName(f"{source.topic} into {place.table}")
        trigger: dict[str, Any] = {"availableNow": True} if every is None else {"processingTime": every}
        self._query: StreamingQuery = writer.trigger(**trigger).start()

    def _take(self, messages: DataFrame, number: int) -> None:
        with self._gate:
            if self._stopping.is_set() or self.stream.refused is not None:
                self._was_stopped = True
                raise Stopping("the job is about to end")
            try:
                self.stream.take(messages.sparkSession, messages, number)
            except BaseException as error:
                self._failure = error  # whole, where Spark would hand on its text
                raise
            if number % COLLECT_EVERY == 0:
                gc.collect()

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return not self._query.isActive

    def halt(self) -> None:
        """From here on no batch begins."""
        self._stopping.set()

    def stop(self) -> None:
        """Ends it between two batches: the one at hand is finished, Spark's note of it too."""
        self.halt()
        with self._gate:
            number = self.stream.state.batch
        place, deadline = self.stream.place, time.monotonic() + COMMIT_PATIENCE_S
        while (self._query.isActive and number >= 0 and time.monotonic() < deadline
               and not place.lake.storage.exists(*place.checkpoint, "commits", str(number))):  # fmt: skip
            time.sleep(POLL_S / 4)
        self._query.stop()

    @property
    def failed(self) -> bool:
        return self._failure is not None or self._query.exception() is not None or self.stream.refused is not None

    def raise_failure(self) -> None:
        """Raises what ended it, if it was not asked to."""
        failure, error = self._failure, self._query.exception()
        if isinstance(failure, PySparkException | Py4JJavaError) and KAFKA.search(str(failure)) and (lost := self._lost()):
            raise lost from failure
        if failure is not None:
            raise failure
        if error is not None and not self._was_stopped:
            is_broken = any(words in str(error) for words in BROKEN_CHECKPOINT)
            raise (self.stream.place.broken() if is_broken else self._lost()) or self._ended(error)

    def _lost(self) -> LakeringError | None:
        """What went wrong with Kafka, if it did: the broker is gone, or messages are."""
        place, state = self.stream.place, self.stream.state
        try:
            topic = self.stream.broker.describe_topic(state.topic, PATIENCE_S)
        except LakeringError as unreachable:
            return unreachable
        gap = find_gap(state, topic, place.unfinished(state.starting))
        return gap_error(gap) if gap else None

    def _ended(self, error: BaseException) -> LakeringError:
        place = self.stream.place
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        ended = LakeringError(f"the stream of topic '{place.topic}' into table '{place.table}' ended: {reason}",
                              next_step="run again: it goes on where it stopped")  # fmt: skip
        ended.__cause__ = error
        return ended


def _most(stream: Stream, source: TopicSource) -> int:
    """How many messages a micro-batch takes at most."""
    most = source.max_offsets_per_trigger
    if source.max_bytes_per_trigger is None:
        return most
    mean = stream.broker.mean_message_bytes(stream.broker.describe_topic(source.topic))
    return min(most, max(1, int(source.max_bytes_per_trigger / mean))) if mean else most


def _offsets(topic: str, starting: dict[int, int]) -> str:
    return json.dumps({topic: {str(partition): offset for partition, offset in starting.items()}})


def stream_tables(spark: SparkSession, recipe: Recipe, contracts: dict[str, Contract], how: Start, stop: threading.Event,
                  results: dict[str, StreamResult]) -> None:  # fmt: skip
    """Streams the topics of the tables until ``stop`` is set, or all is drained. ``results``, by table and topic, are filled as
    far as it comes, failed or not.

    Raises SettingError for a recipe without topics, LakeringError for a broker that cannot be reached, BusyError when another
    job holds a checkpoint, IntegrityError when a checkpoint or messages are lost, StreamRefusedError when too many messages of
    a batch broke the contract (the batch is in)."""
    sources = [(name, source) for name in contracts for source in recipe.settings.tables[name].topics]
    if not sources:
        raise SettingError(f"no table of {recipe.path} that was asked for has a topic among its sources",
                           next_step="add {topic: NAME, format: json} to its sources, or run ingest_batch.py")  # fmt: skip
    if recipe.kafka is None:
        raise recipe.document.error((), "key 'kafka' is missing, such as kafka: {servers: 'localhost:9092'}")
    broker = Broker(recipe.kafka)
    with ExitStack() as held:
        streams = []
        for name, source in sources:
            place = Place(recipe.lake, name, source.topic)
            what = f"the stream of topic '{source.topic}' into table '{name}'"
            held.enter_context(storage_lock(recipe.lake.storage, *place.folder, what=what, wait=False))
            try:
                topic = broker.describe_topic(source.topic, how.wait, stop.is_set)
            except LakeringError:
                if stop.is_set():
                    return
                raise
            state = begin(place, topic, how.start, how.accept_gap)
            schemas = open_schemas(recipe, source)
            _validate_schema(spark, recipe, source, contracts[name], schemas)
            result = results.setdefault(f"{name} from {source.topic}", StreamResult())
            stream = Stream(place, contracts[name], broker, state, schemas, result)
            held.callback(stream.close)
            streams.append((stream, source))
        queries: list[Query] = []
        try:
            for stream, source in streams:
                queries.append(Query(spark, stream, source, recipe.kafka, how.every))
            while not stop.is_set() and not _to_end(queries, how.every is None):
                stop.wait(POLL_S)
        finally:
            for query in queries:
                query.halt()
            for query in queries:
                query.stop()
        for query in queries:
            query.raise_failure()
        for stream, _ in streams:
            if stream.refused is not None:
                raise stream.refused


def _validate_schema(spark: SparkSession, recipe: Recipe, source: TopicSource, contract: Contract,
                     schemas: WriterSchemas | None) -> None:  # fmt: skip
    """Raises SettingError for a ``schema_file`` whose messages would all be refused."""
    schema = schemas.known.get(None) if schemas is not None else None
    if not isinstance(schema, WriterSchema):
        return
    path = recipe.resolve(str(source.schema_file))
    try:
        found = misfits(spark.range(0), contract.of_message_values, schema)
    except UnusableSchemaError as error:
        found = [str(error)]
    if found:
        raise SettingError(f"schema_file {path} does not fit table '{contract.table}': {'; '.join(found[:5])}",
                           next_step=f"mend it, or the contract {contract.document.path}")  # fmt: skip


def _to_end(queries: list[Query], once: bool) -> bool:
    """Whether one has failed, or with ``once`` all are done."""
    if any(query.failed for query in queries):
        return True
    return once and all(query.ended for query in queries)
