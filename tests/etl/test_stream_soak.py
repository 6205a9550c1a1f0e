"""A stream job killed over and over, at random moments of its work: `make soak`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from broker import Broker
from confluent_kafka import Producer
from pyspark.sql import SparkSession

from etl.tables import read_quarantine
from tests.etl.conftest import Trips
from tests.etl.soaked_stream import BEGINS, ENDS
from tests.etl.streams import StreamedTrips, trip

ROOT = Path(__file__).resolve().parents[2]
ENTRY = Path(__file__).with_name("soaked_stream.py")
KILLS, SEED = int(os.environ.get("SOAK_KILLS", "50")), int(os.environ.get("SOAK_SEED", "7"))
#: A job is killed while it is at one of its first so many micro-batches; how long these take, the first job of all tells.
WITHIN = 5
PATIENCE_S = 180.0
PARTITIONS, BATCH = 3, 24
#: More than a job takes in before it is killed.
MESSAGES_PER_KILL = 300
EIGHT = 1704096000000  # the event time of each message, in ms


def filled(stream: StreamedTrips, count: int) -> dict[int, tuple[int, int]]:
    """Fills the topic, and tells of each id that belongs into the table the partition and offset of the first message with it.

    Messages with one key are all in one partition, where their order is the topic's own. Which of two in different partitions
    comes first depends on where batches begin and end, and that is what kills and other batch sizes change."""
    chance, first = random.Random(SEED), {}
    producer = Producer({"bootstrap.servers": stream.servers})

    def send(value: bytes | None, **more: Any) -> None:
        producer.produce(stream.topic, value, **more)
        producer.poll(0)

    poison = [b"{", b"", None, trip(id="x"), trip(extra=1), trip(fare=-1), b'{"note": "\xff"}']
    for partition in range(PARTITIONS):
        sent: list[dict[str, Any]] = []
        for offset in range(count // PARTITIONS):
            kind = chance.random()
            if kind < 0.6 or not sent:
                id = offset * PARTITIONS + partition
                sent.append({"id": id, "day": f"2024-01-{1 + id % 5:02d}", "fare": float(id % 500)})
                first[id] = partition, offset
                send(trip(**sent[-1]), partition=partition, timestamp=EIGHT)
            elif kind < 0.75:  # again, some batches later at times
                send(trip(**chance.choice(sent[-60:])), partition=partition, timestamp=EIGHT)
            elif kind < 0.85:
                send(trip(**{**chance.choice(sent[-60:]), "note": "other"}), partition=partition, timestamp=EIGHT)
            elif kind < 0.9:
                send(trip(id=offset * PARTITIONS + partition), partition=partition, timestamp=EIGHT + 3601 * 1000)
            else:
                send(chance.choice(poison), partition=partition, timestamp=EIGHT, key=b"k", headers={"h": b"v"})
    assert producer.flush(60) == 0
    return first


def group(job: subprocess.Popen[bytes]) -> dict[int, str]:
    """The living processes that a job has started, itself among them, by number."""
    told = subprocess.run(["ps", "-eo", "pid=,pgid=,stat=,comm="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 3) for line in told.splitlines()]
    return {int(pid): name for pid, pgid, state, name in lines if int(pgid) == job.pid and state[0] != "Z"}


def wait_for(words: str, job: subprocess.Popen[bytes], log: Path, times: int = 1) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while log.read_text().count(words) < times:
        assert job.poll() is None, f"it ended by itself: {log.read_text()[-5000:]}"
        assert time.monotonic() < deadline, f"no '{words}', {times} times: {log.read_text()[-5000:]}"
        time.sleep(0.05)


def kill(job: subprocess.Popen[bytes], whom: str) -> None:
    """Kills the job, and waits until its Python has ended. A JVM that is left may finish what it is at, beside the next job."""
    if whom == "all":
        os.killpg(job.pid, signal.SIGKILL)
    else:
        # The JVM has children of its own now and then, which set the modes of files.
        (jvm,) = [pid for pid, name in group(job).items() if name == "java"]
        os.kill(jvm if whom == "the JVM" else job.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while job.poll() is None:
        assert time.monotonic() < deadline, f"what was left when {whom} was killed does not end: {group(job)}"
        time.sleep(0.05)


def in_the_table(stream: StreamedTrips) -> dict[tuple[Any, int], dict[str, Any]]:
    rows = [row.asDict() for row in stream.trips.rows()]
    found = {(row["day"], row["id"]): row for row in rows}
    assert len(found) == len(rows), "a key is there twice"
    return found


def in_quarantine(stream: StreamedTrips) -> dict[tuple[str, int], dict[str, Any]]:
    """Less the day on which a row was refused."""
    table = read_quarantine(stream.trips.spark, stream.recipe.lake, "trips").drop("day")
    rows = [row.asDict(recursive=True) for row in table.collect()]
    found = {(row["source"], row["position"]): row for row in rows}
    assert len(found) == len(rows), "a row was refused twice"
    return found


def differing(ours: dict[Any, Any], theirs: dict[Any, Any]) -> list[tuple[Any, Any, Any]]:
    keys = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    return [(key, ours.get(key), theirs.get(key)) for key in keys[:5]]


@pytest.fixture
def lakes(spark: SparkSession, tmp_path: Path, broker: Broker) -> tuple[StreamedTrips, StreamedTrips]:
    """A topic, into a lake whose stream is killed and into one whose stream is not."""
    made = []
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        trips = Trips(spark, tmp_path / name)
        trips.contract_text(table="      - {property: late, value: 1 hour}")
        made.append(StreamedTrips(trips, broker.servers, "soak", max_offsets=BATCH if name == "killed" else 2000))
    return made[0], made[1]


@pytest.mark.soak
def test_killed_at_any_moment_a_stream_leaves_what_it_would_have_left(lakes, spark_conf_dir, tmp_path, capsys):
    stream, whole = lakes
    stream.create(PARTITIONS)
    count = MESSAGES_PER_KILL * KILLS
    first = filled(stream, count)
    chance, log = random.Random(SEED), tmp_path / "log"
    environment = {**os.environ, "SPARK_CONF_DIR": str(spark_conf_dir), "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    started, window, taken = time.monotonic(), 0.0, 0
    for number in range(1, KILLS + 1):
        whom, share = chance.choice(["all", "all", "the JVM", "the driver"]), chance.random()
        with log.open("wb") as out:
            job = subprocess.Popen([sys.executable, str(ENTRY), str(stream.path)], env=environment, stdout=out, stderr=out,
                                   stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        try:
            wait_for(BEGINS, job, log)
            began = time.monotonic()
            if not window:
                wait_for(ENDS, job, log, WITHIN)
                window, share = time.monotonic() - began, 1.0
            while time.monotonic() < began + share * window:
                assert job.poll() is None, f"it ended by itself: {log.read_text()[-5000:]}"
                time.sleep(0.01)
            kill(job, whom)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
        state = stream.state
        taken += log.read_text().count(ENDS) > 0
        with capsys.disabled():
            print(f"kill {number} of {KILLS}: {whom}, after {share * window:.1f} s of work; {state.batch + 1} batches and "
                  f"{state.totals.get('read', 0):,} of {count:,} messages are in; {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
    assert stream.state.totals.get("read", 0) < count, "each run had work to be killed in"
    assert taken > KILLS / 4, "many were killed at a later batch than their first"

    stream.max_offsets = 2000
    for each in lakes:
        each.drain()
    stored, refused = in_the_table(stream), in_quarantine(stream)
    assert {id: (int(row["_source"].rpartition("/")[2]), row["_position"]) for (_, id), row in stored.items()} == first
    assert differing(stored, in_the_table(whole)) == []
    assert differing(refused, in_quarantine(whole)) == []
    assert stream.state.totals == whole.state.totals
    assert (stream.state.next, stream.state.watermark) == (whole.state.next, whole.state.watermark)
    told = stream.place.progress()
    assert [row["batch"] for row in told] == list(range(len(told))), "a row for each batch, once, in order"
    places = dict.fromkeys(range(PARTITIONS), 0)
    for row in told:
        for each in row["offsets"]:
            assert places[each["partition"]] == each["first"], "a batch begins where the one before it ended"
            places[each["partition"]] = each["end"]
    assert places == dict.fromkeys(range(PARTITIONS), count // PARTITIONS)
    assert sum(row["rows_refused"] for row in told) == len(refused)
    assert sum(row["rows_written"] for row in told) == len(first)
