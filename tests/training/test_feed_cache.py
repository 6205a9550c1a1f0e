"""Caches and reading threads: the same rows in the same order, newly shuffled, and no file that is trusted blindly."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lakering.errors import IntegrityError, SettingError
from training.feed import Feed, Order

ORDER = Order(seed=4, batch_size=6, window=2, lanes=6)


@pytest.fixture(scope="module")
def toy(tmp_path_factory, toy_writer):
    return toy_writer(tmp_path_factory.mktemp("cache"))


def feed_of(toy, **options):
    return Feed(lake=toy.lake, manifest=toy.manifest, split="train", order=ORDER, **options)


def first_batches(feeds, epoch, start_step=0):
    """The first global batches, put together from all ranks' parts at their output index."""
    batches = []
    for parts in zip(*(feed.epoch(epoch, start_step) for feed in feeds), strict=True):
        order = np.argsort(np.concatenate([part.output for part in parts]))
        names = ("row_id", "floats", "ids", "label")
        batches.append([np.concatenate([getattr(part, name) for part in parts])[order].tobytes() for name in names])
    return batches[:100]


@pytest.fixture(scope="module")
def plain(toy):
    """Epoch 1 on one rank, with one thread and no cache."""
    return first_batches([feed_of(toy)], 1)


def test_batches_are_the_rows_of_the_table(toy, plain):
    assert len(plain) == 100
    row_id = np.concatenate([np.frombuffer(batch[0], np.int64) for batch in plain])
    assert len(set(row_id)) == 600
    floats = np.concatenate([np.frombuffer(batch[1], np.float32) for batch in plain]).reshape(-1, 2)
    np.testing.assert_array_equal(floats[:, 1], toy.rows["train"]["x1"][row_id])


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_global_batches_are_byte_equal(toy, plain, tmp_path, ranks, threads, cache):
    feeds = [
        feed_of(toy, rank=rank, ranks=ranks, reading_threads=threads, cache=cache, cache_folder=str(tmp_path / "cache"))
        for rank in range(ranks)
    ]
    first_batches(feeds, 0)  # fills the cache
    assert first_batches(feeds, 1) == plain
    assert first_batches(feeds, 1, start_step=7)[:93] == plain[7:]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_second_epoch_reads_no_row_group_again(toy, tmp_path, cache):
    feed = feed_of(toy, cache=cache, cache_folder=str(tmp_path))
    list(feed.epoch(0))
    assert (feed.statistics.row_groups, feed.statistics.cache_misses, feed.statistics.cache_hits) == (6, 6, 0)
    list(feed.epoch(1))
    assert (feed.statistics.row_groups, feed.statistics.cache_misses, feed.statistics.cache_hits) == (6, 6, 6)


def test_a_memory_cache_that_is_too_small_keeps_a_part(write_toy):
    # 28 bytes a row: two row groups of 15,000 rows are 0.8 MiB.
    toy = write_toy({"train": [[15_000] * 5]})
    feed = feed_of(toy, cache="memory", cache_mib=1)
    seen = [sorted(row for batch in feed.epoch(epoch) for row in batch.row_id.tolist()) for epoch in (0, 1)]
    assert seen == [list(range(75_000))] * 2
    assert (feed.statistics.row_groups, feed.statistics.cache_hits) == (8, 2)


def test_an_epoch_that_was_left_leaves_a_cache_that_is_right(toy, plain):
    feed = feed_of(toy, cache="memory")
    for _ in range(3):
        batches = feed.epoch(0)
        next(batches)
        batches.close()
    assert first_batches([feed], 1) == plain


def test_two_epochs_at_the_same_time_do_not_disturb_each_other(toy, plain):
    feed = feed_of(toy, cache="memory")
    other = feed.epoch(0)
    next(other)
    assert first_batches([feed], 1) == plain
    assert len(list(other)) == feed.num_steps - 1


def entries(folder):
    return sorted(folder.glob("*.rows"))


def test_a_new_feed_finds_what_is_on_the_disk(toy, plain, tmp_path):
    list(feed_of(toy, cache="disk", cache_folder=str(tmp_path)).epoch(0))
    feed = feed_of(toy, cache="disk", cache_folder=str(tmp_path))
    assert first_batches([feed], 1) == plain
    assert feed.statistics.row_groups == 0


