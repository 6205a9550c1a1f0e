"""A table's files sent as events: what they say, in which order, and that the table takes them for the same rows."""

from __future__ import annotations

import json
import time

import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from etl.sources.broker import describe_topic
from etl.tools.replay_to_kafka import replay_table
from lakering.errors import InputError, SettingError
from recipes.kafka import Kafka
from tests.etl.conftest import HEADER, NOW, Trips
from tests.etl.streams import create_topic

ROWS = [
    '2024-01-03,3,2024-01-03T08:00:00.250Z,1e1,1.20,south,false,"says ""hi"", twice"',
    "2024-01-01,1,2024-01-01T08:00:00Z,10.50,1.25,north,true,NA",
    "2024-01-02,2,2024-01-02T09:00:00+01:00,NA,NA,NA,NA,grün \\ 🚲",
    "2024-01-04,4,2024-01-04T08:00:00Z,not a fare,1.00,north,true,refused",
]


def replay(trips: Trips, broker, topic: str, **options):
    recipe = trips.recipe("a.csv")
    return replay_table(trips.spark, recipe, Kafka(servers=broker.servers), "trips", topic, now=NOW, **options)


def messages(broker, topic: str) -> list[Message]:
    """All of a topic, by the time of the record."""
    ends = describe_topic(Kafka(servers=broker.servers), topic).end
    consumer = Consumer({"bootstrap.servers": broker.servers, "group.id": topic})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
    found = consumer.consume(sum(ends.values()), timeout=30)
    consumer.close()
    assert len(found) == sum(ends.values())
    return sorted(found, key=lambda message: message.timestamp())


def test_rows_become_events_in_order_of_their_times(trips, broker):
    trips.write("a.csv", HEADER + "".join(row + "\n" for row in ROWS))
    result = replay(trips, broker, "replay_events", partitions=1)
    assert (result.created, result.partitions, result.rows, result.refused, result.sent) == (True, 1, 4, 1, 3)
    sent = messages(broker, "replay_events")
    assert [message.offset() for message in sent] == [0, 1, 2], "sent in the order of their times, not of their lines"
    assert [json.loads(message.value() or b"") for message in sent] == [
        {"day": "2024-01-01", "id": 1, "at": "2024-01-01T08:00:00.000000Z", "fare": 10.5, "price": 1.25, "zone": "north",
         "paid": True},
        {"day": "2024-01-02", "id": 2, "at": "2024-01-02T08:00:00.000000Z", "note": "grün \\ 🚲"},
        {"day": "2024-01-03", "id": 3, "at": "2024-01-03T08:00:00.250000Z", "fare": 10, "price": 1.2, "zone": "south",
         "paid": False, "note": 'says "hi", twice'},
    ]  # fmt: skip
    assert [json.loads(message.key() or b"") for message in sent] == [{"day": f"2024-01-0{n}", "id": n} for n in (1, 2, 3)]
    assert [message.timestamp()[1] for message in sent] == [1704096000000, 1704182400000, 1704268800250]


def test_the_table_takes_events_for_the_rows_that_they_were(trips, broker):
    trips.csv(*ROWS[:3])
    replay(trips, broker, "replay_same")
    trips.write("sent.json", b"".join((message.value() or b"") + b"\n" for message in messages(broker, "replay_same")))
    result = trips.ingest("sent.json", "json")
    assert (result.rows_read, result.rows_already_present, result.rows_written) == (3, 3, 0)


def test_a_key_stays_in_its_partition_and_a_limit_takes_the_first(trips, broker):
    trips.write("a.csv", HEADER + "".join(row + "\n" for row in ROWS))
    assert replay(trips, broker, "replay_twice").sent == 3
    assert replay(trips, broker, "replay_twice", limit=2).sent == 2
    sent = messages(broker, "replay_twice")
    assert [json.loads(message.key() or b"")["id"] for message in sent] == [1, 1, 2, 2, 3]
    assert len({(message.key(), message.partition()) for message in sent}) == 3


def test_a_rate_is_not_exceeded(trips, broker):
    trips.write("a.csv", HEADER + "".join(row + "\n" for row in ROWS))
    started = time.monotonic()
    replay(trips, broker, "replay_rate", rate=3)
    assert time.monotonic() - started >= 1


def test_a_topic_that_would_delete_the_events_for_their_age_is_refused(trips, broker):
    trips.write("a.csv", HEADER + "".join(row + "\n" for row in ROWS))
    admin = AdminClient({"bootstrap.servers": broker.servers})
    create_topic(admin, NewTopic("replay_week", 1))
    with pytest.raises(SettingError, match="topic 'replay_week' keeps events for 7 days, and the first is 120 days old"):
        replay(trips, broker, "replay_week")
    assert describe_topic(Kafka(servers=broker.servers), "replay_week").num_messages == 0


def test_a_file_that_is_missing_makes_no_topic(trips, broker):
    with pytest.raises(InputError, match=r"a\.csv does not exist"):
        replay(trips, broker, "replay_none")
    with pytest.raises(InputError, match="has no topic 'replay_none'"):
        describe_topic(Kafka(servers=broker.servers), "replay_none")
