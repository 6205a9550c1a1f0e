"""The feed as numpy, tf.data and torch take it: the same rows in the same order, whole columns, no thread left."""

from __future__ import annotations

import sys
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from lakering.errors import IntegrityError, LakeringError, SettingError
from lakering.manifest import Column
from training.feed import Feed, Order
from training.feed.adapters import numpy_batches, tf_dataset, torch_dataset

ORDER = Order(seed=9, batch_size=64, window=2, lanes=8)


def feed_of(toy, rank=0, ranks=1, **options):
    return Feed(lake=toy.lake, manifest=toy.manifest, split="train", order=ORDER, rank=rank, ranks=ranks, **options)


def as_numpy(feed, epoch=0, start_step=0):
    return list(numpy_batches(feed, epoch, start_step))


def as_tf(feed, epoch=0, start_step=0):
    return list(tf_dataset(feed, epoch, start_step).as_numpy_iterator())


def as_torch(feed, epoch=0, start_step=0):
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch_dataset(feed, epoch, start_step), batch_size=None)
    return [{name: cells.numpy() if hasattr(cells, "numpy") else cells for name, cells in batch.items()} for batch in loader]


ADAPTERS = pytest.mark.parametrize("adapted", [as_numpy, as_tf, as_torch])


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("lakering-feed")]


@ADAPTERS
def test_batches_are_the_feeds_own(write_toy, adapted):
    toy = write_toy(weight=True)
    expected = list(feed_of(toy).epoch(1, 3))
    found = adapted(feed_of(toy), 1, 3)
    assert [len(batch["label"]) for batch in found] == [64, 64, 64, 64, 64, 64, 64, 10]
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == {"floats", "ids", "label", "weight", "row_id"}
        for name, cells in ours.items():
            assert cells.dtype == getattr(theirs, name).dtype
            np.testing.assert_array_equal(cells, getattr(theirs, name))


@ADAPTERS
def test_a_rank_without_rows_has_as_many_batches(write_toy, adapted):
    toy = write_toy({"train": [[2]]})
    parts = [adapted(feed_of(toy, rank, 3)) for rank in range(3)]
    assert [[batch["floats"].shape for batch in part] for part in parts] == [[(2, 2)], [(0, 2)], [(0, 2)]]


@ADAPTERS
def test_what_the_feed_does_not_read_is_no_column(write_toy, adapted):
    first, *_ = adapted(feed_of(write_toy(), row_ids=False))
    assert set(first) == {"floats", "ids", "label"}


@pytest.fixture
def kinds(write_toy):
    """Three rows with an array, tokens and an image, whose bytes end in zeros."""
    toy = write_toy({"train": [[3]]})
    path = toy.file("train")
    cells = {
        "grid": [np.full((2, 2), k, "<f4").tobytes() for k in range(3)],
        "words": [np.array([k, 1], "<i4").tobytes() for k in range(3)],
        "photo": [b"\x89PNG" + bytes(k) for k in range(3)],
    }
    rows = pq.read_table(path)
    for name, values in cells.items():
        rows = rows.append_column(name, pa.array(values, pa.binary()))
    pq.write_table(rows, path)
    columns = (Column("grid", "array", shape=(2, 2)), Column("words", "tokens", 9, (2,)), Column("photo", "image"))
    return replace(toy, manifest=replace(toy.manifest, columns=(*toy.manifest.columns, *columns)))


def assert_kinds(batch):
    rows = np.asarray(batch["row_id"]).tolist()
    assert sorted(rows) == [0, 1, 2]
    assert np.asarray(batch["arrays"]["grid"]).tolist() == [[[k, k], [k, k]] for k in rows]
    assert np.asarray(batch["tokens"]["words"]).tolist() == [[k, 1] for k in rows]
    assert list(batch["images"]["photo"]) == [b"\x89PNG" + bytes(k) for k in rows]


@pytest.mark.parametrize("adapted", [as_numpy, as_tf])
def test_arrays_tokens_and_images_come_by_their_columns(kinds, adapted):
    (batch,) = adapted(feed_of(kinds))
    assert_kinds(batch)


def test_torch_gets_images_as_bytes(kinds):
    pytest.importorskip("torch")
    (batch,) = list(torch_dataset(feed_of(kinds), 0))
    assert_kinds(batch)


def test_a_dataset_tells_its_shapes(write_toy):
    signature = tf_dataset(feed_of(write_toy()), 0).element_spec
    assert signature == {
        "floats": tf.TensorSpec([None, 2], tf.float32),
        "ids": tf.TensorSpec([None, 2], tf.int32),
        "label": tf.TensorSpec([None], tf.float32),
        "row_id": tf.TensorSpec([None], tf.int64),
    }


def test_a_dataset_can_be_gone_over_again(write_toy):
    dataset = tf_dataset(feed_of(write_toy()), 0)
    first, again = ([batch["row_id"].tolist() for batch in dataset.as_numpy_iterator()] for _ in range(2))
    assert first == again


def test_numpy_batches_end_the_thread_when_closed(write_toy):
    with closing(numpy_batches(feed_of(write_toy()), 0)) as batches:
        next(batches)
    assert not threads()


def test_a_dataset_left_early_ends_the_thread(write_toy):
    batches = iter(tf_dataset(feed_of(write_toy()), 0).prefetch(2))
    next(batches)
    del batches
    assert not threads()


def test_a_loader_left_early_ends_the_thread(write_toy):
    torch = pytest.importorskip("torch")
    batches = iter(torch.utils.data.DataLoader(torch_dataset(feed_of(write_toy()), 0), batch_size=None))
    next(batches)
    del batches
    assert not threads()


@pytest.mark.parametrize(
    ("adapted", "error"), [(as_numpy, IntegrityError), (as_tf, tf.errors.OpError), (as_torch, IntegrityError)]
)
def test_an_error_of_the_feed_names_the_file_and_ends_the_thread(write_toy, adapted, error):
    toy = write_toy()
    toy.file("train", 1).unlink()
    with pytest.raises(error, match=r"train-1\.parquet"):
        adapted(feed_of(toy))
    assert not threads()


def test_an_error_of_the_caller_ends_the_thread(write_toy):
    feed = feed_of(write_toy())
    with pytest.raises(ZeroDivisionError), closing(numpy_batches(feed, 0)) as batches:  # noqa: PT012
        for _ in batches:
            raise ZeroDivisionError
    assert not threads()


def test_several_workers_of_a_loader_are_refused(write_toy):
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch_dataset(feed_of(write_toy()), 0), batch_size=None, num_workers=2)
    with pytest.raises(SettingError, match=r"num_workers=2.*every row"):
        next(iter(loader))


def test_one_worker_of_a_loader_hands_on_every_row_once(write_toy):
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch_dataset(feed_of(write_toy()), 0), batch_size=None, num_workers=1)
    assert sorted(row_id for batch in loader for row_id in batch["row_id"].tolist()) == list(range(650))


def test_without_torch_the_error_tells_what_to_install(write_toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    with pytest.raises(LakeringError, match=r"torch cannot be imported[\s\S]*pip install 'lakering\[torch\]'"):
        torch_dataset(feed_of(write_toy()), 0)
