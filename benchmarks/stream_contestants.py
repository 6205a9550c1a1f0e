"""Who takes part in benchmarks/stream.py: each reads the same messages, in micro-batches of the same size, in a folder of its
own, and tells its seconds and what it made."""

from __future__ import annotations

import json
import logging
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.ingest_contestants import Work, measure_work
from benchmarks.stream_messages import (
    NEW_DAYS,
    NUM_DAYS,
    NUM_NEW_DAYS,
    SteadyProducer,
    create_topic,
    drop_provenance,
    send_messages,
    write_history,
)
from etl.stream.batch import StreamResult
from etl.stream.messages import Habits, judged_messages
from etl.stream.run import READING, Start, stream_tables
from etl.tables.delta import read_commits
from recipes import Recipe, read_recipe
from schemas import read_contract

ROOT = Path(__file__).resolve().parents[1]
NOTHING: Mapping[str, str] = {}
CLEANING_S = 1.0
TOPIC = "events"


class Contestants:
    """Each method that takes nothing is a contestant, and takes ``num_rows`` messages in, in ``num_batches`` micro-batches. What
    it needs is made, untimed, when it first asks for it."""

    def __init__(self, spark: SparkSession, servers: str, folder: Path, num_rows: int) -> None:
        self._spark, self._servers, self._folder = spark, servers, folder
        self.num_rows, self.num_batches = num_rows, 1
        self._per_day = -(-num_rows // NUM_NEW_DAYS)
        self._contract = read_contract(ROOT / "benchmarks" / "events.yaml")
        self._seconds = BatchSeconds()
        self._sent = False
        self._turn = 0

    def run(self, name: str) -> tuple[float, Work]:
        """Seconds, and the work that was done in them."""
        contestant: Callable[[], tuple[float, Work]] = getattr(self, name)
        shutil.rmtree(self._folder / str(self._turn), ignore_errors=True)
        self._turn += 1
        self._lake.mkdir(parents=True)
        if not self._sent:
            send_messages(self._servers, TOPIC, self.num_rows, NUM_DAYS * self._per_day)
            self._sent = True
        return contestant()

    # Ours

    def drain(self) -> tuple[float, Work]:
        """Ours into a new lake."""
        return self._drain()

    def into_large(self) -> tuple[float, Work]:
        """Ours into a table of twenty times the messages."""
        _copy(self._history(NUM_DAYS), self._lake)
        return self._drain()

    def batch_of_large(self) -> tuple[float, Work]:
        """As ``into_large``, but the seconds of a micro-batch."""
        _, work = self.into_large()
        return self._seconds.median(self.num_batches), work

    def batch_of_small(self) -> tuple[float, Work]:
        """The same into a table of nothing but the partitions that messages come into."""
        _copy(self._history(NUM_NEW_DAYS), self._lake)
        _, work = self._drain()
        return self._seconds.median(self.num_batches), work

    def _drain(self) -> tuple[float, Work]:
        recipe = self._recipe(TOPIC, self._lake)
        self._seconds.start()
        start = time.perf_counter()
        results: dict[str, StreamResult] = {}
        stream_tables(self._spark, recipe, {"events": self._contract}, Start(None), threading.Event(), results)
        seconds = time.perf_counter() - start
        (result,) = results.values()
        fates = (result.batches, result.rows_read, result.rows_written, result.rows_refused)
        assert fates == (self.num_batches, self.num_rows, self.num_rows, 0), result
        return seconds, self._work(self._table)

    # What they are compared with

    def noop(self) -> tuple[float, Work]:
        """The same messages, parsed and judged as ours are, and then nothing."""

        habits = Habits()

        def parse(messages: DataFrame, number: int) -> None:
            habits.look(messages, self._contract)
            judged = judged_messages(messages, "kafka:x/", self._contract, habits)
            judged.write.format("noop").mode("overwrite").save()

        seconds = self._stream(lambda rows: rows.writeStream.foreachBatch(parse), reading={**READING, "includeHeaders": "true"})
        return seconds, Work(self.num_rows, self.num_rows, 0)

    def append(self) -> tuple[float, Work]:
        """What is usually written by hand: from_json, append, no keys, no checks."""
        table = self._lake / "table"
        seconds = self._stream(lambda rows: self._by_hand(rows).writeStream.format("delta").partitionBy("day"), str(table))
        return seconds, self._work(table)

    def merge(self) -> tuple[float, Work]:
        """The other thing written by hand: foreachBatch, dropDuplicates, a merge over the whole table."""
        _copy(self._history(NUM_DAYS), self._lake)
        table, key = self._table, self._contract.key
        drop_provenance(table)
        same = " AND ".join(f"old.{name} = new.{name}" for name in key)

        def put(messages: DataFrame, number: int) -> None:
            new = self._by_hand(messages).dropDuplicates(list(key)).alias("new")
            old = DeltaTable.forPath(messages.sparkSession, str(table)).alias("old")
            old.merge(new, same).whenNotMatchedInsertAll().execute()

        seconds = self._stream(lambda rows: rows.writeStream.foreachBatch(put))
        return seconds, self._work(table)

    def _stream(self, query: Callable[[DataFrame], Any], *path: str, reading: Mapping[str, str] = NOTHING) -> float:
        start = time.perf_counter()
        rows = self._spark.readStream.format("kafka").option("kafka.bootstrap.servers", self._servers)
        rows = rows.option("subscribe", TOPIC).option("startingOffsets", "earliest")
        rows = rows.option("maxOffsetsPerTrigger", self._max_offsets).options(**reading)
        writer = query(rows.load()).option("checkpointLocation", str(self._lake / "checkpoint"))
        running = writer.trigger(availableNow=True).start(*path)
        running.awaitTermination()
        seconds = time.perf_counter() - start
        read = [progress["numInputRows"] for progress in running.recentProgress if progress["numInputRows"]]
        assert len(read) == self.num_batches, read
        assert self.num_rows <= sum(read) < 1.01 * self.num_rows, read  # what is looked at beforehand counts too
        return seconds

    def _by_hand(self, messages: DataFrame) -> DataFrame:
        schema = ", ".join(f"`{column.name}` {column.type}" for column in self._contract.source_columns)
        return messages.select(F.from_json(F.col("value").cast("string"), schema).alias("x")).select("x.*")

    # A stream that goes on

    def latency(self, rate: int, minutes: float, every_s: float) -> tuple[float, float]:
        """Ours on messages that keep coming: the 95th percentile of the seconds from a message's own time to the commit of its
        row, and the median."""
        topic = f"latency-{self._turn}"
        recipe = self._flow(topic, rate, minutes, every_s)
        log, commits = self._table / "_delta_log", []
        for version, actions in enumerate(read_commits(recipe.lake, "events", -1)):
            written = (log / f"{version:020d}.json").stat().st_mtime
            for origin in [
                json.loads(a["commitInfo"]["userMetadata"]) for a in actions if "userMetadata" in a.get("commitInfo", {})
            ]:
                commits += [(f"kafka:{origin['topic_id']}/{partition}", first, end - 1, written)
                            for partition, (first, end) in origin.get("offsets", {}).items()]  # fmt: skip
        known = self._spark.createDataFrame(commits, "source string, first long, last long, committed double")
        rows = self._spark.read.format("delta").load(str(self._table))
        taken = rows.join(F.broadcast(known), F.expr("_source = source AND _position BETWEEN first AND last"))
        # What comes while the first micro-batch warms up is left out.
        start = min(committed for *_, committed in commits) + 2 * every_s
        warm = taken.where(f"at > timestamp_micros({int(start * 1e6)})")
        seconds = warm.selectExpr("committed - unix_micros(at) / 1e6D AS s")
        row = seconds.selectExpr("percentile(s, 0.95)", "percentile(s, 0.5)").first()
        assert row is not None
        return row[0], row[1]

    def heap(self, rate: int, minutes: float, every_s: float) -> list[float]:
        """Ours on messages that keep coming: the driver's heap in MB after full collections, taken at even times, each at a
        micro-batch's end (amid one, the working memory of some tasks is in it). A first collection tells Spark which broadcasts
        nobody holds any more; it drops them a moment later, and the second one counts."""
        jvm: Any = self._spark.sparkContext._jvm
        runtime = jvm.java.lang.Runtime.getRuntime()
        sizes: list[float] = []
        pause_s = minutes * 60 / 90

        def sample() -> None:
            if time.monotonic() - start >= len(sizes) * pause_s:
                jvm.System.gc()
                time.sleep(CLEANING_S)
                jvm.System.gc()
                sizes.append((runtime.totalMemory() - runtime.freeMemory()) / 1e6)

        start = time.monotonic()
        self._seconds.after_each = sample
        self._flow(f"heap-{self._turn}", rate, minutes, every_s)
        self._seconds.after_each = lambda: None
        return sizes

    def _flow(self, topic: str, rate: int, minutes: float, every_s: float) -> Recipe:
        self._turn += 1
        self._lake.mkdir(parents=True)
        create_topic(self._servers, topic)
        recipe, stop = self._recipe(topic, self._lake), threading.Event()
        results: dict[str, StreamResult] = {}
        how = Start(f"{int(every_s * 1000)} milliseconds")
        arguments = (self._spark, recipe, {"events": self._contract}, how, stop, results)
        job = threading.Thread(target=stream_tables, args=arguments)
        producer = SteadyProducer(self._servers, topic, rate, minutes * 60)
        job.start()
        producer.start()
        while producer.is_alive() and job.is_alive():
            producer.join(1.0)
        deadline = time.monotonic() + 60 + 4 * every_s
        while job.is_alive() and time.monotonic() < deadline and not any(r.rows_read >= producer.sent for r in results.values()):
            time.sleep(0.1)
        stop.set()
        job.join()
        (result,) = results.values()
        assert result.rows_written == producer.sent, (result, producer.sent)
        return recipe

    # What they share

    @property
    def _lake(self) -> Path:
        """A lake of its own for each turn: Delta keeps what it knows of a path."""
        return self._folder / str(self._turn)

    @property
    def _table(self) -> Path:
        return self._lake / "tables" / "events"

    @property
    def _max_offsets(self) -> int:
        return -(-self.num_rows // self.num_batches)

    def _work(self, table: Path) -> Work:
        """What the messages made of the partitions that they came into."""
        rows = self._spark.read.format("delta").load(str(table)).where(F.col("day").isin(NEW_DAYS))
        return measure_work(rows, self._contract)

    def _recipe(self, topic: str, lake: Path) -> Recipe:
        path = self._folder / "recipe.yaml"
        source = f"{{topic: {topic}, format: json, max_offsets_per_trigger: {self._max_offsets}}}"
        path.write_text(f"name: bench\nkafka: {{servers: '{self._servers}'}}\ntables:\n  events:\n"
                        f"    contract: {self._contract.document.path}\n    sources: [{source}]\n")  # fmt: skip
        return read_recipe(path, lake=str(lake))

    def _history(self, num_days: int) -> Path:
        return self._large if num_days == NUM_DAYS else self._small

    @cached_property
    def _large(self) -> Path:
        return self._write_history("large", NUM_DAYS)

    @cached_property
    def _small(self) -> Path:
        return self._write_history("small", NUM_NEW_DAYS)

    def _write_history(self, name: str, num_days: int) -> Path:
        folder = self._folder / name
        lake = self._recipe(TOPIC, folder).lake
        write_history(self._spark, lake, self._contract, self._per_day, num_days)
        return folder


def _copy(lake: Path, to: Path) -> None:
    """A lake of its own. Data files are never changed, so they are linked."""

    def copy(a: str, b: str) -> None:
        (os.link if a.endswith(".parquet") and "_delta_log" not in a else shutil.copy2)(a, b)

    shutil.copytree(lake, to, copy_function=copy, dirs_exist_ok=True)


class BatchSeconds(logging.Handler):
    """What the stream tells in its log of each micro-batch's seconds, at the batch's end and in its thread."""

    def __init__(self) -> None:
        super().__init__()
        self.after_each: Callable[[], None] = lambda: None
        self._found: list[float] = []
        logger = logging.getLogger("etl.stream.batch")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        facts = getattr(record, "facts", {})
        if "seconds" in facts:
            self._found.append(facts["seconds"])
            self.after_each()

    def start(self) -> None:
        self._found.clear()

    def median(self, num_batches: int) -> float:
        assert len(self._found) == num_batches, self._found
        return statistics.median(self._found)
