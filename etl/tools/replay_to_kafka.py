"""Files -> events: sends the rows of a table's files to a Kafka topic, as if each were sent when it happened.

python -m etl.tools.replay_to_kafka --recipe recipes/flights.yaml --table flights --rate 20000
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import ConfigResource, NewTopic, ResourceType
from pyspark.sql import DataFrame, Row, SparkSession
from tqdm import tqdm

from etl.parse import parsed_files
from etl.session import set_storage, spark_session
from etl.sources.broker import SILENT, Broker
from etl.sources.files import folder_of, list_files, validate_unchanged
from etl.sources.read import group_files, named_errors
from etl.tools.events import events_of
from lakering.errors import LakeringError, SettingError, nearest
from lakering.jobs import job_parser, read_recipe_of, run_job
from lakering.summary import Summary
from recipes import Recipe
from recipes.kafka import Kafka

FLUSH_S = 120
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# Java's clients choose a key's partition so; librdkafka's own default is another.
PRODUCER = {"enable.idempotence": True, "partitioner": "murmur2_random", "linger.ms": 20, "compression.type": "lz4",
            "message.timeout.ms": FLUSH_S * 1000}  # fmt: skip


@dataclass
class Replay:
    """What was sent. ``refused`` rows break the contract and were left out."""

    topic: str
    created: bool = False
    partitions: int = 0
    rows: int = 0
    refused: int = 0
    sent: int = 0
    first: str | None = None
    last: str | None = None


def replay_table(spark: SparkSession, recipe: Recipe, kafka: Kafka, table: str, topic: str, *, now: datetime.datetime,
                 rate: float | None = None, partitions: int = 4, limit: int | None = None,
                 result: Replay | None = None) -> Replay:  # fmt: skip
    """Sends the rows of a table's files, ``rate`` a second at most, the first ``limit`` of them; makes the topic, with so many
    partitions, if it is not there. ``result`` is filled as far as it comes.

    Raises InputError for files, SettingError for a topic that would lose the events, LakeringError for the broker."""
    result = Replay(topic) if result is None else result
    if any(source.topic == topic and source.format != "json" for source in recipe.settings.tables[table].topics):
        raise SettingError(f"topic '{topic}' is of format avro in {recipe.path}, and rows of files are sent as JSON",
                           next_step="name another --topic, and add it to the table's sources with format: json")  # fmt: skip
    broker = Broker(kafka)
    contract, storage = recipe.contract(table), recipe.lake.storage.settings
    groups = []
    for source in recipe.settings.tables[table].files:
        files = list_files(recipe.resolve(source.files), storage)
        groups += group_files(source.format, files, contract, storage, folder_of(recipe.resolve(source.files), storage))
    with parsed_files(spark, groups, contract, storage) as parsed, named_errors(groups):
        is_new = topic not in broker.topics()
        # One that is made keeps events however old they are.
        made = NewTopic(topic, num_partitions=partitions, config={"retention.ms": "-1"})
        result.partitions = len((broker.create_topic(made) if is_new else broker.describe_topic(topic)).end)
        result.created = is_new
        validate_unchanged((file for group in groups for file in group.files), storage)
        result.rows, result.refused = sum(parsed.reasons.values()), sum(parsed.reasons.values()) - parsed.num_valid
        events = events_of(parsed, contract)
        events = events.limit(limit) if limit is not None else events
        ends = events.selectExpr("unix_millis(min(time))", "unix_millis(max(time))").collect()[0]
        first, last = (None if end is None else EPOCH + datetime.timedelta(milliseconds=end) for end in ends)
        result.first, result.last = (str(moment) if moment else None for moment in (first, last))
        total = parsed.num_valid if limit is None else min(limit, parsed.num_valid)
        if first is not None:
            _validate_retention(broker, topic, first, now)
        shown = tqdm(_stamped(events, now), total=total, desc=topic, unit="event", disable=not sys.stderr.isatty())
        _send(kafka, topic, shown, rate, result)
    return result


def _stamped(events: DataFrame, now: datetime.datetime) -> Iterable[Row]:
    """Each event's key and value, and its time in milliseconds: what limits of lateness compare an event's time with is when
    it was sent, and of this replay that would be years later. Kafka takes no time before 1970, and none to come."""
    millis = "unix_millis(time)"
    present = f"if({millis} BETWEEN 1 AND {int(now.timestamp() * 1000)}, {millis}, 0) AS millis"
    return events.selectExpr("key", "value", "headers", present).toLocalIterator(prefetchPartitions=True)


def _send(kafka: Kafka, topic: str, events: Iterable[Row], rate: float | None, result: Replay) -> None:
    errors: list[KafkaError] = []
    settings = {**kafka.for_client(), **PRODUCER, "error_cb": lambda error: errors.append(error) if error.fatal() else None}
    producer = Producer(settings, logger=SILENT)

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            errors.append(error)
        else:
            result.sent += 1

    def check() -> None:
        if errors:
            raise LakeringError(f"topic '{topic}' did not take an event: {errors[0].str()}; {result.sent:,} were sent",
                                next_step="send again: events that are there twice are added once")  # fmt: skip

    started = time.monotonic()
    for number, event in enumerate(events, start=1):
        while True:
            try:
                # 0 is now, for Kafka's client.
                key = bytes(event.key) if isinstance(event.key, bytearray) else event.key
                headers: list[tuple[str, str | bytes | None]] = [(header.key, bytes(header.value)) for header in event.headers]
                producer.produce(topic, event.value, key, timestamp=event.millis or 0, headers=headers, on_delivery=delivered)
                break
            except BufferError:  # the queue is full
                producer.poll(0.1)
                check()
            except KafkaException as error:  # larger than what is taken
                errors.append(error.args[0])
                check()
        producer.poll(0)
        while rate and (ahead := started + number / rate - time.monotonic()) > 0:
            producer.poll(ahead)
        check()
    left = producer.flush(FLUSH_S)
    check()
    if left:
        raise LakeringError(f"topic '{topic}' did not take {left:,} events within {FLUSH_S} s; {result.sent:,} were sent",
                            next_step="check the broker, and send again: events that are there twice are added once")  # fmt: skip


def _validate_retention(broker: Broker, topic: str, first: datetime.datetime, now: datetime.datetime) -> None:
    """Raises SettingError when the topic would delete the oldest events for their age, whenever they were sent."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        settings = broker.admin.describe_configs([resource], request_timeout=20)[resource].result()
    except KafkaException:  # a user who may not look
        return
    kept = int(settings["retention.ms"].value)
    age = now - first
    if 0 <= kept < age.total_seconds() * 1000 and "delete" in settings["cleanup.policy"].value:
        raise SettingError(f"topic '{topic}' keeps events for {kept / 86_400_000:g} days, and the first is {age.days:,} days old",
                           next_step="set its retention.ms to -1, or name another --topic, which will be made so")  # fmt: skip


