"""A topic that feeds the small table of the ingest tests, on a real broker."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from etl.sources.broker import SILENT
from etl.stream.batch import StreamResult
from etl.stream.run import PATIENCE_S, Start, stream_tables
from etl.stream.state import Place, State
from etl.tables import read_quarantine
from recipes import Recipe, read_recipe
from tests.etl.conftest import Trips

GOOD = {"day": "2024-01-01", "id": 1, "at": "2024-01-01T08:00:00Z", "fare": 10.5, "price": 1.25, "zone": "north",
        "paid": True, "note": "hello"}  # fmt: skip


def trip(**values: Any) -> bytes:
    return json.dumps({**GOOD, **values}).encode()


def create_topic(admin: AdminClient, topic: NewTopic) -> None:
    """Makes a topic, and waits until the broker names it: its controller knows it some moments before."""
    admin.create_topics([topic])[topic.topic].result(60)
    _await(admin, topic.topic, True)


def delete_topic(admin: AdminClient, name: str) -> None:
    """Deletes a topic, and waits until the broker names it no more."""
    admin.delete_topics([name])[name].result(60)
    _await(admin, name, False)


def _await(admin: AdminClient, name: str, is_there: bool) -> None:
    deadline = time.monotonic() + 60
    while (name in admin.list_topics(timeout=60).topics) != is_there:
        assert time.monotonic() < deadline, (
            f"the broker names its topics otherwise: {name} {'is not' if is_there else 'is'} there"
        )
        time.sleep(0.02)


@dataclass
class StreamedTrips:
    trips: Trips
    servers: str
    topic: str
    max_offsets: int = 1000
    more: str = ""
    format: str = "json"
    kafka: str = ""
    admin: AdminClient = field(init=False)

    def __post_init__(self) -> None:
        self.admin = AdminClient({"bootstrap.servers": self.servers}, logger=SILENT)

    def create(self, partitions: int = 2) -> None:
        # Kept whatever a message's timestamp: the broker would delete those that are old.
        kept = {"max.message.bytes": "20000000", "retention.ms": "-1"}
        create_topic(self.admin, NewTopic(self.topic, partitions, config=kept))

    def delete(self) -> None:
        delete_topic(self.admin, self.topic)

    def add_partitions(self, count: int) -> None:
        """Has the topic have so many partitions, and waits until the broker names them."""
        self.admin.create_partitions([NewPartitions(self.topic, count)])[self.topic].result(60)
        deadline = time.monotonic() + 60
        while len(self.admin.list_topics(self.topic, timeout=10).topics[self.topic].partitions) < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def send(self, *values: bytes | None, partition: int = 0, **more: Any) -> None:
        producer = Producer({"bootstrap.servers": self.servers, "message.max.bytes": 20_000_000})
        failed: list[KafkaError | None] = []
        for value in values:
            producer.produce(self.topic, value, partition=partition, on_delivery=lambda error, _: failed.append(error), **more)
            producer.poll(0)
        assert producer.flush(60) == 0
        assert [error for error in failed if error is not None] == []

    def delete_before(self, offset: int, partition: int = 0) -> None:
        """Has a partition begin there, as retention does."""
        (deleted,) = self.admin.delete_records([TopicPartition(self.topic, partition, offset)]).values()
        deleted.result(60)

    @property
    def path(self) -> Path:
        path = self.trips.folder / "stream.yaml"
        path.write_text(f"name: trips\nlake: lake\nkafka: {{servers: '{self.servers}'{self.kafka}}}\ntables:\n  trips:\n    contract: trips.yaml\n"
                        f"    sources: [{{topic: {self.topic}, format: {self.format}, max_offsets_per_trigger: {self.max_offsets}{self.more}}}]\n")  # fmt: skip
        return path

    @property
    def recipe(self) -> Recipe:
        return read_recipe(self.path)

    @property
    def place(self) -> Place:
        return Place(self.recipe.lake, "trips", self.topic)

    @property
    def state(self) -> State:
        state = self.place.read()
        assert state is not None
        return state

    def drain(self, start: str | None = None, accept_gap: bool = False, wait: float = PATIENCE_S) -> StreamResult:
        results: dict[str, StreamResult] = {}
        recipe = self.recipe
        try:
            stream_tables(self.trips.spark, recipe, {"trips": recipe.contract("trips")}, Start(None, start, accept_gap, wait),
                          threading.Event(), results)  # fmt: skip
        finally:
            for result in results.values():
                fates = (result.rows_written, result.rows_already_present, result.rows_superseded, result.rows_refused)
                assert result.rows_read == sum(fates), "every message has one fate"
        (result,) = results.values()
        return result

    def drop_table(self) -> None:
        self.place.lake.storage.delete(*self.place.lake.table("trips"))

    def gaps(self) -> list[str]:
        """What the table of batches tells of messages that were passed over."""
        return [row["gap"] for row in self.place.progress() if row["gap"] is not None]

    def ids(self) -> list[int]:
        return [row["id"] for row in self.trips.rows()]

    def refused(self) -> dict[tuple[int, int], tuple[str | None, str]]:
        rows = read_quarantine(self.trips.spark, self.recipe.lake, "trips").collect()
        return {(int(row["source"].rpartition("/")[2]), row["position"]): (row["column"], row["rule"]) for row in rows}
