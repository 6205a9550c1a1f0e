"""Messages of a topic, into their table and its quarantine."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import re
import shutil
import threading
import time
from typing import Any

import pytest

from etl.reasons import Selection
from etl.refused import describe_refused
from etl.replay import replay_table
from etl.stream.run import Start, stream_tables
from etl.stream.state import CHECKPOINT, STATE
from etl.tables import read_quarantine
from lakering.errors import IntegrityError, SettingError, StreamRefusedError
from tests.etl.conftest import HEADER, NOW
from tests.etl.streams import StreamedTrips, trip
from tests.etl.test_ingest_rows import line


def facts_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the lines of micro-batches told."""
    return [record.facts for record in caplog.records if hasattr(record, "facts")]


def test_each_message_has_its_fate_once_however_often_the_topic_is_read(stream):
    poison = [b"null", b'{"id": 1, "id": 2}', b"{", trip(id="7"), trip(extra=1), b'{"note": "\xff"}', b"", None, trip(id=None),
              trip(note="x" * 10_000_000), trip(fare=-1), trip(at=None)]  # fmt: skip
    stream.send(*poison, key=b"k", headers={"h": b"v"}, timestamp=1704096000123)
    stream.send(trip(id=1), trip(id=2), trip(id=2), partition=1)
    result = stream.drain()
    assert (result.rows_read, result.rows_written, result.rows_already_present, result.rows_refused) == (15, 2, 1, 12)
    stream.send(trip(id=2), trip(id=2, fare=11.0), trip(id=3), partition=0, key=b"k2")
    result = stream.drain()
    assert (result.rows_read, result.rows_written, result.rows_already_present) == (3, 1, 1)
    assert result.refused == {"day, id: conflict": 1}
    refused = stream.refused()
    assert refused == {
        (0, 0): (None, "json"), (0, 1): (None, "repeated_key"), (0, 2): (None, "json"), (0, 3): ("id", "type"),
        (0, 4): (None, "extra_column"), (0, 5): (None, "utf8"), (0, 6): (None, "empty"), (0, 7): (None, "tombstone"),
        (0, 8): ("id", "null"), (0, 9): ("note", "maxLength"), (0, 10): ("fare", "minimum"), (0, 11): ("at", "null"),
        (0, 13): ("day, id", "conflict"),
    }  # fmt: skip
    quarantine = read_quarantine(stream.trips.spark, stream.recipe.lake, "trips")
    shown = describe_refused(quarantine, Selection(), 1)["reasons"]
    assert [shown[reason]["examples"][0]["raw"] for reason in ("empty", "tombstone")] == ["", None]
    entry = quarantine.where("position = 5").collect()[0]
    assert bytes(entry["raw"]) == b'{"note": "\xff"}'
    assert (bytes(entry["key"]), [(h["key"], bytes(h["value"])) for h in entry["headers"]]) == (b"k", [("h", b"v")])
    assert entry["timestamp"].timestamp() == 1704096000.123
    entry = quarantine.where("rule = 'conflict'").collect()[0]
    assert (bytes(entry["raw"]), entry["key"], entry["headers"], entry["form"]) == (trip(id=2, fare=11.0), b"k2", None, "json")
    assert stream.ids() == [1, 2, 3]

    again = stream.drain(start="earliest")
    assert (again.rows_read, again.rows_written, again.rows_refused) == (18, 3, 13), "a stored row is known by its source"
    assert stream.ids() == [1, 2, 3]
    assert stream.refused() == refused
    stream.trips.write("a.csv", HEADER + line(id="1") + "\n" + line(id="4") + "\n")
    from_file = stream.trips.ingest("a.csv")
    assert (from_file.rows_written, from_file.rows_already_present) == (1, 1)
    assert stream.ids() == [1, 2, 3, 4]


KEY_OF_TEXT = {"primaryKey: true, primaryKeyPosition: 1, partitioned: true": "required: true",
               "primaryKey: true, primaryKeyPosition: 2": "required: true",
               "- name: zone": "- name: zone\n        primaryKey: true"}  # fmt: skip


