"""What of a lake is listed, pinned, unpinned and removed."""

from __future__ import annotations

import datetime
import json
import os
import runpy
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable as DeltaLog

from etl.examples import plan_examples
from etl.examples.inputs import build_inputs
from etl.tables import table_version
from etl.tables.cleaning import Cleaner
from etl.tables.example_files import set_retention
from etl.tables.examples import build_lock, make_build
from etl.tables.inventory import describe_snapshots
from etl.tables.snapshots import find_recipe, make_snapshot, pin_snapshot, unpin_snapshot
from lakering.errors import IntegrityError, SettingError, StageError
from lakering.jobs import run_job
from lakering.lake import Lake
from lakering.lock import storage_lock
from lakering.manifest import read_manifest, validate_files
from lakering.pins import read_pins
from lakering.record import LOCK, write_record
from lakering.storage import Storage
from tests.etl.test_examples_table import some_trips, write_trips
from tests.etl.trips import write_recipe

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
OLD, MID, NEW = "a" * 16, "b" * 16, "c" * 16


@pytest.fixture
def lake(tmp_path):
    return Lake(Storage(str(tmp_path / "lake")))


def write_build(lake, build, *, day, rows=(3, 2), recipe="trips", complete=True):
    """A build of plain Parquet, one file for train and one for test, written on a day of April 2024."""
    table = "/".join((*lake.build(recipe, build), "table"))
    for split, count in zip(("train", "test"), rows, strict=True):
        file = Path(lake.storage.path(table, f"split={split}", "part-00000-x.parquet"))
        file.parent.mkdir(parents=True)
        pq.write_table(pa.table({"row_id": list(range(count)), "fare": [1.0] * count}), file)
    if complete:
        record = {"build": build, "recipe": recipe, "format": "parquet", "table": table, "label_kind": "binary", "weight": None,
                  "num_rows": {"train": rows[0], "test": rows[1]}, "columns": [{"name": "fare", "kind": "float", "num_ids": None}],
                  "statistics": {"fare": {"mean": 1.0}}, "contracts": {}}  # fmt: skip
        lake.storage.write_json(record, *lake.build(recipe, build), "build.json")
    time = datetime.datetime(2024, 4, day, tzinfo=datetime.UTC).timestamp()
    for path in Path(lake.storage.path(*lake.build(recipe, build))).rglob("*"):
        os.utime(path, (time, time))


def snapshot(lake, build):
    return make_snapshot(lake, "trips", build, by="anna")[0].id


def clean(lake, *, now=NOW, **options):
    """What was removed, and why; what stays, and why."""
    findings = Cleaner(lake=lake, recipe="trips", now=now, **options).clean()
    removed = {f.build or f.snapshots[0]: f.why for f in findings if f.removed}
    return removed, {f.build: f.why for f in findings if not f.removed}


def files_of(lake):
    """Every file but the locks, with its size."""
    root = lake.storage.path()
    return {info.path.removeprefix(root): info.size for info in lake.storage.walk() if not info.path.endswith(".lock")}


def run(name, *flags):
    """Runs a job in this process, and returns its exit status."""
    job = runpy.run_path(str(ROOT / "etl" / "jobs" / f"{name}.py"))
    with pytest.raises(SystemExit) as left:
        run_job(job["main"], job["parser"](), [str(flag) for flag in flags])
    return left.value.code


def test_pinned_builds_stay_and_the_others_go_with_their_manifests(lake):
    for day, build in enumerate((OLD, MID, NEW), start=1):
        write_build(lake, build, day=day)
    kept, let_go = snapshot(lake, OLD), snapshot(lake, MID)
    unpin_snapshot(lake, "trips", let_go)
    assert clean(lake) == (
        {MID: "no pin names it"},
        {OLD: f"pinned by snapshot {kept}", NEW: "the newest, and no snapshot was made of it yet"},
    )
    validate_files(lake, read_manifest(lake, "trips", kept))
    assert not lake.storage.exists(*lake.build("trips", MID))
    with pytest.raises(StageError, match=f"no snapshot '{let_go}'"):
        read_manifest(lake, "trips", let_go)
    assert clean(lake)[0] == {}
    assert clean(lake, newest_too=True)[0] == {NEW: "no pin names it"}


