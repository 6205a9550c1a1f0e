"""The feed, the models and the baselines over tables that hold arrays, tokens and images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakering.errors import IntegrityError, SettingError
from lakering.manifest import Column
from recipes.training import Evaluation
from training.baselines import base_rate_metrics, tree_metrics
from training.feed import Feed, Order
from training.models import ModelColumns, build_model

ORDER = Order(seed=9, batch_size=64, window=2, lanes=8)
KINDS = (Column("grid", "array", shape=(2, 3)), Column("words", "tokens", 9, (4,)), Column("photo", "image"))


def cells_of(row_id: int) -> dict[str, bytes]:
    """What stands in the row of an id: little-endian, as on storage."""
    grid = np.arange(row_id, row_id + 6, dtype="<f4")
    words = np.array([row_id % 9, 1, 0, 0], "<i4")
    return {"grid": grid.tobytes(), "words": words.tobytes(), "photo": b"\x89PNG" + bytes(row_id % 50)}


@pytest.fixture
def toy(write_toy):
    """A toy with a column of each kind in every file."""
    made = write_toy()
    sizes = {}
    for file in made.file("train").parent.glob("*.parquet"):
        rows = pq.read_table(file)
        for column in KINDS:
            cells = [cells_of(row_id)[column.name] for row_id in rows["row_id"].to_pylist()]
            rows = rows.append_column(column.name, pa.array(cells, pa.binary()))
        sizes[file.name] = rewrite(file, rows)
    groups = made.manifest.row_groups.to_pylist()
    groups = [{**group, "file_bytes": sizes[group["path"]]} for group in groups]
    table = pa.Table.from_pylist(groups, schema=made.manifest.row_groups.schema)
    return replace(made, manifest=replace(made.manifest, columns=(*made.manifest.columns, *KINDS), row_groups=table))


def rewrite(file, rows) -> int:
    """Writes rows into the row groups that the file has; returns its size."""
    counts = [
        group.num_rows for group in map(pq.ParquetFile(file).metadata.row_group, range(pq.read_metadata(file).num_row_groups))
    ]
    with pq.ParquetWriter(file, rows.schema) as writer:
        for start, count in zip(np.cumsum([0, *counts]).tolist(), counts, strict=False):
            writer.write_table(rows.slice(start, count))
    return file.stat().st_size


def batches_of(toy, rank=0, ranks=1):
    return list(Feed(lake=toy.lake, manifest=toy.manifest, split="train", order=ORDER, rank=rank, ranks=ranks).epoch(0))


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_row_brings_its_own_cells_on_any_number_of_ranks(toy, ranks):
    seen = []
    for rank in range(ranks):
        for batch in batches_of(toy, rank, ranks):
            seen += batch.row_id.tolist()
            assert (batch.arrays["grid"].dtype, batch.arrays["grid"].shape) == (np.float32, (batch.num_rows, 2, 3))
            assert (batch.tokens["words"].dtype, batch.tokens["words"].shape) == (np.int32, (batch.num_rows, 4))
            for i, row_id in enumerate(batch.row_id.tolist()):
                assert batch.arrays["grid"][i].ravel().tolist() == list(range(row_id, row_id + 6))
                assert batch.tokens["words"][i].tolist() == [row_id % 9, 1, 0, 0]
                assert batch.images["photo"][i] == b"\x89PNG" + bytes(row_id % 50)
    assert sorted(seen) == toy.rows["train"]["row_id"].tolist()


@pytest.mark.parametrize(
    ("column", "cell", "says"),
    [
        ("grid", b"\0" * 20, r"grid holds cells of 20 to 24 bytes, the manifest's shape \[2, 3\] takes 24"),
        ("grid", None, "grid holds 1 nulls"),
        ("photo", None, "photo holds 1 nulls"),
        ("words", np.full(4, 9, "<i4").tobytes(), r"words holds ids from 0 to 9, the manifest says \[0, 9\)"),
    ],
)
def test_a_cell_that_the_manifest_does_not_tell_is_named(toy, column, cell, says):
    file = toy.file("train", 1)
    rows = pq.read_table(file)
    cells = [cell, *rows[column].to_pylist()[1:]]
    rewrite(file, rows.set_column(rows.column_names.index(column), column, pa.array(cells, pa.binary())))
    with pytest.raises(IntegrityError, match=says) as caught:
        batches_of(toy)
    assert f"{file}, row group 0" in str(caught.value)


def test_a_column_of_lists_is_named(toy):
    file = toy.file("train", 1)
    rows = pq.read_table(file)
    lists = pa.array([[1.0]] * rows.num_rows, pa.list_(pa.float32()))
    rewrite(file, rows.set_column(rows.column_names.index("grid"), "grid", lists))
    with pytest.raises(IntegrityError, match=r"grid is of type list<element: float>, an example table has binary there"):
        batches_of(toy)


def test_a_model_names_the_columns_that_it_cannot_take(toy):
    columns = ModelColumns.of(toy.manifest)
    assert ModelColumns.from_json(json.loads(json.dumps(columns.to_json()))) == columns
    with pytest.raises(
        SettingError, match=r"takes columns of the kinds float, id, and cannot take grid \(array\), words \(tokens\)"
    ):
        build_model({"name": "wide_and_deep"}, columns, seed=1)


def test_baselines_are_made_of_floats_and_ids_and_say_so(toy):
    metrics, facts = tree_metrics(toy.lake, toy.manifest, Evaluation(split="test"), seed=1)
    assert facts["left_out"] == ["grid", "words", "photo"]
    assert 0.5 < metrics.figures()["auc"] < 1
    assert base_rate_metrics(toy.lake, toy.manifest, "test").figures()["auc"] == 0.5