def main(args: argparse.Namespace, summary: Summary) -> None:
    recipe = read_recipe_of(args)
    if args.table not in recipe.settings.tables:
        raise SettingError(f"--table {args.table!r} is not a table of {recipe.path}{nearest(args.table, recipe.settings.tables)}")
    if recipe.kafka is None:
        raise recipe.document.error((), "key 'kafka' is missing, such as kafka: {servers: 'localhost:9092'}")
    for flag in ("rate", "partitions", "limit"):
        if getattr(args, flag) is not None and getattr(args, flag) <= 0:
            raise SettingError(f"--{flag} {getattr(args, flag)} is not above 0")
    # Started by plain Python, Spark looks for its settings in its own folder; the project's lie where the command is run.
    if Path("spark-defaults.conf").exists():
        os.environ.setdefault("SPARK_CONF_DIR", os.getcwd())
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    Broker(recipe.kafka).topics()  # before Spark takes its seconds
    spark = spark_session("replay")
    set_storage(spark, recipe.lake.storage.settings)
    topics = recipe.settings.tables[args.table].topics
    result, started = Replay(args.topic or (topics[0].topic if topics else args.table)), time.monotonic()
    try:
        replay_table(spark, recipe, recipe.kafka, args.table, result.topic, now=datetime.datetime.now(datetime.UTC),
                     rate=args.rate, partitions=args.partitions, limit=args.limit, result=result)  # fmt: skip
    finally:
        summary.add(args.table, **asdict(result), events_per_second=round(result.sent / (time.monotonic() - started)))


if __name__ == "__main__":
    parser = job_parser("Sends the rows of a table's files to a Kafka topic, as JSON events in the order of their times.")
    parser.prog = "replay_to_kafka"
    parser.add_argument("--table", required=True, metavar="NAME", help="the table of the recipe whose files are sent")
    parser.add_argument("--topic", metavar="NAME", help="where to, made if it is not there (default: the table's topic)")
    parser.add_argument("--partitions", type=int, default=4, help="of a topic that is made")
    parser.add_argument("--rate", type=float, metavar="N", help="events a second at most (default: as fast as it goes)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N events")
    run_job(main, parser)
