"""What happens to a topic and a table while stream jobs run."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from broker import Broker

from etl.stream.batch import StreamResult
from etl.stream.run import Start, stream_tables
from etl.tables import read_origins
from lakering.errors import InputError, IntegrityError, SettingError
from tests.etl.conftest import HEADER, Trips
from tests.etl.streams import StreamedTrips, trip
from tests.etl.test_ingest_rows import line

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0


def wait_until(true: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


@pytest.fixture
def running(trips: Trips, broker: Broker, request: pytest.FixtureRequest) -> Iterator[tuple[StreamedTrips, Future[None]]]:
    """A topic of two partitions, and a job that has taken in its three messages and goes on."""
    # Its name is in all that Spark says of it: an error is one whatever the topic is called.
    stream = StreamedTrips(trips, broker.servers, f"Stopping-{abs(hash(request.node.name))}")
    stream.create()
    stream.send(trip(id=1), trip(id=2))
    stream.send(trip(id=3), partition=1)
    recipe, stop = stream.recipe, threading.Event()
    results: dict[str, StreamResult] = {}
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(stream_tables, trips.spark, recipe, {"trips": recipe.contract("trips")}, Start("100 milliseconds"),
                          stop, results)  # fmt: skip
        try:
            wait_until(lambda: job.done() or any(r.rows_read == 3 for r in results.values()), lambda: results)
            yield stream, job
        finally:
            stop.set()


def test_a_topic_that_holds_nothing_yet_makes_no_batch(trips, broker):
    stream = StreamedTrips(trips, broker.servers, "nothing-yet")
    stream.create()
    recipe, stop = stream.recipe, threading.Event()
    results: dict[str, StreamResult] = {}
    commit = (*stream.place.checkpoint, "commits", "0")
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(stream_tables, trips.spark, recipe, {"trips": recipe.contract("trips")}, Start("100 milliseconds"),
                          stop, results)  # fmt: skip
        try:
            wait_until(lambda: job.done() or recipe.lake.storage.exists(*commit), lambda: results)
        finally:
            stop.set()
    assert job.result() is None
    assert [result.batches for result in results.values()] == [0]
    assert stream.place.progress() == []


@pytest.mark.faults
@pytest.mark.parametrize(("partitions", "number"), [(2, 1), (1, 9)])
def test_a_topic_made_anew_under_a_running_job_ends_it_before_a_message_of_the_new_one_is_in(running, partitions, number):
    stream, job = running
    stream.delete()
    stream.create(partitions)
    stream.send(*(trip(id=10 + n) for n in range(number)))
    with pytest.raises(IntegrityError, match="deleted and created again"):
        job.result(PATIENCE_S)
    assert stream.ids() == [1, 2, 3]
    assert stream.drain(accept_gap=True).rows_written == number
    assert stream.ids() == [1, 2, 3, *(10 + n for n in range(number))]


def test_a_contract_that_is_widened_while_a_stream_runs_is_taken_up_by_the_next_start(running):
    stream, job = running
    contract = stream.trips.folder / "trips.yaml"
    contract.write_text(contract.read_text() + "      - {name: tip, logicalType: number}\n")
    stream.trips.write("a.csv", HEADER.replace("note", "note,tip") + line(id="4") + ",1.5\n")
    stream.trips.ingest("a.csv")
    stream.send(trip(id=6), trip(id=5, tip=2.5))  # the first alone would end it too; the other would be refused alone
    with pytest.raises(SettingError, match=r"'trips' and its contract differ[\s\S]+run again"):
        job.result(PATIENCE_S)
    assert stream.drain().rows_written == 2
    assert [(row["id"], row["tip"]) for row in stream.trips.rows()][3:] == [(4, 1.5), (5, 2.5), (6, None)]


@pytest.mark.faults
def test_partitions_that_are_added_under_a_running_job_are_read(running):
    stream, job = running
    stream.add_partitions(3)
    stream.send(trip(id=4), partition=2)
    wait_until(lambda: job.done() or stream.state.totals["read"] == 4, lambda: stream.state)
    assert not job.done(), job.exception()
    assert stream.ids() == [1, 2, 3, 4]
    assert stream.state.next == {0: 2, 1: 1, 2: 1}


@pytest.mark.faults
def test_a_topic_that_is_deleted_under_a_running_job_ends_it(running):
    stream, job = running
    stream.delete()
    with pytest.raises(InputError, match="has no topic"):
        job.result(PATIENCE_S)


@pytest.mark.faults
def test_two_jobs_on_one_table_both_make_progress_and_no_key_comes_twice(trips, broker, spark_conf_dir, tmp_path):
    streams = [StreamedTrips(trips, broker.servers, f"two-jobs-{name}", max_offsets=20) for name in "ab"]
    recipes = []
    for number, stream in enumerate(streams):
        stream.create(1)
        # Half of what each holds is in the other too.
        stream.send(*(trip(id=n) for n in range(number * 200, number * 200 + 400)))
        recipes.append(stream.path.rename(tmp_path / f"{stream.topic}.yaml"))
    logs = [tmp_path / f"{stream.topic}.log" for stream in streams]
    jobs = []
    try:
        for recipe, log in zip(recipes, logs, strict=True):
            command = [str(Path(sys.executable).with_name("spark-submit")), "--master", "local[2]", "--properties-file",
                       str(spark_conf_dir / "spark-defaults.conf"), str(ROOT / "etl/jobs/ingest_stream.py"), "--recipe", str(recipe),
                       "--every", "100ms"]  # fmt: skip
            with log.open("w") as out:
                jobs.append(subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True))
        wait_until(lambda: all(log.read_text().count("micro-batch ") >= 3 for log in logs) or any(job.poll() is not None for job in jobs),
                   lambda: [log.read_text()[-2000:] for log in logs])  # fmt: skip
        for job in jobs:
            os.kill(job.pid, signal.SIGTERM)
        assert [job.wait(PATIENCE_S) for job in jobs] == [0, 0], [log.read_text()[-2000:] for log in logs]
    finally:
        for job in jobs:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    order = [origin["topic"] for origin in read_origins(trips.recipe("x").lake, "trips", None)]
    turns = sum(one != other for one, other in itertools.pairwise(order))
    assert turns >= 2, f"neither waited for the other's end: {order}"
    for stream in streams:
        stream.max_offsets = 1000
        stream.drain()
    assert streams[0].ids() == list(range(600))
    totals = [stream.state.totals for stream in streams]
    assert [each["read"] for each in totals] == [400, 400]
    assert sum(each["written"] for each in totals) == 600
    assert sum(each["already_present"] for each in totals) == 200
    assert json.dumps(totals).count('"refused": 0') == 2
