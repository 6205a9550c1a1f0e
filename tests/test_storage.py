"""Storage, the lake's layout and the manifest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from lakering.errors import BusyError, IntegrityError, SettingError, StageError
from lakering.lake import Lake
from lakering.lock import storage_lock
from lakering.manifest import ROW_GROUP_SCHEMA, Column, Manifest, read_manifest, validate_files, write_pin
from lakering.storage import Storage, StorageSettings


def manifest(rows: int = 10) -> Manifest:
    groups = pa.table({"split": ["train", "train", "test"], "path": ["a", "a", "b"], "file_bytes": [3, 3, 4],
                       "row_group": [0, 1, 0], "num_rows": [rows, 5, 2]}, schema=ROW_GROUP_SCHEMA)  # fmt: skip
    return Manifest(recipe="trips", build="b1", table="examples/trips/b1/table", version=0, columns=(Column("fare", "float"), Column("zone", "id", 7)),
                    label="label", label_kind="binary", weight=None, statistics={"fare": {"mean": 1.5}}, contracts={"trips": "1"},
                    row_groups=groups)  # fmt: skip


@pytest.mark.parametrize(
    ("root", "local", "uri"),
    [("/a/b", True, "file:/a/b/c"), ("file:///a/b%20c/", True, "file:/a/b c/c"), ("file:/a", True, "file:/a/c"),
     ("s3://bucket/lake/", False, "s3a://bucket/lake/c"), ("s3a://bucket", False, "s3a://bucket/c"), ("hdfs://nn/lake", False, "hdfs://nn/lake/c")],
)  # fmt: skip
def test_one_root_is_named_alike_for_spark(root, local, uri):
    storage = Storage(root)
    assert (storage.is_local, storage.uri("c")) == (local, uri)


@pytest.mark.parametrize(
    ("root", "path"),
    [("/a/b c#1", "/a/b c#1/x"), ("s3://bucket/a%20b/c#1", "bucket/a%20b/c#1/x"), ("s3a://bucket", "bucket/x"), ("gs://bucket/a", "bucket/a/x"),
     ("hdfs://nn:8020/lake", "/lake/x"), ("hdfs://nn", "/x"), ("memory://lake/a", "/lake/a/x")],
)  # fmt: skip
def test_one_root_is_named_for_pyarrow_as_it_is_written(root, path):
    assert Storage(root).path("x") == path


def test_an_unknown_scheme_is_refused():
    with pytest.raises(SettingError, match="scheme 'tape' is not known"):
        Storage("tape://host/lake")


@pytest.mark.parametrize(
    "root",
    ["s3://key:hidden@bucket/lake", "s3a://hidden@bucket", "ftp://me:hidden@host/lake", "s3://bucket/lake?secret_key=hidden"],
)
def test_a_url_that_holds_credentials_is_refused_without_repeating_them(root):
    with pytest.raises(SettingError, match=r"holds (a user or a password|options after a '\?')") as caught:
        Storage(root)
    assert "hidden" not in str(caught.value)


def test_an_endpoint_that_holds_credentials_is_refused_without_repeating_them():
    with pytest.raises(SettingError, match=r"storage\.endpoint holds a user or a password") as caught:
        StorageSettings(endpoint="https://me:hidden@host:9000")
    assert "hidden" not in str(caught.value)


def test_one_mapping_of_settings_serves_spark_and_pyarrow():
    settings = StorageSettings(endpoint="http://127.0.0.1:9000", region="eu-west-1", path_style=True)
    assert settings.for_spark() == {
        "spark.hadoop.fs.s3a.endpoint": "http://127.0.0.1:9000",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
        "spark.hadoop.fs.s3a.endpoint.region": "eu-west-1",
        "spark.hadoop.fs.s3a.path.style.access": "true",
    }
    assert settings.for_pyarrow() == {"endpoint_override": "127.0.0.1:9000", "scheme": "http", "region": "eu-west-1"}


@pytest.fixture
def memory(request):
    """A lake in fsspec's memory file system, which is one for the whole process."""
    storage = Storage(f"memory://{request.node.name}/deep")
    yield storage
    storage.delete()


def test_a_file_system_that_fsspec_names_holds_a_lake(memory):
    memory.write(b"old", "folder", "file")
    memory.write(b"new", "folder", "file")
    memory.write_json({"a": 1}, "folder", "other.json")
    assert (memory.read("folder", "file"), memory.read_json("folder", "other.json")) == (b"new", {"a": 1})
    assert memory.list("folder") == ["file", "other.json"]
    assert (memory.exists("folder"), memory.exists("nowhere"), memory.list("nowhere")) == (True, False, [])
    assert [info.path for info in memory.walk()] == [memory.path("folder", "file"), memory.path("folder", "other.json")]
    assert all(info.mtime for info in memory.walk())
    memory.delete("folder", "file")
    assert memory.list("folder") == ["other.json"]


