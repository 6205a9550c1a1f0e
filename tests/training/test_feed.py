"""The feed over real Parquet: exact rows, exact batches, named errors, no thread left."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakering.errors import IntegrityError, SettingError
from lakering.manifest import validate_files
from training.feed import Feed, Order
from training.feed.batch import tensor_of
from training.feed.reader import REBUILD

ORDER = Order(seed=9, batch_size=64, window=2, lanes=8)


def feed_of(toy, rank=0, ranks=1, split="train", order=ORDER, **options):
    return Feed(lake=toy.lake, manifest=toy.manifest, split=split, order=order, rank=rank, ranks=ranks, **options)


def global_batches(toy, ranks, epoch=0, start_step=0):
    """Each global batch as (row ids, floats, ids, labels), put together from all ranks' parts at their output index."""
    parts = [list(feed_of(toy, rank, ranks).epoch(epoch, start_step)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1, "ranks have the same number of steps"
    batches = []
    for shares in zip(*parts, strict=True):
        assert sum(share.num_rows for share in shares) == shares[0].global_rows
        order = np.argsort(np.concatenate([share.output for share in shares]))
        assert sorted(np.concatenate([share.output for share in shares])) == list(range(shares[0].global_rows))
        columns = [np.concatenate([getattr(s, name) for s in shares])[order] for name in ("row_id", "floats", "ids", "label")]
        batches.append(columns)
    return batches


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_row_comes_once_with_its_own_values(write_toy, ranks):
    toy = write_toy()
    batches = global_batches(toy, ranks)
    row_id, floats, ids, label = (np.concatenate(column) for column in zip(*batches, strict=True))
    rows = toy.rows["train"]
    assert sorted(row_id) == rows["row_id"].tolist()
    np.testing.assert_array_equal(floats, np.stack([rows["x0"], rows["x1"]], 1)[row_id])
    np.testing.assert_array_equal(ids, np.stack([rows["a"], rows["b"]], 1)[row_id])
    np.testing.assert_array_equal(label, rows["y"][row_id])


def test_global_batches_are_byte_equal_on_any_number_of_ranks_and_after_resuming(write_toy):
    toy = write_toy()
    alone = global_batches(toy, 1, epoch=1)
    for ranks in (2, 3):
        for ours, theirs in zip(global_batches(toy, ranks, epoch=1), alone, strict=True):
            assert [a.tobytes() for a in ours] == [b.tobytes() for b in theirs]
    resumed = global_batches(toy, 2, epoch=1, start_step=4)
    assert [[a.tobytes() for a in batch] for batch in resumed] == [[a.tobytes() for a in batch] for batch in alone[4:]]


def test_row_groups_that_several_ranks_read_are_counted(write_toy):
    toy = write_toy({"train": [[90], [90]]})  # one window, three ranks: borders at row 60 and at row 120
    feeds = [feed_of(toy, rank, 3, order=Order(seed=1, batch_size=30, window=2, lanes=3)) for rank in range(3)]
    for feed in feeds:
        list(feed.epoch(0))
    assert [feed.statistics.row_groups for feed in feeds] == [1, 2, 1]
    assert sum(feed.statistics.row_groups_shared for feed in feeds) == 2, "each was read by two ranks"


def test_resuming_reads_no_window_that_is_done(write_toy):
    toy = write_toy()
    whole, resumed = feed_of(toy), feed_of(toy)
    list(whole.epoch(0))
    list(resumed.epoch(0, start_step=whole.num_steps - 1))
    assert (whole.statistics.row_groups, resumed.statistics.row_groups) == (6, 2)


def test_weights_come_with_their_rows(write_toy):
    toy = write_toy(weight=True)
    for batch in feed_of(toy).epoch(0):
        np.testing.assert_array_equal(batch.weight, toy.rows["train"]["w"][batch.row_id])


def test_a_table_smaller_than_its_ranks_gives_empty_parts(write_toy):
    toy = write_toy({"train": [[1]], "test": [[1]]})
    parts = [list(feed_of(toy, rank, 3).epoch(0)) for rank in range(3)]
    assert sorted(part[0].num_rows for part in parts) == [0, 0, 1]
    assert [part[0].global_rows for part in parts] == [1, 1, 1]
    assert parts[0][0].floats.shape[1] == 2


def test_a_split_without_rows_has_no_steps(write_toy):
    toy = write_toy({"train": [[5]]})
    assert list(feed_of(toy, split="test").epoch(0)) == []


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "lakering-feed"]


def test_no_thread_is_left_after_a_break_or_an_error(write_toy):
    toy = write_toy({"train": [[50]] * 12})
    feed = feed_of(toy, order=Order(seed=1, batch_size=10, window=1, lanes=5), read_ahead=0)
    with closing(feed.epoch(0)) as batches:
        next(batches)
        assert len(threads()) == 1
    assert threads() == []
    toy.file("train", 1).unlink()
    with pytest.raises(IntegrityError):
        list(feed_of(toy).epoch(0))
    assert threads() == []


def cut(path: Path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip_data(path: Path):
    """Same size, same footer, other bytes in the first pages."""
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)


def rewrite(path: Path, table: pa.Table):
    """The same row groups, of another table."""
    with pq.ParquetWriter(path, table.schema) as writer:
        for start, rows in ((0, 90), (90, 110), (200, 50)):
            writer.write_table(table.slice(start, rows))


def replace_columns(path: Path):
    table = pq.read_table(path)
    rewrite(path, table.rename_columns(["other", *table.column_names[1:]]))


def replace_rows(path: Path):
    pq.write_table(pq.read_table(path).slice(0, 200), path, row_group_size=90)


def add_nulls(path: Path):
    table = pq.read_table(path)
    label = pa.array([None, *table["y"].to_pylist()[1:]], pa.float32())
    rewrite(path, table.set_column(table.column_names.index("y"), "y", label))


def raise_ids(path: Path):
    table = pq.read_table(path)
    ids = pa.array([6] * table.num_rows, pa.int32())
    rewrite(path, table.set_column(table.column_names.index("a"), "a", ids))


def cast(name: str, *types: pa.DataType):
    """Gives a column other types, one after the other."""

    def fault(path: Path):
        table = pq.read_table(path)
        values = table[name]
        for type_ in types:
            values = values.cast(type_, safe=False)
        rewrite(path, table.set_column(table.column_names.index(name), name, values))

    return fault


TIME = (pa.int64(), pa.timestamp("us"))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (os.unlink, "row group"),
        (cut, "row group"),
        (flip_data, "row group 0 cannot be read"),
        (replace_columns, "lacks columns"),
        (replace_rows, "the manifest says"),
        (add_nulls, "y holds 1 nulls"),
        (cast("a", pa.float32()), r"row group \d: a is of type float, an example table has integers there"),
        (cast("x0", pa.string()), r"row group \d: x0 is of type string, an example table has floats there"),
        (cast("x0", *TIME), r"x0 is of type timestamp\[us\]"),
        (cast("y", pa.string()), "y is of type string, an example table has floats there"),
        (cast("y", *TIME), r"y is of type timestamp\[us\]"),
        (cast("w", pa.string()), "w is of type string, an example table has floats there"),
        (cast("row_id", pa.string()), "row_id is of type string, an example table has integers there"),
        (cast("row_id", pa.float64()), "row_id is of type double"),
        (raise_ids, r"a holds ids from 6 to 6, the manifest says \[0, 6\)"),
    ],
)
def test_a_changed_file_is_named_never_a_short_epoch(write_toy, fault, says):
    toy = write_toy(weight=True)
    path = toy.file("train", 1)
    fault(path)
    with pytest.raises(IntegrityError, match=says) as caught:
        list(feed_of(toy).epoch(0))
    assert str(path) in str(caught.value)
    assert caught.value.next_step == REBUILD


