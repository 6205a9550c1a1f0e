"""What happens to a stream in the middle of a micro-batch, and after the batch that another topic's stream ended with."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from py4j.finalizer import ThreadSafeFinalizer
from pyspark.sql import DataFrame, SparkSession

import etl.stream.batch
import etl.stream.run
from etl.stream.batch import Stream
from etl.stream.run import Start, stream_tables
from etl.tables import SmallFiles
from lakering.errors import BusyError, IntegrityError, StreamRefusedError
from lakering.lake import Lake
from recipes import read_recipe
from tests.etl.streams import StreamedTrips, trip
from tests.etl.test_stream_faults import kill_at

PATIENCE_S = 240.0


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Has something done as each micro-batch begins, whose messages Spark has planned by then, and not read."""

    def do(what: Callable[[int], None]) -> None:
        take = Stream.take

        def held(stream: Stream, spark: SparkSession, messages: DataFrame, number: int) -> None:
            what(number)
            take(stream, spark, messages, number)

        monkeypatch.setattr(Stream, "take", held)

    return do


def test_messages_that_retention_takes_from_under_a_batch_are_told(stream, between):
    stream.send(trip(id=1), trip(id=2))
    stream.drain()
    stream.send(*(trip(id=number) for number in range(3, 8)))

    def delete(_number: int) -> None:
        stream.delete_before(5)

    between(delete)
    with pytest.raises(IntegrityError, match=r"no longer holds 3 messages.+3 of partition 0 \(offsets 2 to 4\)"):
        stream.drain()
    assert stream.drain(accept_gap=True).rows_written == 2
    assert stream.ids() == [1, 2, 6, 7]


def test_told_to_stop_a_job_finishes_the_batch_it_is_at_and_lets_no_other_on_its_stream_until_then(stream, between):
    stream.max_offsets = 2
    stream.send(*(trip(id=number) for number in range(5)))
    held, go, stop = threading.Event(), threading.Event(), threading.Event()

    def wait(number: int) -> None:
        if number == 1:
            held.set()
            assert go.wait(PATIENCE_S)

    between(wait)
    recipe = stream.recipe
    with ThreadPoolExecutor(1) as pool:
        job: Future[None] = pool.submit(stream_tables, stream.trips.spark, recipe, {"trips": recipe.contract("trips")},
                                        Start("100 milliseconds"), stop, {})  # fmt: skip
        try:
            assert held.wait(PATIENCE_S), job
            stop.set()
            with pytest.raises(BusyError, match="another process works on the stream"):
                stream.drain()
        finally:
            stop.set()
            go.set()
        assert job.result(PATIENCE_S) is None
    assert stream.ids() == [0, 1, 2, 3], "the batch it was at is in, and no other"
    assert stream.place.lake.storage.exists(*stream.place.checkpoint, "commits", "1"), "Spark's own note was written"
    assert not stream.place.lake.storage.exists(*stream.place.checkpoint, "commits", "2")


@pytest.mark.faults
def test_a_table_that_is_dropped_while_its_stream_runs_is_told_before_another_is_made(stream, between):
    stream.max_offsets = 1
    stream.send(trip(id=1), trip(id=2))
    between(lambda number: stream.drop_table() if number == 1 else None)
    with pytest.raises(IntegrityError, match="table 'trips' is not the one that topic"):
        stream.drain()
    assert stream.place.table_version() == (None, -1)
    stream.max_offsets = 1000
    assert stream.drain(start="earliest").rows_written == 2
    assert stream.ids() == [1, 2]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("batch", "told"), [(0, "was dropped while a micro-batch was written"), (1, "is not the one that topic")]
)
def test_a_table_that_is_dropped_in_the_middle_of_a_batch_is_told_before_the_batch_is_recorded(stream, monkeypatch, batch, told):
    stream.max_offsets = 1
    stream.send(trip(id=1), trip(id=2))
    record = Stream._record

    def dropped(self: Stream, *others: Any) -> None:
        if self.state.batch == batch - 1:
            stream.drop_table()
        record(self, *others)

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "_record", dropped)
        with pytest.raises(IntegrityError, match=told):
            stream.drain()
    assert stream.state.batch == batch - 1
    assert stream.drain(start="earliest" if batch else None).rows_written == 2
    assert stream.ids() == [1, 2]


@pytest.mark.faults
def test_a_broker_that_is_killed_in_the_middle_is_waited_for_and_costs_no_message(trips, own, between):
    stream = StreamedTrips(trips, own.servers, "killed-broker", max_offsets=20)
    stream.create(2)
    for partition in (0, 1):
        stream.send(*(trip(id=number) for number in range(partition, 60, 2)), b"{", partition=partition)
    again = threading.Thread(target=own.start)

    def kill(number: int) -> None:
        if number == 1:
            own.kill()
            again.start()

    between(kill)
    assert stream.drain().rows_read == 62
    again.join()
    assert stream.ids() == list(range(60))
    assert stream.refused() == {(0, 30): (None, "json"), (1, 30): (None, "json")}
    assert stream.state.totals["read"] == 62


