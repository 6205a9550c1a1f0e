"""The messages of benchmarks/stream.py, and the large table that they come into."""

from __future__ import annotations

import datetime
import json
import random
import threading
import time
from pathlib import Path

from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from etl.sources.broker import Broker
from etl.tables import create_table
from lakering.lake import Lake
from recipes.kafka import Kafka
from schemas import Contract

PARTITIONS = 4
#: The large table's partitions; messages are of the last ones, in the order of their times.
NUM_DAYS, NUM_NEW_DAYS = 60, 3
FIRST_DAY = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
NEW_DAYS = [
    (FIRST_DAY + datetime.timedelta(NUM_DAYS - NUM_NEW_DAYS + number)).date().isoformat() for number in range(NUM_NEW_DAYS)
]
KINDS, COUNTRIES = ("view", "click", "cart", "buy"), ("AT", "CH", "DE", "FR", "IT", "NL", "PL", "SE")


def message(number: int, at: datetime.datetime, chance: random.Random) -> bytes:
    """An event as JSON, of about 300 bytes."""
    user = chance.randrange(10**7)
    return json.dumps({
        "id": number, "day": at.date().isoformat(), "at": at.isoformat(timespec="milliseconds"), "user": user,
        "session": f"{chance.getrandbits(128):032x}", "kind": KINDS[user % 4], "country": COUNTRIES[user % 8],
        "page": f"/shop/department-{user % 13}/article-{user % 9973}/reviews/{number % 89}", "quantity": user % 99 + 1,
        "amount": user % 99_999 / 100, "score": user % 1009 / 1009, "mobile": user % 3 == 0,
    }).encode()  # fmt: skip


def create_topic(servers: str, topic: str) -> None:
    # Kept whatever a message's timestamp: the broker would delete those that are old.
    new = NewTopic(topic, PARTITIONS, config={"retention.ms": "-1"})
    Broker(Kafka(servers=servers)).create_topic(new)


def send_messages(servers: str, topic: str, num_rows: int, first: int) -> None:
    """As many messages, numbered from ``first``, whose times run evenly through the newest days."""
    create_topic(servers, topic)
    producer, chance = _producer(servers), random.Random(7)
    start = FIRST_DAY + datetime.timedelta(NUM_DAYS - NUM_NEW_DAYS)
    step = datetime.timedelta(NUM_NEW_DAYS) / num_rows
    for number in range(num_rows):
        while len(producer) > 400_000:
            producer.poll(0.05)
        producer.produce(topic, message(first + number, start + number * step, chance), partition=number % PARTITIONS)
    if producer.flush(120):
        raise SystemExit("the broker did not take the messages")


def _producer(servers: str) -> Producer:
    return Producer({"bootstrap.servers": servers, "queue.buffering.max.messages": 1_000_000, "linger.ms": 20})


class SteadyProducer(threading.Thread):
    """Sends ``rate`` messages a second, each of the moment at which it is sent, for so many seconds."""

    def __init__(self, servers: str, topic: str, rate: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self._producer, self._topic, self._rate, self._seconds = _producer(servers), topic, rate, seconds

    def run(self) -> None:
        chance, start = random.Random(7), time.monotonic()
        while (passed := time.monotonic() - start) < self._seconds:
            for _ in range(int(passed * self._rate) - self.sent):
                now = datetime.datetime.now(datetime.UTC)
                self._producer.produce(self._topic, message(self.sent, now, chance), partition=self.sent % PARTITIONS)
                self.sent += 1
            self._producer.poll(0)
            time.sleep(0.01)
        self._producer.flush(60)


def write_history(spark: SparkSession, lake: Lake, contract: Contract, per_day: int, num_days: int) -> None:
    """The contract's table as ingest leaves it, with the newest ``num_days`` of its partitions, a file each. Rows are numbered
    from 0 in the oldest partition of all."""
    create_table(spark, lake, contract)
    number = F.col("id")
    chance = F.abs(F.xxhash64(number))
    user, at = chance % 10**7, F.timestamp_seconds(F.lit(FIRST_DAY.timestamp()) + number * 86400 / per_day)
    rows = spark.range((NUM_DAYS - num_days) * per_day, NUM_DAYS * per_day, 1, num_days).select(
        number, at.cast("date").alias("day"), at.alias("at"), user.alias("user"), F.md5(number.cast("string")).alias("session"),
        F.element_at(F.array(*map(F.lit, KINDS)), (user % 4 + 1).cast("int")).alias("kind"),
        F.element_at(F.array(*map(F.lit, COUNTRIES)), (user % 8 + 1).cast("int")).alias("country"),
        F.concat(F.lit("/shop/department-"), user % 13, F.lit("/article-"), user % 9973).alias("page"),
        (user % 99 + 1).cast("int").alias("quantity"), (user % 99_999 / 100).cast("decimal(10,2)").alias("amount"),
        (user % 1009 / 1009).alias("score"), (user % 3 == 0).alias("mobile"), F.lit("history").alias("_source"),
        number.alias("_position"), F.unhex(F.md5(chance.cast("string"))).alias("_content_hash"),
    )  # fmt: skip
    rows.write.format("delta").mode("append").save(lake.storage.uri(*lake.table(contract.table)))


def drop_provenance(table: Path) -> None:
    """Makes a table that ``write_history`` left one of the contract's columns alone, as people make theirs: over the same files,
    by its log."""
    log = table / "_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        if "metaData" in action:
            schema = json.loads(action["metaData"]["schemaString"])
            schema["fields"] = [{**f, "nullable": True} for f in schema["fields"] if not f["name"].startswith("_")]
            action["metaData"]["schemaString"] = json.dumps(schema)
    log.write_text("".join(json.dumps(action) + "\n" for action in actions))
    for checksum in [*log.parent.glob("*.crc"), *log.parent.glob(".*.crc")]:  # of Delta's and of Hadoop's, which tell the old one
        checksum.unlink(missing_ok=True)