def test_files_gone_or_cut_are_seen_before_anything_is_read(write_toy):
    toy = write_toy()
    cut(toy.file("test"))
    with pytest.raises(IntegrityError, match="1 of 5 files are gone or changed"):
        validate_files(toy.lake, toy.manifest)


def test_a_folder_in_place_of_a_file_is_not_read(write_toy):
    """Petastorm unpickles what it finds in a folder."""
    toy = write_toy({"train": [[10]]})
    path = toy.file("train")
    path.unlink()
    path.mkdir()
    (path / "_common_metadata").write_bytes(b"never read")
    with pytest.raises(IntegrityError, match="row group 0"):
        list(feed_of(toy).epoch(0))


def test_more_ranks_than_lanes_are_refused(write_toy):
    with pytest.raises(SettingError, match=r"is cut into 8 lanes, and 9 ranks need one each") as caught:
        feed_of(write_toy(), rank=0, ranks=9)
    assert "set training.lanes (0: the largest divisor of the batch up to 1,024) to 9 or more" in str(caught.value)


def test_tensors_are_the_memory_of_the_batch(write_toy):
    batch = next(feed_of(write_toy(weight=True)).epoch(0))
    tensors = batch.tensors()
    batch.floats[0, 0], batch.ids[0, 0], batch.label[0], batch.weight[0] = 77, 78, 79, 80
    assert [int(tensors.floats[0, 0]), int(tensors.ids[0, 0])] == [77, 78]
    assert [int(tensors.label[0]), int(tensors.weight[0])] == [79, 80]


@pytest.mark.parametrize("fault", ["unaligned", "read-only", "of no row"])
def test_memory_that_cannot_be_shared_is_copied(fault):
    memory = np.arange(1000, dtype=np.float32)
    aligned = -memory.ctypes.data // 4 % 16
    array = memory[aligned + 1 : aligned + 101] if fault == "unaligned" else memory[aligned : aligned + 96]
    if fault == "read-only":
        array.flags.writeable = False
    if fault == "of no row":
        array = array[:0].reshape(0, 3)
    tensor = tensor_of(array)
    np.testing.assert_array_equal(tensor.numpy(), array)
    memory[:] = -1
    assert not (tensor.numpy() == -1).any()


def test_rows_of_one_batch_of_the_whole_table(write_toy):
    """A batch over many windows."""
    toy = write_toy()
    (batch,) = feed_of(toy, order=Order(seed=1, batch_size=1000, window=1, lanes=8)).epoch(0)
    assert sorted(batch.row_id) == toy.rows["train"]["row_id"].tolist()
    np.testing.assert_array_equal(batch.floats[:, 0], toy.rows["train"]["x0"][batch.row_id])


def test_empty_row_groups_are_no_trouble(write_toy):
    toy = write_toy({"train": [[0, 70, 0], [0], [50, 0]]})
    for ranks in (1, 2):
        rows = [row for rank in range(ranks) for b in feed_of(toy, rank, ranks).epoch(0) for row in b.row_id.tolist()]
        assert sorted(rows) == list(range(120))
