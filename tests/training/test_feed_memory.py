"""How much memory a feed takes, measured in a process of its own; threads and files that it gives back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakering.errors import IntegrityError
from lakering.manifest import ROW_GROUP_SCHEMA
from training.feed import Feed, Order, plan
from training.feed.reader import RowGroupReader

ROWS, GROUPS = 187_500, 60  # 28 bytes a row: 5 MiB a row group, 300 MiB in all
MIB_A_GROUP = ROWS * 28 / 2**20

MEASURE = """
import json, resource, sys
from lakering.lake import Lake
from lakering.manifest import read_manifest
from lakering.storage import Storage
from training.feed import Feed, Order

lake, snapshot, small, options = Lake(Storage(sys.argv[1])), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])

def run(snapshot, **options):
    feed = Feed(lake=lake, manifest=read_manifest(lake, "toy", snapshot), split="train",
                order=Order(seed=1, batch_size=4096, window=2, lanes=1024), **options)
    return sum(batch.num_rows for epoch in (0, 1) for batch in feed.epoch(epoch))

run(small)  # what is imported and set up at the first use is not the feed's
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = run(snapshot, **options)
print(json.dumps({"rows": rows, "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory, toy_writer):
    """A toy whose train split is one file of many row groups, all alike, and the same toy when it was small."""
    toy = toy_writer(tmp_path_factory.mktemp("memory"))
    columns = {name: np.resize(values[:50], ROWS) for name, values in toy.rows["train"].items()}
    path = toy.file("train").with_name("large.parquet")
    with pq.ParquetWriter(path, pa.table(columns).schema) as writer:
        for _ in range(GROUPS):
            writer.write_table(pa.table(columns), row_group_size=ROWS)
    facts = {"split": "train", "path": path.name, "file_bytes": path.stat().st_size, "num_rows": ROWS}
    row_groups = pa.Table.from_pylist([{**facts, "row_group": i} for i in range(GROUPS)], schema=ROW_GROUP_SCHEMA)
    manifest = replace(toy.manifest, build="b2", row_groups=row_groups)
    manifest.write(toy.lake)
    return replace(toy, manifest=manifest), toy


@pytest.mark.parametrize(
    ("options", "windows", "extra"),
    [
        ({"read_ahead": 0}, 2, 0),
        ({"read_ahead": 20, "reading_threads": 3}, 2, 20),
        ({"read_ahead": 0, "rank": 1, "ranks": 2}, 1, 0),
        ({"read_ahead": 0, "cache": "memory", "cache_mib": 60}, 2, 60),
    ],
)
def test_a_feed_stays_within_its_bound(large, job_environment, options, windows, extra):
    toy, small = large
    arguments = [toy.lake.storage.root, toy.manifest.id, small.manifest.id, json.dumps(options)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], env=job_environment, capture_output=True, text=True,
                          timeout=200, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == pytest.approx(2 * ROWS * GROUPS / options.get("ranks", 1), rel=0.01)
    assert found["mib"] < windows * 2 * MIB_A_GROUP + 2 * MIB_A_GROUP + extra + 100


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "lakering-feed"]


def open_files(toy):
    names = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since, by a thread that reads
            names.append(os.readlink(link))
    return [name for name in names if name.startswith(str(toy.folder))]


def feed_of(toy, **options):
    order = Order(seed=1, batch_size=10, window=1, lanes=5)
    return Feed(lake=toy.lake, manifest=toy.manifest, split="train", order=order, read_ahead=0, **options)


@pytest.mark.parametrize("threads_wanted", [1, 3])
def test_nothing_is_left_of_an_epoch_that_was_closed(write_toy, tmp_path, threads_wanted):
    toy = write_toy({"train": [[50]] * 12})
    feed = feed_of(toy, reading_threads=threads_wanted, cache="disk", cache_folder=str(tmp_path / "toy-cache"))
    with closing(feed.epoch(0)) as batches:
        next(batches)
        assert threads()
        assert open_files(toy)
    assert threads() == []
    feed.close()
    assert open_files(toy) == []


@pytest.mark.parametrize("kind", [MemoryError, KeyError, PermissionError])
def test_an_exception_of_a_thread_is_raised_as_it_was(write_toy, monkeypatch, kind):
    toy = write_toy({"train": [[50]] * 12})
    raised = kind("not this one")

    def failing(self, row_group):
        raise raised

    monkeypatch.setattr(RowGroupReader, "read", failing)
    with pytest.raises(kind) as caught:
        list(feed_of(toy).epoch(0))
    assert caught.value is raised
    assert threads() == []
    assert open_files(toy) == []


def test_a_fault_further_on_is_raised_as_soon_as_it_is_met(write_toy):
    """Ranks that share a broken file should not train for an hour until one of them is told."""
    toy = write_toy({"train": [[50]] * 12})
    feed = replace(feed_of(toy), read_ahead=64)  # all of it
    last = plan.cut_windows([50] * 12, feed.order, 0)[11].row_groups[0]
    os.unlink(feed.row_group(last).path)
    served = []

    def consume():
        for batch in feed.epoch(0):
            served.append(batch)
            for thread in threads():
                thread.join()

    with pytest.raises(IntegrityError, match="cannot be read"):
        consume()
    assert len(served) <= 1


def test_memory_is_given_back_when_the_feed_is_closed(write_toy):
    feed = feed_of(write_toy(), cache="memory")
    list(feed.epoch(0))
    list(feed.epoch(1))
    feed.close()
    list(feed.epoch(2))
    assert (feed.statistics.cache_hits, feed.statistics.row_groups) == (6, 12)
