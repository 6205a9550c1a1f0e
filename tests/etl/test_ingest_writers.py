"""Two ingests of one table at once: on a local file system the second waits; where Delta keeps them apart it runs again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pyspark.sql import functions as F
from pyspark.sql import types as T

import etl.ingest
import etl.tables.write
from etl.ingest import ingest_table
from tests.etl.conftest import HEADER, NOW
from tests.etl.test_ingest_rows import line

PATIENCE = 300


def wait_for(path: Path, what: str) -> None:
    """Polls for a file that another process or thread is to write."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)


@pytest.mark.faults
def test_where_delta_keeps_writers_apart_the_first_is_beaten_runs_again_and_no_key_is_there_twice(trips, monkeypatch, tmp_path):
    trips.csv(line(id="1"))  # the table is there; both then write into one of its partitions
    trips.write("first.csv", HEADER + "".join(line(id=str(n)) + "\n" for n in (2, 3)))
    trips.write("second.csv", HEADER + "".join(line(id=str(n)) + "\n" for n in (3, 4)))
    first, second = trips.recipe("first.csv"), trips.recipe("second.csv")
    reading, released = tmp_path / "reading", tmp_path / "released"

    @F.udf(T.BooleanType())
    def held(_: int) -> bool:
        with contextlib.suppress(FileExistsError):  # one task waits, and leaves the other core to the second writer
            reading.touch(exist_ok=False)
            wait_for(released, "the second writer's commit")
        return True

    winners, calls = etl.tables.write._winners, []

    def first_is_held(*args):
        calls.append(args)
        found = winners(*args)
        return found.where(held("id")) if len(calls) == 1 else found

    monkeypatch.setattr(etl.ingest, "table_lock", lambda *_: contextlib.nullcontext())  # as on an object store
    monkeypatch.setattr(etl.tables.write, "_winners", first_is_held)
    results = {}

    def ingest(name, recipe, session):
        results[name] = ingest_table(session, recipe, recipe.contract("trips"), recipe.settings.tables["trips"].sources, now=NOW)

    thread = threading.Thread(target=ingest, args=("first", first, trips.spark.newSession()))
    thread.start()
    try:
        wait_for(reading, "the first writer's merge")
        ingest("second", second, trips.spark)
    finally:
        released.touch()
        thread.join(PATIENCE)
    assert [row["id"] for row in trips.rows()] == [1, 2, 3, 4]
    assert (results["second"].rows_written, results["second"].rows_already_present) == (2, 0)
    assert (results["first"].rows_written, results["first"].rows_already_present) == (1, 1)


HOLDER = """
import datetime, pathlib, sys, time
import etl.ingest
from etl.session import spark_session
from recipes import read_recipe
recipe, reading, released = read_recipe(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
write = etl.ingest.write_rows

def held(*args):
    reading.touch()
    while not released.exists():
        time.sleep(0.02)
    return write(*args)

etl.ingest.write_rows = held
etl.ingest.ingest_table(spark_session("held"), recipe, recipe.contract("trips"), recipe.settings.tables["trips"].sources,
                        now=datetime.datetime.now(datetime.UTC))
"""


@pytest.mark.faults
def test_on_a_local_file_system_the_second_is_seen_waiting_and_both_land(trips, spark_conf_dir, tmp_path, submit):
    trips.write("first.csv", HEADER + "".join(line(id=str(n)) + "\n" for n in (1, 2)))
    trips.write("second.csv", HEADER + "".join(line(id=str(n)) + "\n" for n in (2, 3)))
    trips.recipe("first.csv")
    (tmp_path / "recipe.yaml").rename(tmp_path / "first.yaml")
    trips.recipe("second.csv")
    reading, released, told = tmp_path / "reading", tmp_path / "released", tmp_path / "told"
    environment = {**os.environ, "SPARK_CONF_DIR": str(spark_conf_dir), "PYSPARK_PYTHON": sys.executable}
    first = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "first.yaml"), str(reading), str(released)],
                             env=environment, stderr=subprocess.DEVNULL)  # fmt: skip
    wait_for(reading, "the first ingest")
    with told.open("w") as stderr:
        second = subprocess.Popen(
            [sys.executable, "etl/jobs/ingest_batch.py", "--recipe", str(tmp_path / "recipe.yaml"), "--lake", str(tmp_path / "lake")],
            env=environment, stderr=stderr, stdout=subprocess.DEVNULL)  # fmt: skip
    end = time.monotonic() + PATIENCE
    while "waiting for another process that works on table 'trips'" not in told.read_text():
        assert time.monotonic() < end, told.read_text()
        assert second.poll() is None, told.read_text()
        time.sleep(0.05)
    assert not (tmp_path / "lake/tables/trips/_delta_log").exists()
    released.touch()
    assert (first.wait(PATIENCE), second.wait(PATIENCE)) == (0, 0)
    assert [row["id"] for row in trips.rows()] == [1, 2, 3]
    assert [Path(row["_source"].split("#")[0]).name for row in trips.rows()] == ["first.csv", "first.csv", "second.csv"]
