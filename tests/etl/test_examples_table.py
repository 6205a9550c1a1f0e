"""How examples lie on storage, and what a build and a snapshot of them hold."""

from __future__ import annotations

import random

import pyarrow.parquet as pq
import pytest

from etl.examples import plan_examples
from etl.examples.inputs import build_inputs, name_build
from etl.tables import table_version
from etl.tables.example_layout import Layout, write_rows
from etl.tables.examples import find_build, make_build, read_build
from etl.tables.snapshots import build_manifest
from lakering.errors import IntegrityError, SettingError, StageError
from lakering.manifest import read_manifest, validate_files, write_pin
from tests.etl.trips import frame, trip, write_recipe

FEATURES = [
    {"column": "fare"},
    {"column": "city", "as": "id"},
    {"aggregate": "late", "by": ["city"], "window": "6 hours", "functions": ["avg", "last"]},
    {"aggregate": "fare / 3", "name": "third", "window": "2 days", "functions": ["sum"]},
]
WEIGHTED = {"label": "late > 10", "moment": "starts - interval 1 hour", "weight": "1 + late"}


def some_trips() -> list[dict]:
    random.seed(5)
    hours = [random.randrange(24 * 4 * 60) for _ in range(1500)]
    return [
        trip(i, f"{1 + h // 1440} {h // 60 % 24:02}:{h % 60:02}:00", late=random.randrange(40), city=random.choice(["rome", "oslo", None]),
             fare=random.choice([None, random.random() * 1e6, random.random()]))
        for i, h in enumerate(hours)
    ]  # fmt: skip


def write_trips(spark, folder, trips, *, files=1):
    rows = frame(spark, folder, "trips", trips).repartition(files)
    rows.write.format("delta").mode("overwrite").save(str(folder / "lake" / "tables" / "trips"))


def make(spark, folder, *, new=False, **examples):
    """The record of a build, as the job makes it."""
    recipe = write_recipe(folder, features=FEATURES, **examples)
    plan = plan_examples(recipe)
    inputs = build_inputs(plan, {name: table_version(recipe.lake, name) for name in plan.contracts})
    build_id = name_build(inputs, lambda name: read_build(recipe.lake, recipe.name, name) is not None, new=new)
    return recipe.lake, make_build(spark, recipe.lake, plan, build_id, inputs)


def rows_by_file(lake, record):
    """(split, rows) of each file in table order."""
    manifest = build_manifest(lake, "trips", record["build"])
    paths = dict.fromkeys(zip(manifest.row_groups["split"].to_pylist(), manifest.row_groups["path"].to_pylist(), strict=True))
    return [(split, pq.ParquetFile(lake.storage.path(manifest.table, path)).read()) for split, path in paths]


