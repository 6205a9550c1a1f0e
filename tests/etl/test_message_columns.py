"""Columns that a message holds beside its value: key, headers, time and place."""

from __future__ import annotations

import re

import pytest
from broker import Broker
from confluent_kafka import Consumer, TopicPartition

from etl.reasons import Selection
from etl.replay import replay_table
from etl.tools.replay_to_kafka import replay_table as replay_to_kafka
from lakering.errors import SettingError
from schemas import read_contract
from tests.etl.conftest import GOOD, HEADER, NOW, Trips
from tests.etl.streams import StreamedTrips, trip

COLUMNS = """
      - {name: sender, logicalType: string, customProperties: [{property: fromMessage, value: "header:sender"}]}
      - {name: attempt, logicalType: integer, customProperties: [{property: fromMessage, value: "header:attempt"}]}
"""
PLACES = """
      - {name: k, logicalType: string, physicalType: binary, customProperties: [{property: fromMessage, value: key}]}
      - {name: sent, logicalType: timestamp, customProperties: [{property: fromMessage, value: timestamp}]}
      - {name: part, logicalType: integer, physicalType: int, customProperties: [{property: fromMessage, value: partition}]}
      - {name: place, logicalType: integer, customProperties: [{property: fromMessage, value: offset}]}
"""


def streamed(trips: Trips, broker: Broker, request: pytest.FixtureRequest) -> StreamedTrips:
    return StreamedTrips(trips, broker.servers, re.sub(r"\W", "-", request.node.name))


def test_a_columns_cell_comes_from_the_message_and_is_judged_as_any(make_trips, broker, request):
    stream = streamed(make_trips(columns=COLUMNS + PLACES), broker, request)
    stream.create(2)
    at = 1704096000123
    stream.send(trip(id=1), key=b"\xff\0", timestamp=at, partition=1,
                headers=[("sender", b"first"), ("attempt", b"7"), ("sender", "grün".encode())])  # fmt: skip
    stream.send(trip(id=2), timestamp=at)
    stream.send(trip(id=3), headers=[("sender", b"\xff")], timestamp=at)
    stream.send(trip(id=4), headers=[("attempt", b"07")], timestamp=at)
    stream.send(trip(id=5), headers=[("attempt", b"\xff")], timestamp=at)
    stream.send(trip(id=6, sender="me"), timestamp=at)
    stream.send(trip(id=7, zone="west"), headers=[("sender", None), ("attempt", b"1")], key=b"seven", timestamp=at)
    stream.send(trip(id=2), timestamp=at + 1)
    stream.drain()
    assert stream.refused() == {(0, 1): ("sender", "utf8"), (0, 2): ("attempt", "type"), (0, 3): ("attempt", "type"),
                                (0, 4): (None, "extra_column"), (0, 5): ("zone", "validValues"), (0, 6): ("day, id", "conflict")}  # fmt: skip
    contract = stream.trips.folder / "trips.yaml"
    contract.write_text(contract.read_text().replace("[north, south]", "[north, south, west]"))
    replayed = replay_table(stream.trips.spark, stream.recipe.lake, stream.trips.contract, Selection(), now=NOW)
    assert replayed.rows_written == 1
    assert replayed.still_refused == {"attempt: type": 2, "day, id: conflict": 1, "extra_column": 1, "sender: utf8": 1}
    rows = [(row["id"], row["sender"], row["attempt"], row["k"] and bytes(row["k"]), row["sent"].isoformat(), row["part"], row["place"])
            for row in stream.trips.rows()]  # fmt: skip
    sent = "2024-01-01T08:00:00.123000"
    assert rows == [(1, "grün", 7, b"\xff\0", sent, 1, 0), (2, None, None, None, sent, 0, 0), (7, None, 1, b"seven", sent, 0, 5)]


@pytest.mark.faults
def test_rows_of_files_hold_it_as_any_column_and_are_sent_with_it(make_trips, broker, request):
    trips = make_trips(columns=COLUMNS.replace("header:attempt", "key"))
    trips.csv(GOOD.strip() + ",me,7", header=HEADER.strip() + ",sender,attempt\n")
    stream = streamed(trips, broker, request)
    assert stream.recipe.kafka
    sent = replay_to_kafka(trips.spark, trips.recipe("a.csv"), stream.recipe.kafka, "trips", stream.topic, now=NOW, partitions=1)
    assert sent.sent == 1
    consumer = Consumer({"bootstrap.servers": broker.servers, "group.id": stream.topic})
    consumer.assign([TopicPartition(stream.topic, 0, 0)])
    (message,) = consumer.consume(1, timeout=30)
    consumer.close()
    assert (message.key(), message.headers()) == (b"7", [("sender", b"me")])
    assert b"sender" not in (message.value() or b"")
    assert stream.drain().rows_already_present == 1, "the content is the same"


def test_what_the_broker_sets_is_not_sent(make_trips, broker, request):
    trips = make_trips(columns=PLACES.splitlines()[4] + "\n")
    trips.write("a.csv", HEADER.strip() + ",place\n" + GOOD.strip() + ",1\n")
    stream = streamed(trips, broker, request)
    assert stream.recipe.kafka
    with pytest.raises(SettingError, match="column 'place' of table 'trips' is the offset of a message; the broker sets it"):
        replay_to_kafka(trips.spark, trips.recipe("a.csv"), stream.recipe.kafka, "trips", stream.topic, now=NOW)


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("{name: a, logicalType: string, customProperties: [{property: fromMessage, value: keys}]}", "did you mean 'key'"),
        ("{name: a, logicalType: string, customProperties: [{property: fromMessage, value: 'header:'}]}", "no place in a message"),
        ("{name: a, logicalType: string, customProperties: [{property: fromMessage, value: timestamp}]}", "needs a column of type timestamp"),
        ("{name: a, logicalType: string, customProperties: [{property: fromMessage, value: offset}]}", "of type bigint or int or smallint"),
        ("{name: a, logicalType: string, customProperties: [{property: fromMessage, value: key}, {property: derived, value: note}]}",
         "derived or fromMessage, not both"),
        ("{name: a, logicalType: string, customProperties: [{property: frommessage, value: key}]}", "did you mean 'fromMessage'"),
    ],
)  # fmt: skip
def test_a_place_that_is_none_is_an_error_that_names_it(tmp_path, column, told):
    made = Trips(None, tmp_path)  # type: ignore[arg-type]
    made.contract_text(columns="      - " + column)
    with pytest.raises(SettingError) as raised:
        _ = made.contract
    assert told in str(raised.value)
    lines = (tmp_path / "trips.yaml").read_text().splitlines()
    assert f"trips.yaml:{1 + lines.index('      - ' + column)}: " in str(raised.value)


def test_a_fingerprint_tells_places_and_is_the_old_one_without(tmp_path):
    made = Trips(None, tmp_path)  # type: ignore[arg-type]
    found = []
    for columns in ("", COLUMNS, COLUMNS.replace("header:sender", "key")):
        made.contract_text(columns=columns)
        found.append(read_contract(tmp_path / "trips.yaml").fingerprint)
    assert found[0] == "22bcef60011e0c85"
    assert len(set(found)) == 3
