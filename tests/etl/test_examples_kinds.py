"""Examples of arrays, texts and images: what becomes of a row's cells, and how they come out of the files again."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from etl.examples import plan_examples
from etl.tables import example_layout
from etl.tables.snapshots import build_manifest
from lakering.errors import InputError, IntegrityError, SettingError
from lakering.manifest import Column, read_manifest
from tests.etl.shots import build, picture, shot, write_build, write_recipe
from tests.etl.trips import at
from training.feed import Feed, Order

# Petastorm works through pyarrow's old dataset classes.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:petastorm.*")
TRAIN, TEST = "2 12:00:00", "4 12:00:00"
GRID = {"column": "grid", "as": "array"}
IMAGE = {"lookup": "files", "on": {"file": "path"}, "columns": [{"column": "image", "as": "image"}]}


def text(name: str, length: int, expression: str = "note", **ids: int) -> dict:
    return {"expression": expression, "name": name, "as": "text", "length": length, "ids": {"min_count": 1, **ids}}


def floats(cell: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(cell) // 4}f", cell))


def ints(cell: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(cell) // 4}i", cell))


@pytest.fixture(scope="module")
def texts(spark, tmp_path_factory):
    """Example rows, and what was built, of texts taken in several ways."""
    shots = [
        shot(1, TRAIN, note="Left, left; RIGHT!", file="a"),
        shot(2, TRAIN, note="été d'été 42", file="left"),
        shot(3, TEST, note="left only-in-test right", file="b"),
        shot(4, TEST, note=None),
        shot(5, TEST, note=" -- "),
    ]
    features = [
        {"column": "note", "as": "text", "length": 4, "ids": {"min_count": 1}},
        text("short", 2),
        text("hashed", 3, buckets=1000),
        text("both", 2, "concat(file, ' ', file)"),
        {"column": "file", "as": "id", "ids": {"min_count": 1}},
    ]
    return build(spark, tmp_path_factory.mktemp("texts"), features, shots=shots)


def test_a_vocabulary_of_words_is_learnt_on_train_alone(texts):
    rows, built = texts
    # Most frequent first, then by value: left 3, été 4, 42 5, d 6, right 7. Unknown to train: bucket 2. Null: a single 1.
    assert {i: ints(row["note"]) for i, row in rows.items()} == {
        1: [3, 3, 7, 0],
        2: [4, 6, 4, 5],
        3: [3, 2, 2, 2],
        4: [1, 0, 0, 0],
        5: [0, 0, 0, 0],
    }
    assert built.facts["nulls"]["note"] == {"train": 0, "test": 1}


def test_what_is_cut_off_is_counted_and_not_learnt(texts):
    rows, built = texts
    # Of the first two words left stands twice, d and été once.
    assert [ints(rows[i]["short"]) for i in (1, 2, 3, 4)] == [[3, 3], [5, 4], [3, 2], [1, 0]]
    assert built.facts["vocabulary_sizes"]["short"] == 3
    assert built.facts["texts"]["short"]["cut"] == {"train": 2, "test": 1}
    assert built.facts["texts"]["note"]["cut"] == {"train": 0, "test": 1}
    assert (built.facts["texts"]["note"]["words"]["mean"], built.facts["texts"]["note"]["words"]["max"]) == (3.5, 4.0)


def test_unknown_words_share_buckets_by_crc32(texts):
    rows, _ = texts
    assert ints(rows[3]["hashed"])[1:] == [2 + zlib.crc32(word) % 1000 for word in (b"only", b"in")]
    assert ints(rows[1]["hashed"])[0] == 1002


def test_each_text_and_id_has_a_vocabulary_of_its_own(texts):
    rows, built = texts
    assert [rows[i]["file"] for i in (1, 2, 3, 4)] == [3, 4, 2, 1]
    assert [ints(rows[i]["both"]) for i in (1, 2, 3, 4)] == [[3, 3], [4, 4], [2, 2], [1, 0]]
    assert built.facts["columns"] == [
        Column("file", "id", 5),
        Column("note", "tokens", 8, (4,)),
        Column("short", "tokens", 6, (2,)),
        Column("hashed", "tokens", 1006, (3,)),
        Column("both", "tokens", 5, (2,)),
    ]


def test_arrays_keep_their_values_and_tell_what_is_not_there(spark, tmp_path):
    shots = [
        shot(1, TRAIN, grid=[0.0, 1.5, -2.0, 3.0, 4.0, 5.5]),
        shot(2, TRAIN, grid=None),
        shot(3, TEST, grid=[1e300, None, float("nan"), -1.0, 0.1, float("-inf")]),
        shot(4, TEST, grid=None),
    ]
    rows, built = build(spark, tmp_path, [GRID], shots=shots)
    assert floats(rows[1]["grid"]) == [0.0, 1.5, -2.0, 3.0, 4.0, 5.5]
    assert floats(rows[3]["grid"]) == [0.0, 0.0, 0.0, -1.0, np.float32(0.1), 0.0]
    assert floats(rows[2]["grid"]) == floats(rows[4]["grid"]) == [0.0] * 6
    assert [rows[i]["grid_is_null"] for i in (1, 2, 3, 4)] == [0.0, 1.0, 0.0, 1.0]
    assert built.facts["columns"] == [Column("grid_is_null", "float"), Column("grid", "array", shape=(2, 3))]
    assert built.facts["not_finite"] == {"grid": 4}
    assert built.facts["nulls"] == {"grid": {"train": 1, "test": 1}}
    figures = built.facts["statistics"]["grid"]
    assert (figures["count"], figures["mean"], figures["min"], figures["max"]) == (6, 2.0, -2.0, 5.5)
    assert figures["std"] == pytest.approx(2.5)
    assert built.facts["statistics"]["grid_is_null"]["mean"] == 0.5


def test_an_array_of_another_size_than_its_contract_tells_stops_the_build(spark, tmp_path):
    with pytest.raises(IntegrityError, match=r"feature 'grid': 1 rows hold arrays of another size than the shape \[2, 3\]"):
        build(spark, tmp_path, [GRID], shots=[shot(1, TRAIN, grid=[1.0] * 6), shot(2, TEST, grid=[1.0] * 5)])


def test_images_keep_their_bytes_and_a_row_without_one_is_told(spark, tmp_path):
    red, blue = picture((255, 0, 0)), picture((0, 0, 255), "JPEG")
    assert (red[:4], blue[:3]) == (b"\x89PNG", b"\xff\xd8\xff")
    files: list[dict] = [
        {"path": "red", "image": red},
        {"path": "blue", "image": blue},
        {"path": "none"},
        {"path": "empty", "image": b""},
    ]
    names = ["red", "blue", "none", "empty", "not there", None]
    shots = [shot(i, TRAIN, file=name) for i, name in enumerate(names)] + [shot(9, TEST, file="red")]
    rows, built = build(spark, tmp_path, [IMAGE], shots=shots, files=files)
    assert {i: row["image"] for i, row in rows.items()} == {0: red, 1: blue, 9: red}
    assert (built.facts["rows_read"], built.facts["dropped"], built.num_rows) == (7, {"no_image": 4}, {"train": 2, "test": 1})
    assert built.facts["images"]["image"] == {
        "mean_bytes": pytest.approx((2 * len(red) + len(blue)) / 3),
        "max_bytes": max(len(red), len(blue)),
    }


def test_when_no_row_of_train_has_an_image_it_is_told(spark, tmp_path):
    with pytest.raises(InputError, match=r"the train split is empty \(rows: {}, left out: {'no_image': 1}\)"):
        build(spark, tmp_path, [IMAGE], shots=[shot(1, TRAIN, file="x")], files=[])


def test_the_newest_image_of_the_moment_is_taken_as_it_was(spark, tmp_path):
    feature = {"asof": "frames", "on": {"file": "camera"}, "at_most": "1 hour", "columns": [{"column": "frame", "as": "image"}]}
    frames = [{"camera": "a", "taken": at(f"2 11:{minute}:00"), "frame": bytes([minute])} for minute in (10, 50)]
    frames.append({"camera": "a", "taken": at("2 12:00:01"), "frame": b"too late"})
    shots = [shot(1, "2 12:00:00", file="a"), shot(2, "2 11:30:00", file="a"), shot(3, "2 11:00:00", file="a")]
    rows, built = build(spark, tmp_path, [feature], shots=shots, frames=frames)
    assert {i: row["frame"] for i, row in rows.items()} == {1: bytes([50]), 2: bytes([10])}
    assert built.facts["dropped"] == {"no_image": 1}


def test_all_kinds_come_through_files_manifest_and_feed(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(example_layout, "MAX_ROW_GROUP_BYTES", 20 * 400)
    images = {name: picture((i * 20, 0, 0)) for i, name in enumerate("abcdefgh")}
    tiles = {name: [i, 1, 2, 3, 4, 5] for i, name in enumerate(images)}
    files = [{"path": name, "image": image, "tiles": tiles[name]} for name, image in images.items()]
    shots = [shot(i, TRAIN, file="abcdefgh"[i % 8], note="n " * (i % 3), grid=[float(i)] * 6) for i in range(200)]
    lookup = {**IMAGE, "columns": [{"column": "image", "as": "image"}, {"column": "tiles", "as": "array"}]}
    lake, record = write_build(spark, tmp_path, [GRID, text("note", 3), lookup], shots=shots, files=files)
    manifest = build_manifest(lake, "shots")
    manifest.write(lake)
    assert read_manifest(lake, "shots") == manifest
    assert [(c.name, c.kind, c.shape) for c in manifest.columns] == [
        ("grid", "array", (2, 3)),
        ("tiles", "array", (2, 3)),
        ("note", "tokens", (3,)),
        ("image", "image", None),
    ]
    assert 5 <= record["row_groups"] <= 20, "row groups of about twenty rows, by the images' own size"
    keys = {row["row_id"]: row["id"] for row in pq.read_table(lake.storage.path(*lake.build("shots", "b1"), "keys")).to_pylist()}
    order = Order(seed=1, batch_size=16, window=2, lanes=4)
    seen = []
    for rank in range(2):
        for batch in Feed(lake=lake, manifest=manifest, split="train", order=order, rank=rank, ranks=2).epoch(0):
            ids = [keys[row_id] for row_id in batch.row_id]
            seen += ids
            np.testing.assert_array_equal(
                batch.arrays["grid"], np.array(ids, np.float32)[:, None, None] * np.ones((2, 3), np.float32)
            )
            assert batch.arrays["tiles"].reshape(-1, 6).tolist() == [tiles["abcdefgh"[i % 8]] for i in ids]
            assert batch.tokens["note"].tolist() == [[3] * (i % 3) + [0] * (3 - i % 3) for i in ids]
            assert list(batch.images["image"]) == [images["abcdefgh"[i % 8]] for i in ids]
    assert sorted(seen) == list(range(200))


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        ({"column": "grid"}, r"'grid' is array<double>: take it as it is \(as: array\)"),
        ({"column": "grid", "as": "id"}, r"'grid' is array<double>: take it as it is \(as: array\)"),
        ({"column": "note", "as": "array"}, r"'note' is string: an array is a column of type array, with a shape"),
        ({"column": "note", "as": "image"}, r"'note' is string: an image is a column of bytes \(physicalType: binary\)"),
        ({"column": "id", "as": "text"}, r"'id' is int: a text is a column of strings"),
        ({**IMAGE, "columns": ["image"]}, r"'image' is binary: take it as it is \(as: image\)"),
        ({"column": "verdict", "as": "text"}, r"column 'verdict' of table 'shots' is an outcome"),
        ({"column": "note", "as": "text", "length": 0}, r"length: Input should be greater than or equal to 1"),
    ],
)
def test_a_feature_of_the_wrong_kind_is_named_with_its_line(tmp_path, feature, says):
    with pytest.raises(SettingError, match=says) as caught:
        plan_examples(write_recipe(tmp_path, [feature]))
    assert "recipe.yaml:" in str(caught.value)


def test_an_expression_that_gives_an_array_is_no_number(spark, tmp_path):
    with pytest.raises(SettingError, match=r"'g' is array<double>, neither number, id nor text"):
        build(spark, tmp_path, [{"expression": "grid", "name": "g", "as": "id"}], shots=[shot(1, TRAIN, grid=[1.0] * 6)])