@pytest.fixture(scope="module")
def built(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trips")
    write_recipe(folder)
    write_trips(spark, folder, some_trips())
    return make(spark, folder, predict=WEIGHTED, row_group_rows=100, row_groups_per_file=2)


def test_the_same_rows_in_another_order_give_the_same_table(spark, tmp_path, built):
    write_recipe(tmp_path)
    trips = some_trips()
    random.shuffle(trips)
    write_trips(spark, tmp_path, [{**t, "_source": "g", "_position": i} for i, t in enumerate(trips)], files=7)
    other = make(spark, tmp_path, predict=WEIGHTED, row_group_rows=100, row_groups_per_file=2)
    left, right = rows_by_file(*built), rows_by_file(*other)
    assert [split for split, _ in left] == [split for split, _ in right]
    assert all(a.equals(b) for (_, a), (_, b) in zip(left, right, strict=True))
    assert built[1]["statistics"] == other[1]["statistics"]


def test_columns_stand_in_a_fixed_order_without_nulls(built):
    _, rows = rows_by_file(*built)[0]
    floats = [
        "fare",
        "fare_is_null",
        "late_avg_city_6h",
        "late_avg_city_6h_is_null",
        "late_last_city_6h",
        "late_last_city_6h_is_null",
        "third_sum_2d",
    ]
    assert rows.column_names == ["row_id", "label", "weight", *floats, "city"]
    assert [str(rows.schema.field(name).type) for name in ("row_id", "label", "weight", "fare", "city")] == [
        "int64",
        "float",
        "float",
        "float",
        "int32",
    ]
    assert not any(rows[name].null_count for name in rows.column_names)


def test_files_and_row_groups_are_of_even_size(built):
    lake, record = built
    groups = build_manifest(lake, "trips", record["build"]).row_groups.to_pylist()
    sizes: dict[tuple[str, str], list[int]] = {}
    for group in groups:
        sizes.setdefault((group["split"], group["path"]), []).append(group["num_rows"])
    per_split = {split: [sum(s) for (of, _), s in sizes.items() if of == split] for split in record["num_rows"]}
    assert {split: len(files) for split, files in per_split.items()} == {
        split: -(-n // 200) for split, n in record["num_rows"].items()
    }
    assert all(max(files) < 1.5 * min(files) for files in per_split.values() if len(files) > 1)
    assert all(size <= 100 for rows in sizes.values() for size in rows)
    assert all(size >= 90 for rows in sizes.values() for size in rows[:-1])


def test_rows_stand_in_the_order_of_the_hash_not_of_time_or_key(built):
    lake, record = built
    keys = {
        r["row_id"]: r["id"] for r in pq.read_table(lake.storage.path("examples", "trips", record["build"], "keys")).to_pylist()
    }
    first = [keys[row] for row in rows_by_file(lake, record)[0][1]["row_id"].to_pylist()]
    assert len(keys) == sum(record["num_rows"].values())
    assert first != sorted(first)


def test_what_is_learnt_lies_beside_the_table_in_plain_files(built):
    lake, record = built
    folder = ("examples", "trips", record["build"], "learnt")
    learnt = lake.storage.read_json(*folder, "statistics.json")
    vocabulary = pq.read_table(lake.storage.path(*folder, "vocabulary")).to_pylist()
    assert learnt["fills"]["fare"] == pytest.approx(learnt["statistics"]["fare"]["mean"])
    assert {row["value"]: row["id"] for row in vocabulary}.keys() == {"rome", "oslo"}
    assert not lake.storage.exists(*folder[:-1], "staging")


def test_a_snapshot_names_every_row_group_and_comes_out_the_same_twice(built):
    lake, record = built
    first, again = build_manifest(lake, "trips"), build_manifest(lake, "trips", record["build"])
    assert first.id == again.id == first.write(lake)
    write_pin(lake, first, by="test")
    manifest = read_manifest(lake, "trips")
    assert manifest.num_rows == record["num_rows"]
    assert (manifest.version, manifest.label_kind, manifest.weight) == (0, "binary", "weight")
    assert manifest.statistics["fare"]["p50"] > 0
    validate_files(lake, manifest)


def test_a_build_is_named_by_its_inputs(spark, built):
    _, record = built
    assert name_build(record["inputs"], lambda _: True, new=False) == record["build"]
    assert (
        name_build(record["inputs"], {record["build"], record["build"] + "-2"}.__contains__, new=True) == record["build"] + "-3"
    )
    assert name_build({**record["inputs"], "code": "other"}, lambda _: False, new=False) != record["build"]


def test_a_regression_label_and_plain_parquet_go_the_same_way(spark, tmp_path):
    write_recipe(tmp_path)
    write_trips(spark, tmp_path, some_trips()[:200])
    predict = {"label": "late * 1.5", "kind": "regression", "moment": "starts - interval 1 hour"}
    lake, record = make(spark, tmp_path, predict=predict, format="parquet", split={"by": "hash", "of": ["id"]})
    manifest = build_manifest(lake, "trips")
    assert (manifest.version, manifest.label_kind) == (None, "regression")
    assert sum(manifest.num_rows.values()) == record["rows_read"] == 200
    assert record["statistics"]["label"]["max"] == 58.5


def test_a_snapshot_of_no_build_names_the_command(tmp_path):
    lake = write_recipe(tmp_path).lake
    with pytest.raises(StageError, match="no complete build of recipe 'trips'") as caught:
        build_manifest(lake, "trips")
    assert "etl/jobs/build_examples.py" in str(caught.value.next_step)
    with pytest.raises(StageError, match="no complete build 'abc'"):
        find_build(lake, "trips", "abc")
    with pytest.raises(SettingError):
        find_build(lake, "trips", "../abc")


def test_a_build_whose_file_is_gone_is_refused(spark, tmp_path):
    write_recipe(tmp_path)
    write_trips(spark, tmp_path, some_trips()[:50])
    lake, record = make(spark, tmp_path, split={"by": "hash", "of": ["id"]}, format="parquet")
    next((tmp_path / "lake" / record["table"]).glob("split=train/*.parquet")).unlink()
    with pytest.raises(IntegrityError, match="'train': 0"):
        build_manifest(lake, "trips")


def test_the_session_is_as_before_when_a_write_fails(spark, built, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    spark.conf.set("parquet.block.size", "12345678")
    try:
        rows = spark.sql("select 'train' split, 1L row_id, 0f label")
        with pytest.raises(Exception, match="PATH_ALREADY_EXISTS"):
            write_rows(str(taken), rows, {"train": 1}, Layout("parquet", 10, 1, 0))
        assert spark.conf.get("parquet.block.size") == "12345678"
        assert spark.conf.get("parquet.enable.dictionary", "unset") == "unset"
    finally:
        spark.conf.unset("parquet.block.size")