@pytest.mark.parametrize("changes", [{", partitioned: true": ""}, KEY_OF_TEXT], ids=["numbers", "text"])
def test_without_partitions_batches_of_nothing_and_of_poison_alone_are_taken_in(stream, changes):
    path = stream.trips.folder / "trips.yaml"
    for old, new in changes.items():
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    assert stream.drain().rows_read == 0
    stream.send(b"{", None)
    assert stream.drain().refused == {"json": 1, "tombstone": 1}
    stream.send(trip(id=1), b"{")
    result = stream.drain()
    assert (result.rows_written, result.rows_refused) == (1, 1)
    assert stream.ids() == [1]


def test_a_checkpoint_that_is_gone_or_broken_is_an_error_that_names_the_choices(stream):
    stream.send(trip(id=1))
    stream.drain()
    folder = stream.place.lake.storage.path(*stream.place.checkpoint)
    shutil.move(folder, folder + ".kept")
    with pytest.raises(IntegrityError, match=r"checkpoint is missing[\s\S]+--from table.+--from earliest.+--from latest"):
        stream.drain()
    stream.place.lake.storage.delete(*stream.place.folder)
    with pytest.raises(IntegrityError, match="checkpoint is missing"):
        stream.drain()
    stream.send(trip(id=2))
    assert stream.drain(start="table").rows_read == 2, "the table's commits tell what is in; the last of them is read again"
    another = StreamedTrips(stream.trips, stream.servers, stream.topic + "-2")
    another.create()
    another.send(trip(id=2))
    another.drain()
    folder, theirs = (made.place.lake.storage.path(*made.place.checkpoint) for made in (stream, another))
    shutil.move(folder, folder + ".kept-2")
    shutil.copytree(theirs, folder)
    with pytest.raises(IntegrityError, match="another query's: its id is"):
        stream.drain()
    recorded = stream.state
    stream.place.write(dataclasses.replace(recorded, batch=-1, checkpoint_id=None))
    with pytest.raises(IntegrityError, match=f"another query's: it reads {another.topic}, not {stream.topic}"):
        stream.drain()
    stream.place.write(recorded)
    shutil.rmtree(folder)
    shutil.move(folder + ".kept-2", folder)
    other = stream.place.lake.storage.path(*stream.place.checkpoint, "metadata")
    whole = stream.place.lake.storage.read(*stream.place.checkpoint, "metadata")
    with open(other, "wb") as file:
        file.write(whole[:-5])
    with pytest.raises(IntegrityError, match="metadata is not whole"):
        stream.drain()
    with open(other, "wb") as file:
        file.write(whole)
    record = stream.place.lake.storage.read(*stream.place.folder, STATE)
    stream.place.lake.storage.delete(*stream.place.folder, STATE)
    with pytest.raises(IntegrityError, match=r"has lost its record beside it[\s\S]+--from table"):
        stream.drain()
    stream.place.lake.storage.write(record, *stream.place.folder, STATE)
    stream.place.lake.storage.write(b"v1\n{", *stream.place.checkpoint, "offsets", "0")
    with pytest.raises(IntegrityError, match="offsets/0 is not whole"):
        stream.drain()
    assert stream.ids() == [1, 2]


def test_messages_that_are_lost_are_told_and_passed_over_by_choice_alone(stream):
    stream.send(trip(id=1), trip(id=2))
    stream.drain()
    stream.send(*(trip(id=number) for number in range(3, 8)))
    stream.delete_before(5)
    with pytest.raises(IntegrityError, match=r"no longer holds 3 messages.+3 of partition 0 \(offsets 2 to 4\)"):
        stream.drain()
    assert stream.drain(accept_gap=True).rows_written == 2
    assert stream.ids() == [1, 2, 6, 7]
    first, gap, last = stream.place.progress()
    assert "no longer holds 3 messages" in gap["gap"]
    assert gap["offsets"] == [{"partition": 0, "first": 2, "end": 5}, {"partition": 1, "first": 0, "end": 0}]
    assert [(row["batch"], row["offsets"], row["rows_written"], row["gap"]) for row in (first, last)] == [
        (0, [{"partition": 0, "first": 0, "end": 2}, {"partition": 1, "first": 0, "end": 0}], 2, None),
        (0, [{"partition": 0, "first": 5, "end": 7}, {"partition": 1, "first": 0, "end": 0}], 2, None)]  # fmt: skip