def cut(path: Path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def empty(path: Path):
    os.truncate(path, 0)


@pytest.mark.parametrize("fault", [cut, flip, empty])
def test_a_broken_file_is_read_anew_and_written_again(toy, plain, tmp_path, caplog, fault):
    list(feed_of(toy, cache="disk", cache_folder=str(tmp_path)).epoch(0))
    whole = entries(tmp_path)[2].read_bytes()
    fault(entries(tmp_path)[2])
    feed = feed_of(toy, cache="disk", cache_folder=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert first_batches([feed], 1) == plain
    assert (feed.statistics.row_groups, feed.statistics.cache_hits) == (1, 5)
    assert [record.getMessage() for record in caplog.records] == [
        f"{entries(tmp_path)[2]} is broken: its row group is read from the table"
    ]
    assert entries(tmp_path)[2].read_bytes() == whole


def test_files_are_of_their_columns_alone(toy, tmp_path):
    """Fewer columns: other files, not the same ones read wrongly."""
    list(feed_of(toy, cache="disk", cache_folder=str(tmp_path)).epoch(0))
    feed = feed_of(toy, cache="disk", cache_folder=str(tmp_path), row_ids=False)
    assert all(len(batch.row_id) == 0 for batch in feed.epoch(0))
    assert len(entries(tmp_path)) == 12


def test_a_table_file_that_changed_is_not_taken_from_the_cache(write_toy, tmp_path):
    toy = write_toy()
    folder = str(tmp_path / "cache")
    list(feed_of(toy, cache="disk", cache_folder=folder).epoch(0))
    path = toy.file("train", 1)
    content = path.read_bytes()
    path.write_bytes(b"\0" * len(content))
    with pytest.raises(IntegrityError, match=path.name):
        list(feed_of(toy, cache="disk", cache_folder=folder).epoch(0))
    path.unlink()
    with pytest.raises(IntegrityError, match=path.name):
        list(feed_of(toy, cache="disk", cache_folder=folder).epoch(0))


def test_a_file_that_changes_under_a_feed_is_not_kept_under_its_old_name(write_toy, tmp_path):
    toy = write_toy()
    feed = feed_of(toy, cache="disk", cache_folder=str(tmp_path))
    whole = first_batches([feed], 0)
    for entry in entries(tmp_path):
        entry.unlink()
    for number in range(3):
        os.utime(toy.file("train", number), (1e9, 1e9))
    assert first_batches([feed], 0) == whole
    assert entries(tmp_path) == []


def test_the_limit_holds_and_what_is_in_use_stays(write_toy, tmp_path):
    toy = write_toy({"train": [[15_000] * 6]})  # 0.4 MiB each
    feed = feed_of(toy, cache="disk", cache_folder=str(tmp_path), cache_mib=1)
    hits = []
    for epoch in range(3):
        list(feed.epoch(epoch))
        assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) <= 1 << 20
        hits.append(feed.statistics.cache_hits)
    assert hits == [0, 2, 4]


def test_what_was_not_used_for_longest_makes_room(write_toy, tmp_path):
    old, new = write_toy({"train": [[15_000] * 2]}), write_toy({"train": [[15_000]]})
    list(feed_of(old, cache="disk", cache_folder=str(tmp_path), cache_mib=1).epoch(0))
    oldest, older = entries(tmp_path)
    os.utime(oldest, (1e9, 1e9))
    os.utime(older, (1e9 + 1, 1e9 + 1))
    list(feed_of(new, cache="disk", cache_folder=str(tmp_path), cache_mib=1).epoch(0))
    assert not oldest.exists()
    assert older.exists()
    assert len(entries(tmp_path)) == 2


def test_what_a_dead_training_left_half_written_is_removed(toy, tmp_path):
    young, old = tmp_path / "a-1-1.tmp", tmp_path / "b-1-1.tmp"
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3700,) * 2)
    list(feed_of(toy, cache="disk", cache_folder=str(tmp_path)).epoch(0))
    assert young.exists()
    assert not old.exists()


TRAIN = """
import json, resource, signal, sys
from lakering.lake import Lake
from lakering.manifest import read_manifest
from lakering.storage import Storage
from training.feed import Feed, Order

lake, folder, largest_file = sys.argv[1], sys.argv[2], int(sys.argv[3])
if largest_file:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
lake = Lake(Storage(lake))
feed = Feed(lake=lake, manifest=read_manifest(lake, "toy"), split="train", cache="disk", cache_folder=folder,
            order=Order(seed=4, batch_size=6, window=2, lanes=6))
seen = [sum(int(batch.row_id.sum()) for batch in feed.epoch(epoch)) for epoch in range(3)]
print(json.dumps({"seen": seen, "read": feed.statistics.row_groups}))
"""


def start(toy, folder, environment, largest_file=0):
    arguments = [toy.lake.storage.root, str(folder), str(largest_file)]
    return subprocess.Popen([sys.executable, "-c", TRAIN, *arguments], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def test_a_full_disk_is_told_once_and_training_goes_on(toy, tmp_path, job_environment):
    output, errors = start(toy, tmp_path, job_environment, largest_file=1000).communicate(timeout=100)
    assert json.loads(output) == {"seen": [sum(range(650))] * 3, "read": 18}
    assert errors.count("can no longer be written") == 1
    assert entries(tmp_path) == []


def test_two_trainings_share_a_folder(toy, tmp_path, job_environment):
    both = [start(toy, tmp_path, job_environment) for _ in range(2)]
    for training in both:
        output, errors = training.communicate(timeout=100)
        assert json.loads(output)["seen"] == [sum(range(650))] * 3, errors
        assert "broken" not in errors
    assert len(entries(tmp_path)) == 6
    assert {path.suffix for path in tmp_path.iterdir()} == {".rows", ""}


def test_a_disk_cache_needs_a_folder(toy):
    with pytest.raises(SettingError, match="needs a folder"):
        feed_of(toy, cache="disk")
