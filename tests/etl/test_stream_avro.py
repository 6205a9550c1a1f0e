"""Messages in Avro: by one schema, or by the schema that each names."""

from __future__ import annotations

import json
import re
import struct

import pytest
from broker import Broker
from pyspark.sql import DataFrame

from etl.reasons import Selection
from etl.refused import describe_refused
from etl.replay import replay_table
from etl.sources.registry import WriterSchemas, open_schemas
from etl.stream.messages import judged_messages
from etl.tables import read_quarantine
from etl.tools.replay_to_kafka import replay_table as replay_to_kafka
from lakering.errors import LakeringError, SettingError
from schemas.avro import parse_writer_schema
from tests.etl.avro_bytes import (
    DATE,
    INSTANT,
    TRIP,
    avro_trip,
    days,
    decimal,
    framed,
    maybe,
    micros,
    record,
    text,
    trial_registry,
    whole,
)
from tests.etl.conftest import NOW, Trips
from tests.etl.streams import StreamedTrips, trip

#: A string of two billion bytes, says its length.
HUGE = whole(2_000_000_000) + b"hello"
AT = micros("2024-01-01T08:00:00+00:00")
SHORT = record(("at", INSTANT), ("id", "long"), ("day", DATE), name="org.trips.Short")


def short_trip(id: int) -> bytes:
    return whole(AT) + whole(id) + whole(days("2024-01-01"))


@pytest.fixture
def bare(trips: Trips, broker: Broker, request: pytest.FixtureRequest) -> StreamedTrips:
    """A topic of bare messages."""
    (trips.folder / "trips.avsc").write_text(json.dumps(TRIP))
    return StreamedTrips(trips, broker.servers, re.sub(r"\W", "-", request.node.name), format="avro, schema_file: trips.avsc")


@pytest.fixture
def wired(trips: Trips, broker: Broker, request: pytest.FixtureRequest) -> StreamedTrips:
    """A topic of messages that name a schema of a folder."""
    (trips.folder / "avro").mkdir()
    (trips.folder / "avro" / "1.avsc").write_text(json.dumps(TRIP))
    return StreamedTrips(
        trips, broker.servers, re.sub(r"\W", "-", request.node.name), format="avro", kafka=", registry: {folder: avro}"
    )


def test_a_message_is_what_its_bytes_say_or_is_refused(bare):
    bare.create(2)
    good = avro_trip(1)
    poison = [good[:-1], good + b"\0", b"", None, good[:9], avro_trip(2, note=HUGE), avro_trip(3, price=HUGE),
              avro_trip(4, fare=float("nan")), avro_trip(5, fare=float("inf")), avro_trip(6, note=text(b"\xff")),
              avro_trip(7, price=decimal(12345)), avro_trip(8, price=decimal(2**64 + 12500, 9)),
              avro_trip(9, price=decimal(10**40, 20)), avro_trip(10, fare=-1.0), avro_trip(2**31), good.replace(text("north"), text("w"))]  # fmt: skip
    bare.send(*poison)
    bare.send(good, avro_trip(2, fare=None, price=None, note=None), avro_trip(3, price=decimal(-12500)), good, partition=1)
    result = bare.drain()
    assert (result.rows_written, result.rows_already_present, result.rows_refused) == (3, 1, 16)
    avro, kind = (None, "avro"), "type"
    reasons = [avro, avro, (None, "empty"), (None, "tombstone"), avro, avro, avro, ("fare", kind), ("fare", kind), ("note", "utf8"),
               ("price", kind), ("price", kind), ("price", kind), ("fare", "minimum"), ("id", kind), ("zone", "validValues")]  # fmt: skip
    refused = bare.refused()
    assert [refused[0, number] for number in range(16)] == [*reasons[:12], avro, *reasons[13:]]
    first, second, third = bare.trips.rows()
    assert (first["at"].isoformat(), str(first["day"]), first["fare"], str(first["price"]), first["zone"], first["paid"],
            first["note"]) == ("2024-01-01T08:00:00", "2024-01-01", 10.5, "1.25", "north", True, "hello")  # fmt: skip
    assert (second["fare"], second["price"], second["note"], str(third["price"])) == (None, None, None, "-1.25")

    bare.trips.write("a.json", trip(id=1) + b"\n" + trip(id=3, price=-1.25) + b"\n")
    assert bare.trips.ingest("a.json", "json").rows_already_present == 2, "a row is the same whatever it was written in"
    entries = {row["position"]: row for row in read_quarantine(bare.trips.spark, bare.recipe.lake, "trips").collect()}
    assert [(bytes(entries[n]["raw"]), entries[n]["form"], entries[n]["header"]) for n in (0, 4, 9)] == [
        (value, "avro", [bare.topic]) for value in (good[:-1], good[:9], poison[9])]  # fmt: skip
    quarantine = read_quarantine(bare.trips.spark, bare.recipe.lake, "trips")
    shown = describe_refused(quarantine, Selection(), 1)["reasons"]["note: utf8"]["examples"][0]
    assert "\\xff" in shown["raw"]