def test_too_many_refused_stop_the_stream_behind_them(make_trips, broker):
    trips = make_trips(table="      - {property: maxRefusedShare, value: 0.5}")
    stream = StreamedTrips(trips, broker.servers, "too-many-refused")
    stream.create(1)
    stream.send(trip(id=1), b"{", b"{")
    with pytest.raises(StreamRefusedError, match="2 of the 3 messages") as raised:
        stream.drain()
    assert raised.value.exit_status == 9
    assert stream.ids() == [1]
    assert len(stream.refused()) == 2
    stream.send(trip(id=2))
    assert stream.drain().rows_read == 1
    assert stream.ids() == [1, 2]


def test_of_a_table_that_replaces_the_newer_stands_however_messages_come(make_trips, broker, caplog):
    trips = make_trips(table="      - {property: repeatedKey, value: replace}\n      - {property: orderBy, value: at}")
    stream = StreamedTrips(trips, broker.servers, "replaces")
    stream.create(1)
    for rows, fates in (
        ([(1, 3, 3.0), (1, 2, 2.0), (2, 1, 1.0)], (2, 0, 1)),
        ([(1, 1, 1.0), (2, 4, 4.0), (2, 2, 2.0)], (1, 0, 2)),
    ):
        stream.send(*(trip(id=id, at=f"2024-01-0{day}T00:00:00Z", fare=fare) for id, day, fare in rows))
        with caplog.at_level(logging.INFO, "etl.stream"):
            result = stream.drain()
        assert (result.rows_written, result.rows_already_present, result.rows_superseded) == fates
        facts = facts_of(caplog)[-1]
        assert (facts["written"], facts["already_present"], facts["superseded"]) == fates
        stored = trips.rows()
    assert [(row["id"], row["fare"], row["_position"]) for row in stored] == [(1, 3.0, 0), (2, 4.0, 4)]
    assert stream.drain(start="earliest").rows_read == 6
    assert trips.rows() == stored


def test_records_dated_into_the_future_move_the_watermark_no_further_than_to_now(stream):
    ahead = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(minutes=30)
    stream.send(trip(id=1, at=ahead.isoformat().replace("+00:00", "Z")), timestamp=int(ahead.timestamp() * 1000))
    result = stream.drain()
    assert result.rows_written == 1
    assert datetime.datetime.fromisoformat(str(result.watermark)) <= datetime.datetime.now(datetime.UTC)


def test_late_and_future_are_told_by_the_row_and_never_move_the_watermark(make_trips, broker, caplog):
    trips = make_trips(table="      - {property: late, value: 1 hour}\n      - {property: future, value: 10 minutes}")
    stream = StreamedTrips(trips, broker.servers, "late-and-future")
    stream.create(1)
    eight = 1704096000000  # GOOD's event time, in ms
    for number, seconds in enumerate((3600, 3601, -600, -601, 5), start=1):
        stream.send(trip(id=number), timestamp=eight + seconds * 1000)
    stream.send(trip(id=9, at="2030-01-01T00:00:00Z"), timestamp=eight)
    with caplog.at_level(logging.INFO, "etl.stream"):
        result = stream.drain()
    (facts,) = facts_of(caplog)
    assert (facts["late"], facts["refused"]) == (1, 3)
    assert result.refused == {"at: future": 2, "at: late": 1}
    assert stream.ids() == [1, 3, 5]
    assert result.watermark == "2024-01-01T08:00:00+00:00"
    assert result.lateness == {"ahead": 3, "below 10 s": 1, "below 1 day": 2}


