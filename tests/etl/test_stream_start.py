"""Where a stream begins, and how its job ends where it cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etl.sources.broker import Broker
from etl.stream.run import Start, stream_tables
from etl.stream.start import begin
from etl.stream.state import STATE
from lakering.errors import IntegrityError
from lakering.lock import storage_lock
from tests.etl.conftest import Trips
from tests.etl.streams import StreamedTrips, trip
from tests.etl.test_stream_faults import filled, kill_at

JOB = "etl/jobs/ingest_stream.py"


@pytest.fixture
def ends(run_here: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs the job to its end, in this process: its exit status, and the error that its summary tells."""
    before = signal.getsignal(signal.SIGTERM)

    def run(stream: StreamedTrips, *flags: str) -> tuple[int, str]:
        summary = tmp_path / "summary.json"
        done = run_here(
            JOB, "--recipe", stream.path, "--lake", stream.place.lake.storage.root, "--once", "--summary", summary, *flags
        )
        error = json.loads(summary.read_text()).get("error") or ""
        assert f"error: {error}" in done.stderr or not error
        return done.returncode, error

    yield run
    signal.signal(signal.SIGTERM, before)


def test_a_topic_that_is_missing_ends_the_job_with_2_and_the_nearest_name(stream, ends):
    other = StreamedTrips(stream.trips, stream.servers, stream.topic + "s")
    status, error = ends(other)
    assert status == 2
    assert f"has no topic '{other.topic}'; did you mean '{stream.topic}'?" in error


def test_a_broker_that_is_down_ends_the_job_with_1(stream, ends):
    with socket.socket() as held:  # bound, and listening to nobody
        held.bind(("127.0.0.1", 0))
        stream.servers = f"127.0.0.1:{held.getsockname()[1]}"
        status, error = ends(stream, "--wait", "1s")
    assert status == 1
    assert re.search(rf"the broker \({stream.servers}, security PLAINTEXT\) did not tell its topics: .*refused", error)


def test_who_waits_for_a_broker_stops_when_told_to(stream):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        stream.servers = f"127.0.0.1:{held.getsockname()[1]}"
        recipe, stop = stream.recipe, threading.Event()
        told = threading.Timer(1.0, stop.set)
        told.start()
        started = time.monotonic()
        stream_tables(stream.trips.spark, recipe, {"trips": recipe.contract("trips")}, Start(None, wait=600.0), stop, {})
    assert time.monotonic() - started < 30


def test_nothing_to_go_by_ends_the_job_with_3(stream, ends):
    stream.send(trip(id=1))
    status, error = ends(stream, "--from", "table")
    assert status == 3
    assert "nor a batch that was told, nor the commits of table 'trips' tell of topic" in error


def test_a_lost_checkpoint_ends_the_job_with_5_and_the_choices(stream, ends):
    stream.send(trip(id=1))
    assert ends(stream) == (0, "")
    stream.place.lake.storage.delete(*stream.place.checkpoint)
    status, error = ends(stream)
    assert status == 5
    checkpoint = stream.place.lake.storage.path(*stream.place.checkpoint)
    assert f"its checkpoint is missing ({checkpoint})\n  next: run with --from table" in error


def test_a_stream_that_another_job_holds_ends_the_job_with_6(stream, ends):
    with storage_lock(stream.place.lake.storage, *stream.place.folder, what="it"):
        status, error = ends(stream)
    assert status == 6
    assert f"another process works on the stream of topic '{stream.topic}' into table 'trips'" in error


@pytest.mark.faults
def test_too_much_poison_ends_the_job_with_9_and_the_next_run_goes_on_behind_it(make_trips, broker, ends):
    stream = StreamedTrips(make_trips(table="      - {property: maxRefusedShare, value: 0.5}"), broker.servers, "too-much-poison")
    stream.create(1)
    stream.send(b"{", b"{", trip(id=1))
    status, error = ends(stream)
    assert status == 9
    assert "2 of the 3 messages of a micro-batch" in error
    assert ends(stream) == (0, "")