def test_a_newest_build_whose_snapshot_was_unpinned_goes(lake):
    write_build(lake, NEW, day=1)
    unpin_snapshot(lake, "trips", snapshot(lake, NEW))
    assert clean(lake)[0] == {NEW: "no pin names it"}


def test_a_dry_run_finds_the_same_and_touches_nothing(lake):
    write_build(lake, OLD, day=1)
    write_build(lake, MID, day=2, complete=False)
    unpin_snapshot(lake, "trips", snapshot(lake, OLD))
    shutil.rmtree(lake.storage.path(*lake.build("trips", OLD)))
    before = files_of(lake)
    told = clean(lake, dry_run=True)
    assert files_of(lake) == before
    assert told == clean(lake)
    assert files_of(lake) == {}


def test_what_killed_builders_left_goes_unless_its_lock_is_held(lake):
    write_build(lake, OLD, day=1, complete=False)
    write_build(lake, NEW, day=2, complete=False)
    with build_lock(lake, "trips", NEW):
        assert clean(lake, dry_run=True) == clean(lake) == ({OLD: "it was never finished"}, {NEW: "another process works on it"})
    assert clean(lake)[0] == {NEW: "it was never finished"}


def test_folders_that_are_not_ours_are_left_alone(lake):
    write_build(lake, "notes", day=1, complete=False)
    lake.storage.write(b"mine", "examples", "trips", "d" * 16)
    assert clean(lake) == ({}, {})


def test_a_build_that_a_run_reads_stays_while_the_run_goes_on(lake):
    write_build(lake, OLD, day=1)
    write_build(lake, NEW, day=2)
    for build in (OLD, NEW):
        unpin_snapshot(lake, "trips", snapshot(lake, build))
    write_record(lake, "trips", "r1", inputs={"snapshot": "s", "build": OLD}, status="running")
    with storage_lock(lake.storage, *lake.run("trips", "r1"), LOCK, what="run r1"):
        assert clean(lake) == ({NEW: "no pin names it"}, {OLD: "run r1 goes on"})
    # A run that has just begun tells nothing yet, so it may read any.
    with storage_lock(lake.storage, *lake.run("trips", "r2"), LOCK, what="run r2"):
        assert clean(lake)[1] == {OLD: "run r2 goes on"}
    assert clean(lake)[0] == {OLD: "no pin names it"}, "a run that was killed holds no lock"


def test_a_manifest_whose_build_was_removed_by_others_fails_by_name_and_is_listed_so(lake):
    write_build(lake, OLD, day=1)
    name = snapshot(lake, OLD)
    shutil.rmtree(lake.storage.path(*lake.build("trips", OLD)))
    with pytest.raises(IntegrityError, match=rf"snapshot {name} \(build {OLD}, version None\): 2 of 2 files are gone"):
        validate_files(lake, read_manifest(lake, "trips"))
    assert "2 of 2 files are gone" in describe_snapshots(lake, "trips")[name]["files"]
    assert clean(lake) == ({}, {}), "it is pinned"
    unpin_snapshot(lake, "trips", name)
    with pytest.raises(IntegrityError, match=f"its build {OLD} is being removed, or was"):
        pin_snapshot(lake, "trips", name, by="ben")
    assert read_pins(lake) == {}
    assert clean(lake)[0] == {name: f"its build {OLD} is gone"}


def test_a_pin_that_cannot_be_read_stops_the_cleaner(lake):
    write_build(lake, OLD, day=1)
    lake.storage.write(b"{}", "pins", f"{OLD}.json")
    with pytest.raises(IntegrityError, match=f"pins/{OLD}.json does not tell recipe, build and by"):
        clean(lake, newest_too=True)
    assert lake.storage.exists(*lake.build("trips", OLD), "build.json")


def test_a_snapshot_that_is_not_there_is_refused_with_the_nearest(lake):
    write_build(lake, OLD, day=1)
    name = snapshot(lake, OLD)
    with pytest.raises(SettingError, match=f"not a snapshot of recipe 'trips' .*did you mean '{name}'"):
        find_recipe(lake, ["trips"], name[:-1] + "x")
    with pytest.raises(SettingError, match="of recipe 'rides'"):
        find_recipe(lake, ["rides"], name)


