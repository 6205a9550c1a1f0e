"""Ingest killed in the middle, and two of them at once."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from etl.tables import table_lock
from lakering.errors import InputError
from tests.etl.conftest import HEADER
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
                            capture_output=True, text=True)  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    result = trips.ingest("a.csv")
    assert (result.files_known, result.rows_read) == (0, len(LINES)), "what was not recorded as complete is read again"
    assert (result.rows_written, result.rows_refused) == (len(rows), len(refused))
    assert trips.rows() == rows
    assert trips.refused() == refused
    assert trips.ingest("a.csv").files_known == 1


def test_a_second_writer_of_a_local_table_waits_for_the_first(trips, capfd):
    lake = trips.recipe("a.csv").lake
    path = lake.storage.path(*lake.table("trips")) + ".lock"
    os.makedirs(os.path.dirname(path))
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl,sys; f=open({path!r},'a'); fcntl.flock(f,fcntl.LOCK_EX); print('held',flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waiter = subprocess.Popen(
        [sys.executable, "-c", f"from lakering.lake import Lake; from lakering.storage import Storage; from etl.tables import table_lock\n"
         f"with table_lock(Lake(Storage({lake.storage.root!r})), 'trips'): print('mine')"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert waiter.stderr is not None
    assert "waiting for another process that works on table 'trips'" in waiter.stderr.readline()
    assert waiter.poll() is None
    holder.kill()
    assert waiter.communicate(timeout=60)[0] == "mine\n"
    with table_lock(lake, "trips"), open(path, "a") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
