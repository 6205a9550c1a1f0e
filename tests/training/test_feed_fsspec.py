"""A lake in a file system that fsspec names, as the feed and the checkpoints use it."""

from __future__ import annotations

import numpy as np
import pytest
from pyarrow import fs

from lakering.errors import IntegrityError
from lakering.lake import Lake
from lakering.manifest import read_manifest, validate_files
from lakering.storage import Storage
from training.checkpoint import Checkpoint, newest_checkpoint, write_checkpoint
from training.feed import Feed, Order

ORDER = Order(seed=9, batch_size=64, window=2, lanes=8)


@pytest.fixture
def far(request):
    storage = Storage(f"memory://{request.node.originalname}/lake")
    yield Lake(storage)
    storage.delete()


@pytest.fixture
def toy(write_toy, far):
    made = write_toy()
    root = made.lake.storage.root
    for info in made.lake.storage.filesystem.get_file_info(fs.FileSelector(root, recursive=True)):
        if info.is_file:
            relative = info.path.removeprefix(f"{root}/").split("/")
            far.storage.write(made.lake.storage.read(*relative), *relative)
    return made


def batches_of(lake, manifest):
    return list(Feed(lake=lake, manifest=manifest, split="train", order=ORDER, reading_threads=2).epoch(0))


def test_the_feed_hands_out_the_same_bytes_as_from_a_local_disk(toy, far):
    manifest = read_manifest(far, "toy")
    validate_files(far, manifest)
    for there, here in zip(batches_of(far, manifest), batches_of(toy.lake, manifest), strict=True):
        for part in ("floats", "ids", "label", "row_id", "output"):
            np.testing.assert_array_equal(getattr(there, part), getattr(here, part))


def test_a_file_that_vanished_is_named(toy, far):
    far.storage.delete(toy.manifest.table, "train-1.parquet")
    with pytest.raises(IntegrityError, match=r"train-1\.parquet, row group \d cannot be read"):
        batches_of(far, toy.manifest)


def test_checkpoints_are_written_pruned_and_read_back(far):
    run = ("runs", "toy", "r1")
    for step in (5, 10, 15):
        write_checkpoint(far, run, Checkpoint({"w": np.full(3, step, np.float32)}, {}, {"global_step": step}), keep=2)
    found, _ = newest_checkpoint(far, run)
    assert found is not None
    assert (found.global_step, found.weights["w"].tolist()) == (15, [15, 15, 15])
    assert far.storage.list(*run, "checkpoints") == ["0000000010", "0000000015"]