def test_the_job_lists_pins_unpins_and_cleans(lake, tmp_path, capsys):
    flags = ["--lake", lake.storage.root, "--summary", tmp_path / "summary.json"]

    def told(*command):
        assert run("snapshots", *command, *flags) == 0
        return json.loads((tmp_path / "summary.json").read_text())

    for day, build in enumerate((OLD, MID, NEW), start=1):
        write_build(lake, build, day=day)
    write_build(lake, OLD, day=1, recipe="rides")
    first, second = snapshot(lake, OLD), snapshot(lake, MID)
    write_record(lake, "trips", "r1", inputs={"snapshot": first, "build": OLD}, status="complete")

    assert told("unpin", second)["unpinned"] == {"snapshot": second, "build": MID, "was_pinned": "by anna", "runs": None}
    listed = told("list")
    size = sum(path.stat().st_size for path in Path(lake.storage.path("examples/trips", OLD)).rglob("*.parquet"))
    made = listed["snapshots"]["trips"][first].pop("made")
    assert datetime.datetime.fromisoformat(made).tzinfo is not None
    assert listed["snapshots"]["trips"][first] == {"build": OLD, "rows": {"train": 3, "test": 2}, "bytes": size, "pinned": "by anna",
                                                   "runs": {"r1": "complete"}, "files": "all there"}  # fmt: skip
    assert (listed["snapshots"]["trips"][second]["pinned"], listed["snapshots"]["rides"]) == ("no", {})
    unnamed = listed["builds without a snapshot"]
    assert {recipe: list(builds) for recipe, builds in unnamed.items()} == {"rides": [OLD], "trips": [NEW]}
    assert unnamed["trips"][NEW]["state"] == "complete"

    shown, done = told("clean", "--dry-run"), told("clean")
    assert shown["would remove"] == done["removed"]
    assert (shown["in all"].pop("dry_run"), shown["in all"]) == ("nothing was removed", done["in all"])
    assert done["removed"]["trips"].keys() == {MID}
    assert done["in all"]["builds"] == done["in all"]["snapshots"] == 1
    assert told("pin", first)["pinned"]["snapshot"] == first
    assert run("snapshots", "pin", second, *flags) == 2
    assert f"{second!r} is not a snapshot of any recipe" in capsys.readouterr().err
    assert run("snapshots", "list", "--lake", tmp_path / "elsewhere") == 2
    assert "there is no lake at" in capsys.readouterr().err


def test_a_real_build_is_pinned_only_when_asked_and_goes_when_unpinned(spark, tmp_path):
    recipe = write_recipe(tmp_path, split={"by": "hash", "of": ["id"]})
    write_trips(spark, tmp_path, some_trips()[:100])
    lake, plan = recipe.lake, plan_examples(recipe)
    record = make_build(spark, lake, plan, OLD, build_inputs(plan, {"trips": table_version(lake, "trips")}))
    set_retention(lake, tuple(record["table"].split("/")), {"delta.logRetentionDuration": "interval 1 day"})
    before = files_of(lake)
    dry_run = [
        "--recipe",
        tmp_path / "recipe.yaml",
        "--lake",
        lake.storage.root,
        "--dry-run",
        "--summary",
        tmp_path / "told.json",
    ]
    assert run("snapshot", *dry_run) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert files_of(lake) == before, "nothing is written, and the retention stays"

    manifest, there = make_snapshot(lake, "trips", by="anna")
    table = DeltaLog(lake.storage.path(record["table"]))
    assert table.metadata().configuration["delta.logRetentionDuration"] == "interval 36500 days"
    assert (told["snapshot"]["id"], told["snapshot"]["already_there"], there) == (manifest.id, False, False)
    assert told["rows"] == manifest.num_rows == record["num_rows"]
    assert clean(lake)[1] == {record["build"]: f"pinned by snapshot {manifest.id}"}
    unpin_snapshot(lake, "trips", manifest.id)
    assert clean(lake)[0] == {record["build"]: "no pin names it"}
    assert {path.split("/")[1] for path in files_of(lake)} == {"tables"}
