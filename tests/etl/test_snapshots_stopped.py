"""Cleaners and snapshots that are killed, or that meet: two processes, and a store that locks nothing."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest

from etl.tables.inventory import describe_unnamed_builds
from etl.tables.snapshots import build_manifest, pin_snapshot, unpin_snapshot
from lakering.errors import IntegrityError
from lakering.lake import Lake
from lakering.manifest import read_manifest, validate_files
from lakering.pins import read_pins
from lakering.storage import Storage
from tests.etl.test_snapshots import NEW, OLD, ROOT, clean, files_of, snapshot, write_build

ENTRY = Path(__file__).with_name("stopped_snapshots.py")


@pytest.fixture
def lake(tmp_path):
    return Lake(Storage(str(tmp_path / "lake")))


def start(how, point, job, lake):
    return subprocess.Popen([sys.executable, str(ENTRY), how, point, job, lake.storage.root], cwd=ROOT, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


@pytest.mark.parametrize("point", ["before build.json", "after build.json", "after manifest.json", f"in {OLD}"])
def test_killed_in_the_middle_of_a_removal_and_run_again_it_ends_in_the_same_state(lake, point):
    write_build(lake, NEW, day=2)
    snapshot(lake, NEW)
    without = files_of(lake)
    write_build(lake, OLD, day=1)
    unpin_snapshot(lake, "trips", snapshot(lake, OLD))
    killed = start("die", point, "clean", lake)
    assert killed.wait(60) == -9
    assert lake.storage.exists(*lake.build("trips", OLD), "table")
    assert lake.storage.exists(*lake.build("trips", OLD), "build.json") == (point == "before build.json")
    assert OLD in clean(lake)[0]
    assert files_of(lake) == without
    assert clean(lake)[0] == {}


def test_a_build_is_not_removed_between_its_manifest_and_its_pin(lake):
    write_build(lake, OLD, day=1)
    unpin_snapshot(lake, "trips", snapshot(lake, OLD))
    other = start("wait", "before the pin", "snapshot", lake)
    assert other.stdout is not None
    assert other.stdout.readline() == "stopped\n"
    assert clean(lake) == ({}, {OLD: "another process works on it"})
    assert describe_unnamed_builds(lake, "trips") == {}
    assert other.communicate("", timeout=60)[0] == "done\n"
    assert [pin.by for pin in read_pins(lake).values()] == ["other"]
    validate_files(lake, read_manifest(lake, "trips"))


def test_a_snapshot_of_a_build_that_is_being_removed_waits_and_finds_none(lake, capfd):
    write_build(lake, OLD, day=1)
    unpin_snapshot(lake, "trips", snapshot(lake, OLD))
    cleaner = start("wait", f"in {OLD}/build.json", "clean", lake)
    assert cleaner.stdout is not None
    assert cleaner.stdout.readline() == "stopped\n"
    waiter = subprocess.Popen([sys.executable, "-c", "import sys; from lakering.lake import Lake; from lakering.storage import Storage\n"
                               "from etl.tables.snapshots import make_snapshot\n"
                               "make_snapshot(Lake(Storage(sys.argv[1])), 'trips', by='b')", lake.storage.root],
                              cwd=ROOT, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert waiter.stderr is not None
    assert f"waiting for another process that works on build {OLD}" in waiter.stderr.readline()
    assert cleaner.communicate("", timeout=60)[0] == "done\n"
    assert f"StageError: no complete build '{OLD}' of recipe 'trips'" in waiter.communicate(timeout=60)[1]
    assert files_of(lake) == {}


@pytest.fixture
def unlocked(lake, monkeypatch):
    """The same lake taken for one on a store that locks nothing."""
    lake.storage.filesystem.create_dir(lake.storage.path("pins"))
    monkeypatch.setattr(Storage, "is_local", False)
    return lake


def test_without_locks_a_pin_that_comes_during_a_removal_saves_the_build(unlocked, monkeypatch):
    write_build(unlocked, OLD, day=1)
    Path(unlocked.storage.path("snapshots/trips")).mkdir(parents=True)
    manifest = build_manifest(unlocked, "trips")
    Path(unlocked.storage.path("snapshots/trips", manifest.id)).mkdir()
    manifest.write(unlocked)
    delete = Storage.delete

    def pinned_before(self, *parts):
        if parts[-1] == "build.json":
            pin_snapshot(unlocked, "trips", manifest.id, by="ben")
        delete(self, *parts)

    before = files_of(unlocked)
    monkeypatch.setattr(Storage, "delete", pinned_before)
    assert clean(unlocked) == ({}, {OLD: "pinned while it was looked at"})
    assert files_of(unlocked).keys() == {*before, f"/pins/{manifest.id}.json"}
    validate_files(unlocked, read_manifest(unlocked, "trips"))


def test_without_locks_a_pin_that_comes_too_late_is_withdrawn(unlocked):
    write_build(unlocked, OLD, day=1)
    manifest = build_manifest(unlocked, "trips")
    Path(unlocked.storage.path("snapshots/trips", manifest.id)).mkdir(parents=True)
    manifest.write(unlocked)
    unlocked.storage.delete(*unlocked.build("trips", OLD), "build.json")
    with pytest.raises(IntegrityError, match=f"its build {OLD} is being removed"):
        pin_snapshot(unlocked, "trips", manifest.id, by="ben")
    assert read_pins(unlocked) == {}


def test_without_locks_what_was_written_within_a_day_stays(unlocked):
    write_build(unlocked, OLD, day=1, complete=False)
    hours = datetime.datetime(2024, 4, 1, tzinfo=datetime.UTC) + datetime.timedelta(hours=23)
    assert clean(unlocked, now=hours) == ({}, {OLD: "incomplete, and written to within a day: it may be in work"})
    assert clean(unlocked, now=hours + datetime.timedelta(hours=2))[0] == {OLD: "it was never finished"}
