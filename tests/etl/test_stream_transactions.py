"""Messages that are written in transactions, which leave offsets without a message."""

from __future__ import annotations

import re

import pytest
from broker import Broker
from confluent_kafka import Producer, TopicPartition

from etl.sources.broker import SILENT
from tests.etl.conftest import Trips
from tests.etl.streams import StreamedTrips, trip


@pytest.fixture
def stream(trips: Trips, broker: Broker, request: pytest.FixtureRequest) -> StreamedTrips:
    made = StreamedTrips(trips, broker.servers, re.sub(r"\W", "-", request.node.name))
    made.create(1)
    return made


@pytest.fixture
def producer(stream: StreamedTrips) -> Producer:
    made = Producer({"bootstrap.servers": stream.servers, "transactional.id": stream.topic}, logger=SILENT)
    made.init_transactions(60)
    return made


def begin(producer: Producer, stream: StreamedTrips, *values: bytes) -> None:
    producer.begin_transaction()
    for value in values:
        producer.produce(stream.topic, value, partition=0)
    assert producer.flush(60) == 0


def test_what_was_aborted_is_not_read_and_offsets_without_a_message_are_no_loss(stream, producer):
    begin(producer, stream, trip(id=1), trip(id=2))
    producer.commit_transaction(60)  # its mark has offset 2
    begin(producer, stream, trip(id=8), trip(id=9))
    producer.abort_transaction(60)  # 3 and 4, and its mark 5
    assert stream.drain().rows_read == 2
    assert stream.state.next == {0: 6}
    begin(producer, stream, trip(id=10))
    producer.abort_transaction(60)
    assert stream.drain().rows_read == 0
    assert [(row["rows_read"], row["offsets"]) for row in stream.place.progress()] == [
        (2, [{"partition": 0, "first": 0, "end": 6}]), (0, [{"partition": 0, "first": 6, "end": 8}])]  # fmt: skip
    (deleted,) = stream.admin.delete_records([TopicPartition(stream.topic, 0, 8)]).values()
    deleted.result(60)
    begin(producer, stream, trip(id=3))
    producer.commit_transaction(60)
    assert stream.drain(start="table").rows_read == 1
    assert stream.ids() == [1, 2, 3]


@pytest.mark.faults
def test_a_transaction_that_is_open_is_read_once_it_ends_from_latest_on_too(stream, producer):
    stream.send(trip(id=1))
    begin(producer, stream, trip(id=2))
    assert stream.drain(start="latest").rows_read == 0
    producer.commit_transaction(60)
    assert stream.drain().rows_read == 1
    assert stream.ids() == [2]