def judged(trips: Trips, schema: object, *values: bytes, others: tuple[object, ...] = ()) -> DataFrame:
    """Messages of a schema, without a broker; with ``others`` they name it, as schema 0."""
    rows: list[tuple[object, ...]] = [(None, bytearray(value), 0, number, NOW, []) for number, value in enumerate(values)]
    frame = trips.spark.createDataFrame(
        rows, "key binary, value binary, partition int, offset long, timestamp timestamp, headers array<struct<key:string,value:binary>>")  # fmt: skip
    parsed = [parse_writer_schema(json.dumps(one)) for one in (schema, *others)]
    schemas = WriterSchemas("x", bare=None if others else parsed[0])
    schemas.known.update(enumerate(parsed) if others else ())
    return judged_messages(frame, "kafka:x/", trips.contract, schemas)


def num_decodings(rows: DataFrame) -> int:
    return rows._jdf.queryExecution().executedPlan().toString().count("from_avro(")


def test_a_message_is_decoded_once(trips):
    assert num_decodings(judged(trips, TRIP, avro_trip())) == 1
    documented = {**TRIP, "doc": "says nothing of the bytes"}
    assert num_decodings(judged(trips, TRIP, framed(0, avro_trip()), others=(SHORT, documented))) == 2, "by each that differs"


def test_arrays_are_read_and_a_length_that_is_claimed_makes_no_room(make_trips):
    tile = "      - {name: tile, logicalType: array, items: {logicalType: number, physicalType: float}, customProperties: [{property: shape, value: [2]}]}\n"
    schema = record(*((field["name"], field["type"]) for field in SHORT["fields"]), ("tile", {"type": "array", "items": "float"}))
    good = whole(2) + struct.pack("<ff", 0.1, 2) + whole(0)
    wrong = [whole(1) + struct.pack("<f", 1) + whole(0), whole(2) + struct.pack("<ff", float("nan"), 2) + whole(0),
             whole(2_000_000_000) + good, whole(-2_000_000_000) + whole(9) + good]  # fmt: skip
    rows = judged(make_trips(columns=tile), schema, *(short_trip(n) + end for n, end in enumerate([good, *wrong]))).collect()
    assert rows[0]["tile"] == [pytest.approx(0.1), 2.0]
    assert [row["_refusal"] and row["_refusal"]["rule"] for row in rows] == [None, "shape", "type", "avro", "avro"]


def test_a_local_time_is_an_instant_by_the_contracts_zone(make_trips):
    trips = make_trips(table="      - {property: timestampZone, value: Europe/Berlin}")
    schema = record(("at", {"type": "long", "logicalType": "local-timestamp-millis"}), ("id", "long"), ("day", DATE))
    times = [micros(f"2024-{at}:00+00:00") // 1000 for at in ("01-01T09:00", "03-31T02:30")]
    rows = judged(trips, schema, *(whole(at) + whole(1) + whole(days("2024-01-01")) for at in times)).collect()
    assert rows[0]["at"].isoformat() == "2024-01-01T08:00:00"
    refusal = rows[1]["_refusal"]
    assert (refusal["column"], refusal["rule"]) == ("at", "type"), "an hour that the change to summer time left out"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ([("day", DATE), ("id", "string"), ("at", INSTANT)], "its field 'id' holds string, the contract says int"),
        ([("day", DATE), ("id", "int"), ("at", {"type": "long", "logicalType": "local-timestamp-micros"})],
         "its field 'at' holds timestamps without a zone"),
        ([("day", DATE), ("id", "int")], "it lacks the field 'at', which the contract requires"),
        ([("day", DATE), ("id", "int"), ("at", INSTANT), ("At", "int")], "it has the field 'At', which the contract does not"),
        ([("day", DATE), ("id", {"type": "enum", "name": "E", "symbols": ["a", "a"]})], "Duplicate enum symbol"),
    ],
)  # fmt: skip
def test_a_schema_file_that_no_message_can_fit_by_is_told_at_the_start(bare, fields, told):
    (bare.trips.folder / "trips.avsc").write_text(json.dumps(record(*fields)))
    bare.create(1)
    with pytest.raises(SettingError, match=rf"schema_file .*trips\.avsc does not fit table 'trips': .*{told}"):
        bare.drain()