@pytest.mark.faults
def test_a_topic_that_lost_its_end_with_the_batch_of_a_killed_job_is_told(trips, own, spark_conf_dir, tmp_path):
    stream = StreamedTrips(trips, own.servers, "cut")
    stream.create(2)
    stream.send(trip(id=1))
    stream.drain()
    stream.send(trip(id=2))
    own.stop()
    data, earlier = own.folder / "data", tmp_path / "earlier"
    shutil.copytree(data, earlier)
    own.start()
    stream.send(trip(id=3), trip(id=4))
    kill_at("before the merge", stream, spark_conf_dir)
    own.stop()
    # As where a replica that was behind became the leader.
    shutil.rmtree(data)
    earlier.rename(data)
    own.start()
    lost = "has lost messages of a batch that was begun: partition 0 ends at 2, and was to be read to 4"
    for start in (None, "table", "earliest"):
        with pytest.raises(IntegrityError, match=f"topic 'cut' {lost}\n  next: run with --accept-gap"):
            stream.drain(start=start)
    assert stream.drain(accept_gap=True).rows_written == 1
    assert stream.gaps() == [f"topic 'cut' {lost}"]
    stream.send(trip(id=5))
    assert stream.drain().rows_read == 1
    assert stream.ids() == [1, 2, 5]


@pytest.mark.faults
def test_a_partition_that_a_stream_writes_keeps_few_files(stream, monkeypatch):
    monkeypatch.setattr(etl.stream.batch, "SmallFiles", partial(SmallFiles, limit=2))
    stream.max_offsets = 1
    stream.send(*(trip(id=number) for number in range(4)))
    assert stream.drain().batches == 4
    log = stream.trips.folder / "lake/tables/trips/_delta_log"
    commits = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(log.glob("*.json"))]
    merges = [actions for actions in commits if any(a.get("commitInfo", {}).get("operation") == "OPTIMIZE" for a in actions)]
    assert [sum("remove" in action for action in actions) for actions in merges] == [3]
    assert stream.ids() == [0, 1, 2, 3]


def test_what_batches_made_in_the_jvm_is_let_go_though_python_does_not_look_for_cycles(stream, monkeypatch):
    monkeypatch.setattr(etl.stream.run, "COLLECT_EVERY", 2)
    stream.max_offsets = 1
    stream.send(*(trip(id=number) for number in range(3)))
    gc.collect()
    gc.disable()
    try:
        before = len(ThreadSafeFinalizer.finalizers)  # one for each Java object that Python holds
        assert stream.drain().batches == 3
        held = len(ThreadSafeFinalizer.finalizers) - before
    finally:
        gc.enable()
    assert held < 100
    assert stream.ids() == [0, 1, 2]


def test_what_is_read_beside_the_batches_and_fails_costs_nothing(stream, monkeypatch):
    asked = []

    def fail(spark: SparkSession, lake: Lake, table: str) -> None:
        asked.append(table)
        raise OSError("no answer")

    monkeypatch.setattr(etl.stream.batch, "read_state", fail)
    stream.max_offsets = 1
    stream.send(trip(id=0), b"{", trip(id=1))
    assert stream.drain().batches == 3
    assert stream.ids() == [0, 1]
    assert asked == ["trips"] * 2


def test_a_topic_with_too_much_poison_ends_the_job_and_costs_another_topic_nothing(make_trips, broker):
    trips = make_trips(table="      - {property: maxRefusedShare, value: 0.5}")
    bad, good = (StreamedTrips(trips, broker.servers, f"beside-{name}", max_offsets=2) for name in ("bad", "good"))
    for each in (bad, good):
        each.create(1)
    bad.send(b"{", b"{")
    good.send(*(trip(id=number) for number in range(6)))
    path = trips.folder / "both.yaml"
    path.write_text(
        bad.path.read_text().replace("sources: [", "sources: [{topic: beside-good, format: json, max_offsets_per_trigger: 2}, ")
    )
    recipe = read_recipe(path)
    with pytest.raises(StreamRefusedError, match="2 of the 2 messages of a micro-batch from topic 'beside-bad'"):
        stream_tables(trips.spark, recipe, {"trips": recipe.contract("trips")}, Start(None), threading.Event(), {})
    good.drain()
    assert good.ids() == list(range(6))
    assert good.state.totals["read"] == good.state.totals["written"] == 6
