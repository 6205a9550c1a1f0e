"""A lake on S3, as the training room uses it."""

from __future__ import annotations

import json
import re
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from pyarrow import fs

from lakering.errors import IntegrityError, LakeringError
from lakering.lake import Lake
from lakering.manifest import read_manifest, validate_files
from lakering.storage import Storage
from tests import s3
from training.checkpoint import Checkpoint, newest_checkpoint, read_arrays, write_checkpoint
from training.feed import Feed, Order
from training.feed.reader import RowGroup, RowGroupReader

ORDER = Order(seed=9, batch_size=64, window=2, lanes=8)
server, credentials, storage = s3.server, s3.credentials, s3.storage


@pytest.fixture
def toy(write_toy, storage):
    """The toy's lake, copied to S3 file by file; its ``lake`` is the one on S3."""
    made = write_toy()
    fs.copy_files(
        made.lake.storage.root, storage.path(), source_filesystem=fs.LocalFileSystem(), destination_filesystem=storage.filesystem
    )
    return replace(made, lake=Lake(storage))


def test_files_are_written_found_read_and_removed(storage):
    storage.write(b"old", "folder", "file")
    storage.write(b"new", "folder", "file")
    storage.write_json({"a": 1}, "folder", "below", "other.json")
    assert (storage.read("folder", "file"), storage.read_json("folder", "below", "other.json")) == (b"new", {"a": 1})
    assert storage.list("folder") == ["below", "file"]
    assert (storage.exists("folder", "file"), storage.exists("folder"), storage.exists("nowhere")) == (True, True, False)
    assert storage.list("nowhere") == []
    assert sorted(info.path for info in storage.walk()) == [
        storage.path("folder", "below", "other.json"),
        storage.path("folder", "file"),
    ]
    storage.delete("folder", "below")
    storage.delete("nowhere")
    assert storage.list("folder") == ["file"]


@pytest.mark.parametrize(("key", "secret"), [("AKIAUNKNOWNKEYOFNOBODY", None), (None, "hidden-secret-of-nobody")])
@pytest.mark.parametrize("operation", ["exists", "list", "read", "delete", "write"])
def test_a_wrong_key_is_an_error_that_says_where_to_look_and_holds_no_key(server, storage, monkeypatch, operation, key, secret):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key or server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret or server.secret)
    with pytest.raises(LakeringError) as caught:
        getattr(storage, operation)(*([b"content"] if operation == "write" else []), "file")
    text = str(caught.value)
    assert re.match(r"s3://bucket/.*/file: .*(ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|403)", text)
    assert f"endpoint {server.endpoint}, region {s3.REGION}" in text
    assert "AWS_ACCESS_KEY_ID" in text
    assert not {found for found in (key, secret, server.key, server.secret) if found and found in text}


def test_a_server_that_is_not_there_is_not_an_empty_lake(server, credentials):
    gone = Storage("s3://bucket/lake", replace(server.settings, endpoint="http://127.0.0.1:1"))
    with pytest.raises(
        LakeringError, match=r"(?s)s3://bucket/lake/snapshots/toy: .*NETWORK_CONNECTION.*endpoint http://127\.0\.0\.1:1"
    ):
        read_manifest(Lake(gone), "toy")
    with pytest.raises(LakeringError, match="NETWORK_CONNECTION") as caught:
        read_arrays(Lake(gone), {"sha256": "", "names": []}, "weights.npz")
    assert not isinstance(caught.value, IntegrityError)  # else training would go back to an older checkpoint


def batches_of(lake, manifest, rank=0, ranks=1):
    return list(Feed(lake=lake, manifest=manifest, split="train", order=ORDER, rank=rank, ranks=ranks).epoch(0))


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_feed_hands_out_the_same_bytes_as_from_a_local_disk(toy, ranks):
    manifest = read_manifest(toy.lake, "toy")
    validate_files(toy.lake, manifest)
    local = Lake(Storage(str(toy.folder / "lake")))
    for rank in range(ranks):
        for far, near in zip(batches_of(toy.lake, manifest, rank, ranks), batches_of(local, manifest, rank, ranks), strict=True):
            for part in ("floats", "ids", "label", "row_id", "output"):
                np.testing.assert_array_equal(getattr(far, part), getattr(near, part))


def test_the_columns_of_a_row_group_are_read_by_one_request(server, toy):
    columns = ["x0", "x1", "a", "b", "y", "row_id"]
    path = toy.lake.storage.path(toy.manifest.table, "train-1.parquet")
    with closing(RowGroupReader(toy.lake.storage.filesystem, columns)) as reader:
        reader.read(RowGroup(path, 0, 90))
        before = server.num_reads(path)
        assert reader.read(RowGroup(path, 1, 110))[0].num_rows == 110
        reader.read(RowGroup(path, 2, 50))
    assert server.num_reads(path) - before == 2


def test_a_file_that_vanished_or_was_replaced_is_named(toy):
    parts = (toy.manifest.table, "train-1.parquet")
    toy.lake.storage.write(toy.lake.storage.read(toy.manifest.table, "train-0.parquet"), *parts)
    with pytest.raises(IntegrityError, match=r"train-1\.parquet"):
        batches_of(toy.lake, toy.manifest)
    toy.lake.storage.delete(*parts)
    for use in (validate_files, batches_of):
        with pytest.raises(IntegrityError, match=r"train-1\.parquet"):
            use(toy.lake, toy.manifest)


@pytest.mark.faults
def test_a_store_that_answers_no_more_ends_the_epoch_with_an_error_and_no_thread_is_left(server, toy):
    with closing(
        Feed(lake=toy.lake, manifest=toy.manifest, split="train", order=replace(ORDER, window=1), read_ahead=0).epoch(0)
    ) as batches:
        next(batches)
        with (
            server.silent(),
            pytest.raises(LakeringError, match=r"train-\d\.parquet, row group \d cannot be read: .*AWS Error") as caught,
        ):
            list(batches)
    assert not isinstance(caught.value, IntegrityError), "nothing is broken"
    assert "the store answers" in str(caught.value)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lakering")]


def test_checkpoints_are_written_pruned_and_read_back(storage):
    lake, run = Lake(storage), ("runs", "toy", "r1")
    for step in (5, 10, 15):
        write_checkpoint(lake, run, Checkpoint({"w": np.full(3, step, np.float32)}, {}, {"global_step": step}), keep=2)
    found, passed_over = newest_checkpoint(lake, run)
    assert found is not None
    assert (found.global_step, found.weights["w"].tolist(), passed_over) == (15, [15, 15, 15], [])
    assert storage.list(*run, "checkpoints") == ["0000000010", "0000000015"]


def test_a_training_reads_and_writes_a_lake_on_s3_and_tells_no_key(server, toy, run_job, tmp_path):
    settings = f"storage: {{endpoint: '{server.endpoint}', region: {s3.REGION}, path_style: true}}"
    recipe = tmp_path / "s3.yaml"
    recipe.write_text(toy.recipe.read_text().replace("lake: lake", f"lake: '{toy.lake.storage.root}'\n{settings}"))
    done = run_job("train", "--recipe", recipe, "--summary", tmp_path / "train.json", "--log-json")
    assert done.returncode == 0, done.stderr
    (run,) = toy.lake.storage.list("runs", "toy")
    record = toy.lake.storage.read("runs", "toy", run, "record.json").decode()
    assert json.loads(record)["status"] == "complete"
    told = [record, (tmp_path / "train.json").read_text(), done.stdout, done.stderr]
    for text in told:
        assert server.key not in text
        assert server.secret not in text