def test_the_newest_snapshot_is_found_where_fsspec_keeps_the_time(memory):
    lake = Lake(memory)
    for rows in range(1, 9):  # their names are hashes: the order of names is not that of writing
        written = manifest(rows).write(lake)
    assert read_manifest(lake, "trips").id == written


def test_a_file_system_that_tells_no_times_is_refused_since_the_newest_could_not_be_known():
    class Timeless(MemoryFileSystem):
        protocol = "timeless"
        modified = AbstractFileSystem.modified

    fsspec.register_implementation("timeless", Timeless, clobber=True)
    storage = Storage("timeless://folder")
    storage.write(b"x", "file")
    with pytest.raises(SettingError, match=r"timeless: it tells no times of writing"):
        list(storage.walk())


def test_a_scheme_whose_package_is_not_installed_names_it():
    with pytest.raises(SettingError, match=r"sftp://host/lake: fsspec cannot open it: .*paramiko"):
        Storage("sftp://host/lake").list()


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.write(b"old", "file")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        storage.write(b"new", "file")
    assert (storage.read("file"), storage.list()) == (b"old", ["file"])


def test_a_manifest_is_read_back_as_it_was_written(tmp_path):
    lake, written = Lake(Storage(str(tmp_path))), manifest()
    name = written.write(lake)
    found = read_manifest(lake, "trips")
    assert found.id == name
    assert found.num_rows == {"train": 15, "test": 2}
    assert found.split("test").to_pylist() == [{"split": "test", "path": "b", "file_bytes": 4, "row_group": 0, "num_rows": 2}]
    assert (found.columns, found.statistics) == (written.columns, written.statistics)


def test_a_missing_snapshot_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(StageError, match=r"(?s)no snapshot of recipe 'trips'.*etl/jobs/snapshot\.py"):
        read_manifest(Lake(Storage(str(tmp_path))), "trips")


@pytest.mark.parametrize("file", ["manifest.json", "row_groups.parquet"])
def test_a_changed_manifest_is_refused(tmp_path, file):
    lake = Lake(Storage(str(tmp_path)))
    path = tmp_path / "/".join(lake.snapshot("trips", manifest().write(lake))) / file
    if file.endswith("json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 3}))
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError):
        read_manifest(lake, "trips")


KILLED_SNAPSHOT = """
import os, signal, sys
from lakering.lake import Lake
from lakering.manifest import write_pin
from lakering.storage import Storage
from tests.test_storage import manifest

write_json = Storage.write_json

def dying(self, value, *parts):
    if parts[-1] == sys.argv[2] or parts[0] == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    write_json(self, value, *parts)

Storage.write_json = dying
lake = Lake(Storage(sys.argv[1]))
manifest().write(lake)
write_pin(lake, manifest(), by="snapshot")
"""


@pytest.mark.parametrize("point", ["manifest.json", "pins"])
def test_a_snapshot_killed_before_its_manifest_or_pin_is_made_whole_by_the_next(tmp_path, point):
    root = Path(__file__).resolve().parents[1]
    killed = subprocess.run([sys.executable, "-c", KILLED_SNAPSHOT, str(tmp_path), point], cwd=root, timeout=60)
    assert killed.returncode == -9
    lake = Lake(Storage(str(tmp_path)))
    if point == "manifest.json":
        with pytest.raises(StageError, match="no snapshot"):
            read_manifest(lake, "trips")
    name = manifest().write(lake)
    write_pin(lake, manifest(), by="snapshot")
    assert read_manifest(lake, "trips").id == name
    assert lake.storage.list("pins") == [f"{name}.json"]


def test_files_that_are_gone_or_changed_are_named(tmp_path):
    lake, written = Lake(Storage(str(tmp_path))), manifest()
    folder = tmp_path / written.table
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"abc")
    (folder / "b").write_bytes(b"abcd")
    validate_files(lake, written)
    (folder / "b").write_bytes(b"abcde")
    (folder / "a").unlink()
    with pytest.raises(IntegrityError, match=r"version 0\): 2 of 2 files are gone or changed, first .*/a"):
        validate_files(lake, written)


@pytest.mark.parametrize("name", ["../other", "a/b", "", ".hidden", "a b"])
def test_identifiers_that_could_leave_their_folder_are_refused(tmp_path, name):
    with pytest.raises(SettingError, match="is not an identifier"):
        Lake(Storage(str(tmp_path))).run("trips", name)


def test_a_lock_is_waited_for_or_refused_with_the_name_of_what_is_held(tmp_path):
    storage = Storage(str(tmp_path))
    with storage_lock(storage, "runs", "a", what="run a"):
        with (
            pytest.raises(BusyError, match="another process works on run a") as caught,
            storage_lock(storage, "runs", "a", what="run a", wait=False),
        ):
            pass
        with storage_lock(storage, "runs", "b", what="run b", wait=False):
            pass
    assert caught.value.exit_status == 6
    with storage_lock(storage, "runs", "a", what="run a", wait=False):
        pass