def test_a_micro_batch_takes_so_many_bytes_at_most_and_tells_what_is_behind_it(stream, caplog):
    hour_ago = int(time.time() * 1000) - 3_600_000
    stream.send(*(trip(id=number) for number in range(8)), b"x" * 100, key=b"k" * 1000, timestamp=hour_ago)
    stream.more = ", max_bytes_per_trigger: 4000"
    with caplog.at_level(logging.INFO, "etl.stream"):
        assert stream.drain().batches == 3, "three messages of some 1,100 bytes each"
    assert stream.ids() == list(range(8))
    told = facts_of(caplog)
    assert [[facts[name] for name in ("batch", "rows", "written", "refused", "rows_behind")] for facts in told] == [
        [0, 3, 3, 0, 6], [1, 3, 3, 0, 3], [2, 3, 2, 1, 0]]  # fmt: skip
    assert all(3600 <= facts["seconds_behind"] < 3900 for facts in told)
    assert told[-1]["watermark"] == "2024-01-01T08:00:00+00:00"


def test_refused_messages_come_in_once_their_contract_is_mended_judged_by_their_own_times(make_trips, broker):
    trips = make_trips(table="      - {property: late, value: 1 hour}")
    stream = StreamedTrips(trips, broker.servers, "mended")
    stream.create(1)
    eight = 1704096000000  # GOOD's event time, in ms
    stream.send(trip(id=1, zone="west"), trip(id=2, zone="east"), b"", timestamp=eight)
    stream.send(trip(id=3, zone="west"), timestamp=eight + 3601 * 1000)
    stream.send(trip(id=4, note="x" * 70_000), timestamp=eight)
    assert stream.drain().refused == {"zone: validValues": 3, "empty": 1, "note: maxLength": 1}
    contract = trips.folder / "trips.yaml"
    contract.write_text(contract.read_text().replace("[north, south]", "[north, south, west]"))
    for written in (1, 0):
        result = replay_table(trips.spark, stream.recipe.lake, trips.contract, Selection(), now=NOW)
        assert (result.rows_written, result.still_refused) == (written, {
            "at: late": 1, "cut: read the topic again with --from earliest": 1, "empty": 1, "zone: validValues": 1})  # fmt: skip
    (row,) = trips.rows()
    assert (row["id"], row["_source"], row["_position"]) == (1, f"kafka:{stream.state.topic_id}/0", 0)
    assert stream.drain(start="earliest").rows_written == 1, "it is known by the source and position that it had"
    assert stream.ids() == [1]


def test_poison_alone_makes_no_table_and_is_read_once(stream):
    stream.send(b"{", b"null")
    assert (stream.drain().rows_refused, stream.drain().rows_read) == (2, 0)
    assert not stream.place.lake.storage.exists(*stream.place.lake.table("trips"))
    stream.send(trip(id=1))
    assert stream.drain().rows_written == 1
    assert len(stream.refused()) == 2
    for file in (stream.trips.folder / "lake/quarantine/trips").glob("day=*/*.parquet"):
        file.unlink()  # who reads it, fails
    stream.send(b"[")
    assert stream.drain().rows_refused == 1


def test_where_record_and_checkpoint_are_lost_the_table_of_batches_tells_of_those_without_a_row_too(stream):
    def lose() -> None:
        for name in (STATE, CHECKPOINT):
            stream.place.lake.storage.delete(*stream.place.folder, name)

    stream.send(b"{", b"null")
    stream.drain()
    lose()
    assert stream.drain(start="table").rows_read == 0
    stream.send(trip(id=1))
    stream.drain()
    stream.send(b"{")
    stream.drain()
    lose()
    with pytest.raises(IntegrityError, match="its checkpoint is missing"):
        stream.drain()
    assert stream.drain(start="table").rows_read == 0
    lose()
    shutil.rmtree(stream.trips.folder / "lake/tables/trips")
    assert stream.drain(start="table").rows_read == 2, "all that was read when there was a table"
    assert stream.ids() == [1]
    assert len(stream.refused()) == 3