def test_messages_name_their_schemas_and_one_that_is_learnt_later_lets_them_in(wired):
    folder = wired.trips.folder / "avro"
    wired.create(1)
    (folder / "2.avsc").write_text(json.dumps(SHORT))
    (folder / "3.avsc").write_text('"string"')
    (folder / "4.avsc").write_text(json.dumps(record(("at", INSTANT), ("id", "long"), ("day", DATE), ("Note", "int"))))
    (folder / "6.avsc").write_text(json.dumps(record(("at", INSTANT), ("id", "long"), ("day", DATE), ("note", ["null", "int"]))))
    wrong = [("at", INSTANT), ("id", ["null", "string"]), ("day", DATE), ("note", "int"), ("paid", ["null", TRIP])]
    (folder / "5.avsc").write_text(json.dumps(record(*wrong, name="Wrong")))
    start, noted = whole(AT), maybe(None) + whole(days("2024-01-01"))
    wired.send(framed(1, avro_trip(1)), framed(2, short_trip(2)), framed(1, avro_trip(3, note=None)), framed(3, text("a")),
               framed(4, short_trip(4) + whole(1)), framed(5, start + maybe(text("5")) + whole(days("2024-01-01")) + whole(7) + maybe(None)),
               framed(5, start + noted + whole(7) + maybe(None)), framed(9, short_trip(9)), b"\x01" + framed(1, avro_trip(10))[1:],
               b"\0\0\0\1", framed(1, avro_trip(11)) + b"x", framed(2, b""), b"", framed(2**32 - 1, b"x"),
               framed(6, short_trip(13) + maybe(whole(7))), framed(6, short_trip(14) + maybe(None)))  # fmt: skip
    result = wired.drain()
    assert (result.rows_written, wired.ids()) == (4, [1, 2, 3, 14])
    assert [(row["id"], row["note"], row["zone"]) for row in wired.trips.rows()] == [
        (1, "hello", "north"),
        (2, None, None),
        (3, None, "north"),
        (14, None, None),
    ]
    rows = read_quarantine(wired.trips.spark, wired.recipe.lake, "trips").orderBy("position").collect()
    assert [(row["position"], row["column"], row["rule"], row["value"]) for row in rows] == [
        (3, None, "schema", "not a record"), (4, None, "extra_column", "Note"), (5, "id", "type", "5"), (6, "id", "null", None),
        (7, None, "schema_id", "9"), (8, None, "avro_header", None), (9, None, "avro_header", None), (10, None, "avro", "1"),
        (11, None, "avro", "2"), (12, None, "empty", None), (13, None, "schema_id", "4294967295"), (14, "note", "type", "7")]  # fmt: skip

    (folder / "9.avsc").write_text(json.dumps(SHORT))
    wired.send(framed(9, short_trip(12)), framed(2, short_trip(2)))
    result = wired.drain()
    assert (result.rows_written, result.rows_already_present) == (1, 1)
    lake, contract, spark = wired.recipe.lake, wired.trips.contract, wired.trips.spark
    told = replay_table(spark, lake, contract, Selection(), now=NOW).still_refused
    assert told == {f"the recipe has no topic '{wired.topic}' of format avro for this table": 11, "empty": 1}
    (source,) = wired.recipe.settings.tables["trips"].topics
    schemas = open_schemas(wired.recipe, source)
    assert schemas is not None
    replayed = replay_table(spark, lake, contract, Selection(), now=NOW, schemas=[schemas])
    assert (replayed.rows_written, replayed.entries_marked) == (1, 1)
    assert replayed.still_refused == {"avro": 2, "avro_header": 2, "empty": 1, "extra_column": 1, "id: null": 1, "id: type": 1,
                                      "note: type": 1, "schema": 1, "schema_id": 1}  # fmt: skip
    assert wired.ids() == [1, 2, 3, 9, 12, 14]


def test_a_registry_that_does_not_answer_stops_the_job_and_refuses_nothing(wired, monkeypatch):
    monkeypatch.setenv("TEST_REGISTRY_PASSWORD", "sesame-open")
    wired.create(1)
    wired.send(framed(1, avro_trip(1)))
    with trial_registry() as registry:
        wired.kafka = f", registry: {{url: '{registry.url()}', user: alice, password_variable: TEST_REGISTRY_PASSWORD}}"
        registry.answer(1, 401)
        with pytest.raises(LakeringError, match="status 401") as raised:
            wired.drain()
        assert "sesame-open" not in str(raised.value) + repr(raised.value)
        registry.answers.clear()
        registry.answer(1, 200, {"schema": json.dumps(TRIP)})
        assert wired.drain().rows_written == 1
    assert wired.ids() == [1]


def test_rows_of_files_are_not_sent_as_avro(wired):
    assert wired.recipe.kafka
    with pytest.raises(SettingError, match=r"is of format avro in .*, and rows of files are sent as JSON"):
        replay_to_kafka(wired.trips.spark, wired.recipe, wired.recipe.kafka, "trips", wired.topic, now=NOW)
