"""A stream job killed in the middle, and told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from broker import Broker

from etl.tables import has_log
from lakering.errors import LakeringError
from tests.conftest import submit_command
from tests.etl.conftest import Trips
from tests.etl.streams import StreamedTrips, trip

ROOT = Path(__file__).resolve().parents[2]
ENTRY = Path(__file__).with_name("killed_stream.py")
#: What a job that was killed there has left: the table's commits, refused rows, rows of batches, the last batch of its record.
LEFT = {
    "before the merge": (0, 0, 0, -1),
    "in the merge": (0, 0, 0, -1),
    "between table and quarantine": (1, 0, 0, -1),
    "between quarantine and row": (1, 4, 0, -1),
    "between row and record": (1, 4, 1, -1),
    "between record and Spark's log": (1, 4, 1, 0),
}


def filled(trips: Trips, broker: Broker, topic: str) -> StreamedTrips:
    """A topic of 120 messages in two partitions, which take three micro-batches; every tenth is refused, some come twice."""
    stream = StreamedTrips(trips, broker.servers, topic, max_offsets=40)
    stream.create()
    for partition in (0, 1):
        numbers = [*range(partition, 100, 2), *range(partition, 20, 2)]
        values = [trip(id=n, day=f"2024-01-{1 + n % 3:02d}", zone="west" if n % 10 == 0 else "north") for n in numbers]
        stream.send(*values, partition=partition)
    return stream


def kill_at(point: str, stream: StreamedTrips, spark_conf_dir: Path) -> None:
    """Starts a job that drains the stream, and that is killed at a point of its first micro-batch."""
    environment = {**os.environ, "SPARK_CONF_DIR": str(spark_conf_dir), "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, str(ENTRY), point, str(stream.path)], env=environment, timeout=300,
                            capture_output=True, text=True, start_new_session=True)  # fmt: skip
    assert killed.returncode == -9, killed.stderr


@pytest.mark.faults
@pytest.mark.parametrize("point", list(LEFT))
def test_killed_anywhere_and_started_again_all_is_as_if_never_killed(trips, broker, spark_conf_dir, point):
    stream = filled(trips, broker, f"killed-{list(LEFT).index(point)}")
    kill_at(point, stream, spark_conf_dir)
    lake, place = stream.recipe.lake, stream.place
    refused = stream.refused() if has_log(lake, lake.quarantine("trips")) else {}
    assert (len(place.origins(None)), len(refused), len(place.progress()), stream.state.batch) == LEFT[point]
    data = list(Path(lake.storage.path(*lake.table("trips"))).rglob("*.parquet"))
    assert bool(data) == (point != "before the merge")
    assert not lake.storage.exists(*place.checkpoint, "commits", "0")
    stream.drain()
    assert stream.ids() == [n for n in range(100) if n % 10], "each id once, and none that was refused"
    refused = stream.refused()
    assert set(refused.values()) == {("zone", "validValues")}
    again = [(0, 5 * tenth) for tenth in range(10)] + [(0, 50), (0, 55)]
    assert sorted(refused) == again
    assert stream.state.next == {0: 60, 1: 60}
    assert stream.state.totals["read"] == 120
    told = [(row["batch"], row["rows_read"]) for row in stream.place.progress()]
    assert told == [(0, 40), (1, 40), (2, 40)], "a row for each batch, once"
    stored = {row["id"]: (row["_source"].rpartition("/")[2], row["_position"]) for row in trips.rows()}
    assert stored == {n: (str(n % 2), n // 2) for n in range(100) if n % 10}, "the first of two messages stays"


@pytest.mark.faults
@pytest.mark.parametrize("whom", ["spark-submit", "all its processes"])
def test_told_to_stop_it_finishes_the_batch_at_hand(trips, broker, spark_conf_dir, tmp_path, whom):
    stream = filled(trips, broker, f"stopped-{len(whom)}")
    summary = tmp_path / "summary.json"
    flags = ("--recipe", str(stream.path), "--summary", str(summary), "--every", "1s")
    command = submit_command(spark_conf_dir, "etl/jobs/ingest_stream.py", *flags)
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 300
            while "micro-batch" not in (tmp_path / "log").read_text():
                assert time.monotonic() < deadline
                assert job.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
            (os.kill if whom == "spark-submit" else os.killpg)(job.pid, signal.SIGTERM)
            assert job.wait(300) == 0, (tmp_path / "log").read_text()
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    facts = json.loads(summary.read_text())
    told = facts[f"trips from {stream.topic}"]
    assert facts["status"] == "ok"
    assert told["rows_read"] == stream.state.totals["read"] > 0
    batch = stream.state.batch
    assert stream.place.lake.storage.exists(*stream.place.checkpoint, "commits", str(batch)), "Spark's own note was written"


@pytest.mark.faults
def test_a_broker_that_is_down_is_waited_for_by_choice(trips, own):
    stream = StreamedTrips(trips, own.servers, "awaited")
    stream.create(1)
    stream.send(trip(id=1))
    own.stop()
    with pytest.raises(LakeringError, match=f"the broker \\({own.servers}"):
        stream.drain(wait=1.0)
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(stream.drain, wait=240.0)
        own.start()
        assert drained.result(300).rows_written == 1
    assert stream.ids() == [1]
