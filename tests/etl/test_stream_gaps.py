"""What a topic has lost, or a chosen start leaves out, and where that is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from etl.sources.broker import Topic
from etl.stream.start import begin, find_gap
from etl.stream.state import STATE, State, _of_table
from lakering.errors import IntegrityError, StageError
from tests.etl.streams import trip


@pytest.mark.parametrize(
    ("topic", "gap"),
    [
        (Topic("t", "A", {0: 0, 1: 0}, {0: 9, 1: 9}), None),
        (Topic("t", "A", {0: 0, 1: 0, 2: 0}, {0: 9, 1: 9, 2: 9}), None),
        (Topic("t", "A", {0: 4, 1: 5}, {0: 9, 1: 9}), "no longer holds 3 messages that are not recorded as read: 1 of partition 0 (offsets 3 "
         "to 3), 2 of partition 1 (offsets 3 to 4)"),
        (Topic("t", "A", {0: 0, 1: 0, 2: 2}, {0: 9, 1: 9, 2: 9}), "no longer holds 2 messages that are not recorded as read: 2 of partition 2 "
         "(offsets 0 to 1)"),
        (Topic("t", "A", {0: 0, 1: 0}, {0: 1, 1: 9}), "has lost messages that were read: partition 0 ends at 1, and was read to 3"),
        (Topic("t", "A", {0: 0}, {0: 9}), "has 1 partitions, and had 2; those that are gone were read to offset 3 of partition 1, "
         "and what they held behind is lost"),
        (Topic("t", "B", {0: 1, 1: 0}, {0: 9, 1: 9}), "was deleted and created again: its id was A, read to offset 3 of partition "
         "0, offset 3 of partition 1, and is B, which holds 17 messages in 2 partitions; what the old one held behind those "
         "offsets is lost"),
    ],
)  # fmt: skip
def test_what_a_topic_has_lost_is_told_by_partition(topic, gap):
    found = find_gap(State("t", "A", 2, {0: 3, 1: 0}, {1: 3}), topic)
    assert found == (gap and f"topic 't' {gap}")


@pytest.mark.parametrize(
    ("topic", "noted", "gap"),
    [
        (Topic("t", "A", {0: 4, 1: 0}, {0: 9, 1: 1}), {}, "no longer holds 1 messages that are not recorded as read: 1 of partition 0 "
         "(offsets 3 to 3); it has lost messages that were read: partition 1 ends at 1, and was read to 3"),
        (Topic("t", "A", {0: 0, 1: 0}, {0: 4, 1: 9}), {0: 5, 1: 3, 2: 4}, "has lost messages of a batch that was begun: partition 0 ends at 4, and "
         "was to be read to 5, partition 2 ends at 0, and was to be read to 4"),
    ],
)  # fmt: skip
def test_all_kinds_of_loss_are_told_together_those_of_a_batch_that_was_begun_too(topic, noted, gap):
    assert find_gap(State("t", "A", 2, {0: 3, 1: 0}, {1: 3}), topic, noted) == f"topic 't' {gap}"


@pytest.mark.faults
def test_what_an_added_partition_lost_before_it_was_read_is_told(stream):
    stream.send(trip(id=1))
    stream.drain()
    stream.add_partitions(3)
    stream.send(trip(id=9))
    assert stream.drain().rows_written == 1
    stream.send(trip(id=2), trip(id=3), partition=2)
    stream.delete_before(1, partition=2)
    with pytest.raises(
        IntegrityError, match=r"no longer holds 1 messages that are not recorded as read: 1 of partition 2 \(offsets 0 to 0\)"
    ):
        stream.drain()
    assert stream.drain(accept_gap=True).rows_written == 1
    assert stream.ids() == [1, 3, 9]
    (gap,) = (row for row in stream.place.progress() if row["gap"] is not None)
    assert gap["offsets"][2] == {"partition": 2, "first": 0, "end": 1}


@pytest.mark.faults
@pytest.mark.parametrize("lost", [(STATE,), ()], ids=["record", "all but the table"])
def test_what_a_partition_lost_that_was_in_no_batch_is_told_without_the_record(stream, lost):
    stream.send(trip(id=1), partition=1)
    stream.drain()
    stream.send(*(trip(id=id) for id in (2, 3, 4, 5)))
    stream.delete_before(3)
    stream.place.lake.storage.delete(*stream.place.folder, *lost)
    with pytest.raises(IntegrityError, match=r"no longer holds 3 messages .+: 3 of partition 0 \(offsets 0 to 2\)"):
        stream.drain(start="table")
    assert stream.gaps() == []


@pytest.mark.parametrize(
    ("rows", "present", "counted"),
    [
        ([("A", None), ("B", None)], "B", [1]),
        ([(None, None), ("A", None)], None, [0]),
        ([(None, "gap"), ("A", None)], "A", [0, 1]),
        ([(None, "gap"), ("A", None), (None, "gap")], None, [2]),
        # The second row is a batch of refused messages alone; it stands behind what was passed over for A.
        ([(None, "gap"), (None, None), ("A", None)], None, []),
        ([("A", None), (None, "gap"), (None, None), ("B", None)], "B", [1, 3]),
        ([("A", None), (None, "gap"), (None, None), ("B", None)], None, []),
    ],
)
def test_what_was_told_counts_for_the_table_that_is_there(rows, present, counted):
    told = [{"number": number, "table_id": table, "gap": gap} for number, (table, gap) in enumerate(rows)]
    assert [row["number"] for row in _of_table(told, present)] == counted


@pytest.mark.faults
def test_what_is_passed_over_once_more_for_another_table_is_told_again(stream):
    stream.send(trip(id=1), trip(id=2))
    stream.drain(start="latest")
    assert len(stream.gaps()) == 1
    stream.drain(start="earliest")
    stream.drop_table()
    stream.drain(start="latest")
    first, second = stream.gaps()
    assert first == second


@pytest.mark.faults
def test_gaps_of_a_table_that_was_dropped_are_none_of_the_next(stream):
    stream.send(*(trip(id=id) for id in (1, 2, 3, 4)))
    stream.drain()
    stream.send(trip(id=5), trip(id=6))
    stream.delete_before(5)
    stream.drain(accept_gap=True)
    stream.send(trip(id=7), trip(id=8))
    stream.drain()
    stream.delete_before(7)
    stream.drop_table()
    with pytest.raises(IntegrityError, match="is not the one that topic"):
        stream.drain()
    assert stream.drain(start="earliest").rows_read == 1, "what is lost of the topic now was read"
    assert stream.ids() == [8]


@pytest.mark.faults
def test_what_was_passed_over_for_a_table_that_was_dropped_is_read_into_the_next(stream):
    stream.send(trip(id=1))
    stream.drain()
    stream.send(trip(id=2))
    stream.drain(start="latest")
    assert len(stream.gaps()) == 1
    stream.drop_table()
    with pytest.raises(StageError, match="run with --from earliest"):
        stream.drain(start="table")
    assert stream.drain(start="earliest").rows_written == 2
    stream.drop_table()
    stream.send(trip(id=3))
    stream.drain(start="latest")
    assert stream.gaps()[1:] == [
        "--from latest passed over 3 messages that are not recorded as read: 3 of partition 0 (offsets 0 to 2)"
    ]


def test_what_a_first_start_passes_over_is_told(stream, caplog):
    stream.send(trip(id=1), trip(id=2))
    stream.delete_before(1)
    stream.drain(start="latest")
    passed = "--from latest passed over 1 messages that are not recorded as read: 1 of partition 0 (offsets 1 to 1)"
    assert stream.gaps() == [passed]
    assert f"going on without what follows: {passed}" in caplog.text
    stream.send(trip(id=3))
    assert stream.drain().rows_read == 1
    stream.place.lake.storage.delete(*stream.place.folder, STATE)
    assert stream.drain(start="table").rows_read == 0
    assert stream.ids() == [3]


def test_latest_tells_all_that_a_topic_holds_that_lost_its_end(stream):
    stream.place.write(State(stream.topic, "A", 1, {0: 0}, {0: 100}))
    begin(stream.place, Topic(stream.topic, "A", {0: 0}, {0: 50}), "latest", False)
    assert stream.gaps() == [
        f"topic '{stream.topic}' has lost messages that were read: partition 0 ends at 50, and was read to 100; --from latest passed "
        "over 50 messages that are not recorded as read: 50 of partition 0 (offsets 0 to 49)"
    ]


@pytest.mark.faults
def test_what_latest_passes_over_of_a_topic_made_anew_is_told(stream):
    stream.send(trip(id=1))
    stream.drain()
    stream.delete()
    stream.create()
    stream.send(trip(id=2), trip(id=3), partition=1)
    stream.drain(start="latest")
    lost, passed = stream.gaps()
    assert "was deleted and created again" in lost
    assert passed == "--from latest passed over 2 messages that are not recorded as read: 2 of partition 1 (offsets 0 to 1)"
    stream.send(trip(id=4), partition=1)
    assert stream.drain().rows_read == 1
    assert stream.ids() == [1, 4]


@pytest.mark.faults
@pytest.mark.parametrize("start", ["table", "earliest", "latest"])
def test_a_table_of_batches_that_is_cut_is_named_with_what_to_do(stream, start):
    stream.send(trip(id=1))
    stream.drain()
    storage, place = stream.place.lake.storage, stream.place
    batches = Path(storage.path(*place.folder, "batches"))
    log = batches / "_delta_log" / f"{0:020d}.json"
    log.write_bytes(log.read_bytes()[:100])
    stream.send(trip(id=2))
    told = rf"{re.escape(str(batches))} cannot be read: .+\n  next: .*move it away"
    with pytest.raises(IntegrityError, match=told):
        stream.drain()
    storage.delete(*place.folder, STATE)
    with pytest.raises(IntegrityError, match=told):
        stream.drain(start=start)
    batches.rename(batches.with_name("away"))
    stream.send(trip(id=3))
    stream.drain(start=start)
    assert stream.ids() == ([1, 2] if start == "latest" else [1, 2, 3])
