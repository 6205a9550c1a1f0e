"""kill -9 in the middle of a build, then the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.etl.test_examples_table import FEATURES, make, rows_by_file, some_trips, write_trips
from tests.etl.trips import write_recipe

ROOT = Path(__file__).resolve().parents[2]


def start(spark_conf_dir: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("spark-submit")), "--master", "local[2]", "--properties-file",
               str(spark_conf_dir / "spark-defaults.conf"), "etl/jobs/build_examples.py", "--recipe", str(folder / "recipe.yaml"),
               "--lake", str(folder / "lake"), "--summary", str(folder / "summary.json")]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.faults
@pytest.mark.parametrize("reached", ["staging/joined", "table/_delta_log"])
def test_a_build_killed_in_the_middle_comes_out_as_if_never_killed(spark, spark_conf_dir, tmp_path, reached):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
        write_recipe(folder, features=FEATURES)
        write_trips(spark, folder, some_trips()[:300])

    job = start(spark_conf_dir, killed)
    deadline = time.monotonic() + 300
    while not list((killed / "lake").glob(f"examples/trips/*/{reached}")):
        assert job.poll() is None, f"the job ended before {reached}"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert not list(killed.glob("lake/examples/trips/*/build.json"))

    assert start(spark_conf_dir, killed).wait() == 0
    summary = json.loads((killed / "summary.json").read_text())
    lake, record = make(spark, whole)
    assert summary["build"]["reused"] == "no"
    assert summary["rows"]["examples"] == record["num_rows"]
    again = write_recipe(killed, features=FEATURES).lake
    left = rows_by_file(again, {"build": summary["build"]["id"]})
    right = rows_by_file(lake, record)
    assert [split for split, _ in left] == [split for split, _ in right]
    assert all(a.equals(b) for (_, a), (_, b) in zip(left, right, strict=True))

    assert start(spark_conf_dir, killed).wait() == 0
    third = json.loads((killed / "summary.json").read_text())
    assert third["build"]["reused"].startswith("yes")
    assert third["rows"] == summary["rows"]