@pytest.mark.faults
def test_logs_that_are_cut_or_behind_the_record_are_told_with_the_choices(stream):
    storage, place = stream.place.lake.storage, stream.place
    for id in (1, 2):
        stream.send(trip(id=id))
        stream.drain()
    whole = {parts: storage.read(*parts) for parts in [(*place.checkpoint, "commits", "1"), (*place.folder, STATE)]}
    for parts, content in whole.items():
        storage.write(content[: len(content) // 2], *parts)
        with pytest.raises(
            IntegrityError, match=r"is not (whole|a stream's record)[\s\S]+--from table.+--from earliest.+--from latest"
        ):
            stream.drain()
        storage.write(content, *parts)
    for log in ("offsets", "commits"):
        os.remove(storage.path(*place.checkpoint, log, "1"))
    with pytest.raises(IntegrityError, match="offsets/1 is not whole"):
        stream.drain()
    stream.send(trip(id=3))
    storage.write(b"{", *place.folder, STATE)
    assert stream.drain(start="table").rows_read == 1, "the table of batches tells of what was read"
    assert stream.ids() == [1, 2, 3]


def test_a_job_that_died_as_it_made_its_tables_is_finished(stream):
    stream.send(trip(id=1), b"{")
    tables = [stream.place.lake.table("trips"), stream.place.lake.quarantine("trips"), (*stream.place.folder, "batches")]
    for table in tables:
        log = Path(stream.place.lake.storage.path(*table, "_delta_log"))
        log.mkdir(parents=True)
        (log / f".{0:020d}.json.tmp").touch()
    assert (stream.drain().rows_written, len(stream.refused())) == (1, 1)
    assert [row["rows_read"] for row in stream.place.progress()] == [2]


def test_a_partition_that_is_added_before_the_first_batch_is_read_too(stream):
    stream.send(trip(id=1))
    begin(stream.place, Broker(stream.recipe.kafka).describe_topic(stream.topic), None, False)
    # A job that died now, before Spark asked the topic for its offsets.
    stream.place.lake.storage.write(b'{"id":"5c0d5b0e-8f5e-4f43-9a4c-0d4f6a2f5f4b"}', *stream.place.checkpoint, "metadata")
    stream.add_partitions(3)
    stream.send(trip(id=2), partition=2)
    assert stream.drain().rows_written == 2
    assert stream.ids() == [1, 2]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("batch", "point", "left"),
    [(0, "between table and quarantine", 3), (1, "between row and record", 1)],
    ids=["first", "second"],
)
def test_a_partition_that_is_added_while_a_batch_of_a_killed_job_is_left_is_read_too(stream, spark_conf_dir, batch, point, left):
    for number in range(batch):
        stream.send(trip(id=number))
        stream.drain()
    stream.send(trip(id=5), b"{")
    kill_at(point, stream, spark_conf_dir)
    assert stream.state.batch == batch - 1
    stream.add_partitions(3)
    stream.send(trip(id=6), partition=2)
    if batch:
        kill_at("before a checkpoint is set aside", stream, spark_conf_dir)
        assert stream.state.discard
    assert stream.drain().rows_read == left
    assert stream.ids() == [*range(batch), 5, 6]
    assert len(stream.refused()) == 1
    assert stream.state.totals["read"] == batch + 3
    assert sum(row["rows_read"] for row in stream.place.progress()) == batch + 3
    assert stream.drain().rows_read == 0


@pytest.mark.faults
def test_a_batch_that_is_recorded_and_whose_messages_are_gone_since_is_not_asked_for_again(stream, spark_conf_dir):
    stream.send(trip(id=1), trip(id=2))
    kill_at("between record and Spark's log", stream, spark_conf_dir)
    stream.send(trip(id=3))
    stream.delete_before(2)
    assert stream.drain().rows_read == 1
    assert stream.ids() == [1, 2, 3]
    assert stream.gaps() == []
    assert stream.state.totals["read"] == 3


@pytest.mark.faults
def test_what_a_batch_told_of_a_table_that_was_dropped_is_read_again(stream, spark_conf_dir):
    stream.send(trip(id=1), trip(id=2))
    kill_at("between row and record", stream, spark_conf_dir)
    stream.drop_table()
    stream.add_partitions(3)
    assert stream.drain().rows_written == 2
    assert stream.ids() == [1, 2]


@pytest.mark.faults
def test_a_stream_whose_messages_were_all_refused_does_not_start_as_if_it_were_new(stream):
    stream.send(b"{")
    stream.drain()
    stream.send(trip(id=1), trip(id=2))
    stream.delete_before(2)
    for parts in (stream.place.checkpoint, (*stream.place.folder, STATE)):
        stream.place.lake.storage.delete(*parts)
    with pytest.raises(IntegrityError, match="its checkpoint is missing"):
        stream.drain()
    with pytest.raises(IntegrityError, match=r"no longer holds 1 messages .+ \(offsets 1 to 1\)"):
        stream.drain(start="table")


@pytest.mark.faults
def test_messages_that_a_chosen_start_leaves_out_are_told(stream, ends):
    stream.send(*(trip(id=id) for id in (1, 2, 3)))
    assert ends(stream) == (0, "")
    stream.send(*(trip(id=id) for id in (4, 5, 6)))
    stream.delete_before(5)
    lost = f"topic '{stream.topic}' no longer holds 2 messages that are not recorded as read: 2 of partition 0 (offsets 3 to 4)"
    for start in ("earliest", "table"):
        status, error = ends(stream, "--from", start)
        assert status == 5
        assert error == f"{lost}\n  next: run with --accept-gap, which records the gap and goes on with what the topic holds"
    assert stream.gaps() == []
    assert ends(stream, "--from", "earliest", "--accept-gap") == (0, "")
    assert stream.ids() == [1, 2, 3, 6]
    assert stream.gaps() == [lost]
    stream.send(trip(id=7), trip(id=8))
    stream.send(trip(id=9), partition=1)
    assert ends(stream, "--from", "latest") == (0, "")
    passed = "--from latest passed over 3 messages that are not recorded as read: 2 of partition 0 (offsets 6 to 7), 1 of partition 1 (offsets 0 to 0)"
    assert stream.gaps() == [lost, passed]
    stream.send(trip(id=10))
    assert ends(stream) == (0, "")
    assert stream.ids() == [1, 2, 3, 6, 10]
    assert ends(stream, "--from", "latest") == (0, "")
    assert stream.gaps() == [lost, passed], "nothing was left out"


@pytest.mark.faults
def test_from_table_leaves_out_nothing_of_a_batch_whose_job_died_behind_its_commit(trips, broker, spark_conf_dir, tmp_path):
    died = filled(trips, broker, "from-table")
    kill_at("between table and quarantine", died, spark_conf_dir)
    for lost in ("checkpoint", "record"):
        folder = shutil.copytree(trips.folder, tmp_path.with_name(f"{tmp_path.name}-{lost}"))
        stream = StreamedTrips(Trips(trips.spark, folder), broker.servers, "from-table", max_offsets=40)
        stream.place.lake.storage.delete(*(stream.place.checkpoint if lost == "checkpoint" else stream.place.folder))
        with pytest.raises(IntegrityError, match="its checkpoint is missing"):
            stream.drain()
        assert stream.drain(start="table").rows_read == 120
        assert stream.ids() == [n for n in range(100) if n % 10]
        assert len(stream.refused()) == 12, "its quarantine had not been written"
    assert stream.drain(start="table").rows_read == 0, "the record tells of all"
    stream.place.lake.storage.delete(*stream.place.folder)
    stream.send(trip(id=200))
    assert stream.drain(start="table").rows_read == 41, "the table's commits tell of all but whether the last was finished"
    assert stream.ids() == [*(n for n in range(100) if n % 10), 200]


@pytest.mark.faults
def test_a_broker_that_is_down_ends_the_submitted_job_soon(stream, submit, tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        stream.servers = f"127.0.0.1:{held.getsockname()[1]}"
        done = submit(JOB, "--recipe", str(stream.path), "--summary", str(tmp_path / "summary.json"))
    assert done.returncode == 1
    # Spark itself would take three minutes.
    assert json.loads((tmp_path / "summary.json").read_text())["time"]["seconds"] < 30
    assert "did not tell its topics" in done.stderr + done.stdout
