"""Messages that are written in transactions, which leave offsets without a message."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from broker import Broker as TrialBroker
from confluent_kafka import Producer

from etl.sources.broker import SILENT, Broker
from recipes.kafka import Kafka
from tests.etl.conftest import Trips
from tests.etl.streams import StreamedTrips, trip


@pytest.fixture
def stream(trips: Trips, broker: TrialBroker, request: pytest.FixtureRequest) -> StreamedTrips:
    made = StreamedTrips(trips, broker.servers, re.sub(r"\W", "-", request.node.name))
    made.create(1)
    return made


@pytest.fixture
def producer(stream: StreamedTrips) -> Producer:
    patient = {"transaction.timeout.ms": 600_000}  # the broker ends what is open for longer
    made = Producer({"bootstrap.servers": stream.servers, "transactional.id": stream.topic, **patient}, logger=SILENT)
    made.init_transactions(60)
    return made


def begin(producer: Producer, stream: StreamedTrips, *values: bytes) -> None:
    producer.begin_transaction()
    for value in values:
        producer.produce(stream.topic, value, partition=0)
    assert producer.flush(60) == 0


def end(ended: Callable[[float], None], stream: StreamedTrips, offset: int) -> None:
    """Commits or aborts, and waits until readers get up to ``offset``: the broker marks the messages some moments later."""
    ended(60)
    ours, deadline = Broker(Kafka(servers=stream.servers)), time.monotonic() + 60
    while (found := ours.describe_topic(stream.topic).end[0]) != offset:
        assert time.monotonic() < deadline, f"readers get up to {found}"
        time.sleep(0.02)


def test_what_was_aborted_is_not_read_and_offsets_without_a_message_are_no_loss(stream, producer):
    begin(producer, stream, trip(id=1), trip(id=2))
    end(producer.commit_transaction, stream, 3)  # its mark has offset 2
    begin(producer, stream, trip(id=8), trip(id=9))
    end(producer.abort_transaction, stream, 6)  # 3 and 4, and its mark 5
    assert stream.drain().rows_read == 2
    assert stream.state.next == {0: 6}
    begin(producer, stream, trip(id=10))
    end(producer.abort_transaction, stream, 8)
    assert stream.drain().rows_read == 0
    assert [(row["rows_read"], row["offsets"]) for row in stream.place.progress()] == [
        (2, [{"partition": 0, "first": 0, "end": 6}]), (0, [{"partition": 0, "first": 6, "end": 8}])]  # fmt: skip
    stream.delete_before(8)
    begin(producer, stream, trip(id=3))
    end(producer.commit_transaction, stream, 10)
    assert stream.drain(start="table").rows_read == 1
    assert stream.ids() == [1, 2, 3]


@pytest.mark.faults
def test_a_transaction_that_is_open_is_read_once_it_ends_from_latest_on_too(stream, producer):
    stream.send(trip(id=1))
    begin(producer, stream, trip(id=2))
    assert stream.drain(start="latest").rows_read == 0
    end(producer.commit_transaction, stream, 3)
    assert stream.drain().rows_read == 1
    assert stream.ids() == [2]
