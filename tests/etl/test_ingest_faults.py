"""Ingest killed in the middle, and two of them at once."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from etl.tables import table_lock
from lakering.errors import InputError
from lakering.lake import Lake
from tests.etl.conftest import HEADER, Trips
from tests.etl.test_ingest_rows import line

ENTRY = Path(__file__).with_name("killed_ingest.py")
LINES = [
    line(id=str(number), day=f"2024-01-{1 + number % 9:02d}", zone="west" if number % 10 == 0 else "north")
    for number in range(1, 200)
]


@pytest.mark.faults
@pytest.mark.parametrize(
    "point", ["before the table", "in the table's commit", "between table and quarantine", "between quarantine and record"]
)
def test_killed_anywhere_and_run_again_the_tables_are_as_if_never_killed(trips, spark_conf_dir, tmp_path, point):
    trips.csv(*LINES)
    rows, refused = trips.rows(), trips.refused()
    (tmp_path / "lake").rename(tmp_path / "never-killed")
    trips.recipe("a.csv")
    environment = {**os.environ, "SPARK_CONF_DIR": str(spark_conf_dir), "PYSPARK_PYTHON": sys.executable}
    killed = subprocess.run([sys.executable, str(ENTRY), point, str(tmp_path / "recipe.yaml")], env=environment, timeout=300,
                            capture_output=True, text=True, start_new_session=True)  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    result = trips.ingest("a.csv")
    assert (result.files_known, result.rows_read) == (0, len(LINES)), "what was not recorded as complete is read again"
    assert (result.rows_written, result.rows_refused) == (len(rows), len(refused))
    assert trips.rows() == rows
    assert trips.refused() == refused
    assert trips.ingest("a.csv").files_known == 1


def takes_the_lock(trips: Trips, monkeypatch: pytest.MonkeyPatch, said: str, release: Callable[[], object]) -> None:
    """Asserts that the table's lock is waited for, with these words, until ``release`` was called."""
    lake, deadline = trips.recipe("a.csv").lake, time.monotonic() + 60
    shown = io.StringIO()  # what pytest captures is emptied as it is read, which can swallow what is written meanwhile
    monkeypatch.setattr(sys, "stderr", shown)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(take, trips, lake)
        try:
            while said not in shown.getvalue():
                assert time.monotonic() < deadline, shown.getvalue()
                assert not taken.done(), shown.getvalue()
                time.sleep(0.02)
        finally:
            release()
        assert taken.result(60) == "taken"


def take(trips: Trips, lake: Lake) -> str:
    with table_lock(trips.spark, lake, "trips"):
        return "taken"


def test_a_second_writer_of_a_local_table_waits_for_the_first(trips, monkeypatch):
    lake = trips.recipe("a.csv").lake
    path = lake.storage.path(*lake.table("trips")) + ".lock"
    os.makedirs(os.path.dirname(path))
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl,sys; f=open({path!r},'a'); fcntl.flock(f,fcntl.LOCK_EX); print('held',flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    takes_the_lock(trips, monkeypatch, "waiting for another process that works on table 'trips'", holder.kill)
    holder.wait()
    with table_lock(trips.spark, lake, "trips"), open(path, "a") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


HOLDER = """
import sys
from etl.session import spark_session
from etl.tables import table_lock
from lakering.lake import Lake
from lakering.storage import Storage
spark = spark_session("holder")
with table_lock(spark, Lake(Storage(sys.argv[1])), "trips"):
    print(spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid(), flush=True)
    if sys.stdin.read():
        raise RuntimeError("what was under way")
"""


def hold(trips: Trips, spark_conf_dir: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that holds the table's lock, and its JVM's process id."""
    environment = {**os.environ, "SPARK_CONF_DIR": str(spark_conf_dir), "PYSPARK_PYTHON": sys.executable}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, trips.recipe("a.csv").lake.storage.root], env=environment, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert holder.stdout is not None
    return holder, int(holder.stdout.readline())


@pytest.mark.faults
def test_a_jvm_that_dies_under_the_lock_hides_no_error(trips, spark_conf_dir):
    holder, jvm = hold(trips, spark_conf_dir)
    os.kill(jvm, signal.SIGKILL)
    _, said = holder.communicate("go on", timeout=60)
    assert (holder.returncode, said.splitlines()[-1]) == (1, "RuntimeError: what was under way")


@pytest.mark.faults
def test_the_jvm_of_a_writer_that_was_killed_alone_is_waited_for(trips, spark_conf_dir, monkeypatch):
    holder, jvm = hold(trips, spark_conf_dir)
    os.kill(jvm, signal.SIGSTOP)  # as if it were at something long
    holder.kill()
    holder.wait()
    said = "waiting for what a killed job left running on table 'trips'"
    takes_the_lock(trips, monkeypatch, said, lambda: os.kill(jvm, signal.SIGCONT))


def test_a_file_that_changes_while_it_is_read_publishes_nothing(trips, monkeypatch):
    import etl.ingest

    path = trips.write("a.csv", HEADER + line(id="1") + "\n")
    check = etl.ingest.validate_unchanged

    def grown(files, settings):
        with path.open("a") as stream:
            stream.write(line(id="2") + "\n")
        check(files, settings)

    monkeypatch.setattr(etl.ingest, "validate_unchanged", grown)
    with pytest.raises(InputError, match=r"a\.csv changed while it was read; nothing of it was written"):
        trips.ingest("a.csv")
    assert not (trips.folder / "lake/tables/trips").exists()
