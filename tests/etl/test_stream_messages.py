"""Messages that say something else than their contract's types hold."""

from __future__ import annotations

from broker import Broker

from tests.etl.conftest import Trips
from tests.etl.streams import StreamedTrips, trip


def test_a_value_is_taken_only_if_it_says_exactly_what_its_type_holds(trips: Trips, broker: Broker) -> None:
    stream = StreamedTrips(trips, broker.servers, "exact-values")
    stream.create(1)
    number = b'{"day": "2024-01-01", "id": %s, "at": "2024-01-01T08:00:00Z", "fare": %s, "price": %s}'
    unpriced = b'{"day": "2024-01-01", "id": 3, "at": "2024-01-01T08:00:00Z"}'
    stream.send(
        number % (b"1", b"10.5", b"1.25"),
        number % (b"2", b"10.5", b"1.239"), number % (b"2", b"10.5", b"100"), number % (b"2", b"1e400", b"1"),
        number % (b"2", b'"12d"', b"1"), number % (b"2", b"NaN", b"1"), number % (b"2.5", b"1", b"1"),
        number % (b"3000000000", b"1", b"1"), trip(id=2, day="2013"), trip(id=2, day=20130101), trip(id=2, at="yesterday"),
        trip(id=2, paid="t"), trip(id=2, zone=["north"]), b"[" + trip(id=2) + b"]", trip(id=2) + trip(id=3),
        unpriced, unpriced.replace(b'"at"', b'"note"'), unpriced.replace(b'"day"', b'"note"'),
    )  # fmt: skip
    assert stream.drain().rows_written == 2, "and missing fields that may be null are"
    assert {position: reason for (_, position), reason in stream.refused().items()} == {
        1: ("price", "type"), 2: ("price", "type"), 3: ("fare", "type"), 4: ("fare", "type"), 5: (None, "json"), 6: ("id", "type"),
        7: ("id", "type"), 8: ("day", "type"), 9: ("day", "type"), 10: ("at", "type"), 11: ("paid", "type"), 12: ("zone", "type"),
        13: (None, "json"), 14: (None, "json"), 16: ("at", "null"), 17: ("day", "null"),
    }  # fmt: skip
