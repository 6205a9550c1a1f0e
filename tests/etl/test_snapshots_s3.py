"""Snapshots of builds on S3, without Spark: their logs are read, their retention is raised, and they are pinned and cleaned."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from etl.tables.cleaning import Cleaner
from etl.tables.example_files import lowered_retention
from etl.tables.snapshots import make_snapshot, unpin_snapshot
from lakering.errors import IntegrityError, LakeringError
from lakering.lake import Lake
from lakering.manifest import read_manifest, validate_files
from lakering.pins import read_pins
from lakering.storage import Storage
from tests import s3

OLD, NEW = "a" * 16, "b" * 16
server, credentials, storage = s3.server, s3.credentials, s3.storage


def write_build(lake: Lake, build: str) -> tuple[str, ...]:
    """A build of a Delta table with three train rows and two test rows; returns its table."""
    table = (*lake.build("trips", build), "table")
    rows = pa.table({"row_id": range(5), "fare": [1.0] * 5, "split": ["train"] * 3 + ["test"] * 2})
    write_deltalake(lake.storage.uri(*table), rows, partition_by=["split"], storage_options=lake.storage.settings.for_delta())
    record = {"build": build, "recipe": "trips", "format": "delta", "table": "/".join(table), "label_kind": "binary", "weight": None,
              "num_rows": {"train": 3, "test": 2}, "columns": [{"name": "fare", "kind": "float", "num_ids": None}],
              "statistics": {"fare": {"mean": 1.0}}, "contracts": {}}  # fmt: skip
    lake.storage.write_json(record, *lake.build("trips", build), "build.json")
    return table


def test_a_build_is_pinned_and_its_retention_is_raised(storage):
    lake = Lake(storage)
    table = write_build(lake, OLD)
    manifest, there = make_snapshot(lake, "trips", by="anna")
    assert (manifest.version, manifest.num_rows, there) == (1, {"train": 3, "test": 2}, False)
    assert lowered_retention(lake, table) == {}
    found = read_manifest(lake, "trips")
    assert found.id == manifest.id
    validate_files(lake, found)
    assert [(pin.build, pin.by) for pin in read_pins(lake).values()] == [(OLD, "anna")]


def test_a_build_without_a_pin_is_removed_and_a_pinned_one_stays(storage):
    lake = Lake(storage)
    for build in (OLD, NEW):
        write_build(lake, build)
    kept, gone = (make_snapshot(lake, "trips", build, by="anna")[0] for build in (OLD, NEW))
    unpin_snapshot(lake, "trips", gone.id)
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
    findings = Cleaner(lake=lake, recipe="trips", now=now).clean()
    assert {finding.build for finding in findings if finding.removed} == {NEW}
    validate_files(lake, read_manifest(lake, "trips", kept.id))
    assert lake.storage.list("examples", "trips") == [OLD]


def test_a_log_that_is_gone_is_told_from_a_server_that_is(storage, monkeypatch):
    lake = Lake(storage)
    table = write_build(lake, OLD)
    storage.delete(*table, "_delta_log")
    with pytest.raises(IntegrityError, match=r"the log of .*/a+/table is gone"):
        make_snapshot(lake, "trips", by="anna")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    with pytest.raises(LakeringError, match="check the URL, the storage settings") as caught:
        make_snapshot(Lake(Storage(storage.root, storage.settings)), "trips", by="anna")
    assert not isinstance(caught.value, IntegrityError)
    assert "hidden-secret" not in str(caught.value)