KEYLESS = {"primaryKey: true, primaryKeyPosition: 1, partitioned: true": "required: true",
           "primaryKey: true, primaryKeyPosition: 2": "required: true"}  # fmt: skip


def test_of_a_table_without_a_key_only_files_with_places_of_the_batch_are_read(stream):
    path = stream.trips.folder / "trips.yaml"
    for old, new in KEYLESS.items():
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    stream.send(trip(id=1), trip(id=1))
    assert stream.drain().rows_written == 2
    (file,) = (stream.trips.folder / "lake/tables/trips").glob("*.parquet")
    kept = file.rename(file.with_suffix(".kept"))  # who reads it, fails
    stream.send(trip(id=1))
    assert stream.drain().rows_written == 1
    kept.rename(file)
    assert stream.drain(start="earliest").rows_written == 3, "each is known by its source and position"
    assert stream.ids() == [1, 1, 1]


@pytest.mark.faults
def test_batches_of_other_sizes_come_to_the_same_verdicts(make_trips, broker):
    trips = make_trips(table="      - {property: late, value: 1 hour}\n      - {property: future, value: 10 minutes}")
    stream = StreamedTrips(trips, broker.servers, "other-sizes")
    stream.create(2)
    eight = 1704096000000  # GOOD's event time, in ms
    for number in range(12):
        values = [trip(id=number % 5), trip(id=number), b"{", trip(id=100 + number, fare=float(number % 2))]
        stream.send(*values, partition=number % 2, timestamp=eight + number * 600_000)
        stream.send(trip(id=200), partition=number % 2, timestamp=eight - 601_000)
    found = []
    for size in (1000, 10):
        shutil.rmtree(trips.folder / "lake", ignore_errors=True)
        stream.max_offsets = size
        batches = stream.drain().batches
        assert (batches > 5) == (size == 10)
        stored = [(row["id"], row["fare"]) for row in trips.rows()]
        found.append((stored, stream.refused(), stream.state.totals))
    assert found[0] == found[1]
    assert [id for id, _ in found[0][0]] == [*range(7), *range(100, 107)]
    assert [list(found[0][1].values()).count(("at", rule)) for rule in ("late", "future")] == [15, 12]


@pytest.mark.faults
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_topic_made_anew_is_told_whatever_it_holds(trips, broker, number):
    stream = StreamedTrips(trips, broker.servers, f"made-anew-{number}")
    stream.create(1)
    stream.send(trip(id=1), trip(id=2))
    stream.drain()
    stream.delete()
    stream.create(1)
    stream.send(*(trip(id=10 + n) for n in range(number)))
    told = rf"deleted and created again: .+, read to offset 2 of partition 0, and is .+, which holds {number} messages in 1 part"
    with pytest.raises(IntegrityError, match=told):
        stream.drain()
    assert stream.drain(accept_gap=True).rows_written == number
    assert stream.ids() == [1, 2, *(10 + n for n in range(number))]
    assert [re.search(told, row["gap"] or "") is not None for row in stream.place.progress()] == [False, True, False]


@pytest.mark.faults
def test_partitions_that_are_added_are_read(stream):
    stream.send(trip(id=1))
    stream.drain()
    stream.add_partitions(3)
    stream.send(trip(id=2), partition=2)
    assert stream.drain().rows_written == 1
    assert stream.state.next == {0: 1, 1: 0, 2: 1}


def test_a_recipe_without_a_topic_names_the_batch_job(trips):
    recipe = trips.recipe("a.csv")
    with pytest.raises(SettingError, match=r"ingest_batch\.py"):
        stream_tables(trips.spark, recipe, {"trips": trips.contract}, Start(None), threading.Event(), {})
