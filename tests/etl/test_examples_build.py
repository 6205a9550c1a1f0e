"""What is learnt from the train split, and how rows are encoded with it."""

from __future__ import annotations

import pytest
from pyspark.sql import functions as F

from etl.transforms.row_ids import with_row_ids
from lakering.errors import InputError, SettingError
from lakering.manifest import Column
from tests.etl.trips import build, trip

TRAIN, VALIDATION, TEST = "2 12:00:00", "3 12:00:00", "4 12:00:00"


def test_nulls_are_filled_with_the_mean_of_train_alone(spark, tmp_path):
    trips = [
        trip(1, TRAIN, fare=1.0),
        trip(2, TRAIN, fare=2.0),
        trip(3, TRAIN, fare=None),
        trip(4, TEST, fare=1000.0),
        trip(5, TEST, fare=None),
    ]
    rows, facts = build(spark, tmp_path, trips)
    assert [rows[i]["fare"] for i in (1, 2, 3, 4, 5)] == [1.0, 2.0, 1.5, 1000.0, 1.5]
    assert [rows[i]["fare_is_null"] for i in (1, 2, 3, 4, 5)] == [0.0, 0.0, 1.0, 0.0, 1.0]
    figures = facts["statistics"]["fare"]
    assert (figures["count"], figures["mean"], figures["min"], figures["max"], figures["p50"]) == (3, 1.5, 1.0, 2.0, 1.5)
    assert figures["std"] == pytest.approx((1 / 6) ** 0.5)
    assert facts["by_split"]["test"]["fare"]["max"] == 1000.0
    assert facts["statistics"]["fare_is_null"]["mean"] == pytest.approx(1 / 3)


def test_a_null_that_train_never_showed_has_no_indicator(spark, tmp_path):
    rows, _ = build(spark, tmp_path, [trip(1, TRAIN, fare=4.0), trip(2, TEST, fare=None)])
    assert rows[2]["fare"] == 4.0
    assert "fare_is_null" not in rows[2]


def test_what_is_not_finite_counts_as_null_and_is_told(spark, tmp_path):
    features = [{"expression": "sqrt(fare)", "name": "root"}]
    rows, facts = build(spark, tmp_path, [trip(1, TRAIN, fare=4.0), trip(2, TRAIN, fare=-4.0)], features=features)
    assert (rows[2]["root"], rows[2]["root_is_null"]) == (2.0, 1.0)
    assert facts["not_finite"] == {"root": 1}


def test_ids_are_padding_null_buckets_then_the_vocabulary_of_train(spark, tmp_path):
    cities = ["rome"] * 3 + ["oslo"] * 3 + ["bern"] * 4 + ["rare", None]
    trips = [trip(i, TRAIN, city=city) for i, city in enumerate(cities)]
    trips += [trip(90, TEST, city="bern"), *[trip(i, TEST, city="only in test") for i in (91, 92, 93)]]
    features = [{"column": "city", "as": "id", "ids": {"min_count": 2, "buckets": 1}}]
    rows, facts = build(spark, tmp_path, trips, features=features)
    # Most frequent first, then by value: bern 3, oslo 4, rome 5. Too rare, or unknown to train: bucket 2. Null: 1.
    assert [rows[i]["city"] for i in (6, 3, 0, 10, 11, 90, 91)] == [3, 4, 5, 2, 1, 3, 2]
    assert facts["columns"] == [Column("city", "id", 6)]


def test_a_vocabulary_has_at_most_its_greatest_size(spark, tmp_path):
    trips = [trip(i, TRAIN, city="abcab"[i]) for i in range(5)]
    features = [{"column": "city", "as": "id", "ids": {"min_count": 1, "buckets": 5, "max_size": 2}}]
    rows, facts = build(spark, tmp_path, trips, features=features)
    assert [rows[i]["city"] for i in (0, 1)] == [7, 8]
    assert 2 <= rows[2]["city"] < 7
    assert facts["columns"] == [Column("city", "id", 9)]


def test_a_look_up_takes_the_row_of_its_key(spark, tmp_path):
    lookup = {
        "lookup": "cities",
        "on": {"city": "name"},
        "prefix": "city",
        "columns": ["size", {"column": "state", "as": "id"}],
        "ids": {"min_count": 1},
    }
    trips = [trip(1, TRAIN), trip(2, TRAIN, city="nowhere"), trip(3, TRAIN, city=None)]
    rows, _ = build(spark, tmp_path, trips, cities=[{"name": "rome", "size": 7, "state": "it"}], features=[lookup])
    assert [(rows[i]["city_size"], rows[i]["city_size_is_null"], rows[i]["city_state"]) for i in (1, 2, 3)] == [
        (7, 0, 3),
        (7, 1, 1),
        (7, 1, 1),
    ]


def test_the_split_by_time_is_by_the_moment(spark, tmp_path):
    # The moment is an hour before the start.
    trips = [trip(1, "3 00:59:59"), trip(2, "3 01:00:00"), trip(3, "4 00:59:59"), trip(4, "4 01:00:00")]
    rows, _ = build(spark, tmp_path, trips)
    assert [rows[i]["split"] for i in (1, 2, 3, 4)] == ["train", "validation", "validation", "test"]


def test_the_split_by_hash_keeps_what_belongs_together(spark, tmp_path):
    trips = [trip(i, TRAIN, city=f"city {i % 200}") for i in range(400)]
    rows, _ = build(spark, tmp_path, trips, split={"by": "hash", "of": ["city"], "validation": 0.2, "test": 0.3})
    assert all(rows[i]["split"] == rows[i + 200]["split"] for i in range(200))
    shares = {split: sum(row["split"] == split for row in rows.values()) / 400 for split in ("train", "validation", "test")}
    assert shares == {
        "train": pytest.approx(0.5, abs=0.1),
        "validation": pytest.approx(0.2, abs=0.1),
        "test": pytest.approx(0.3, abs=0.1),
    }


def test_a_regression_label_and_a_weight_are_numbers(spark, tmp_path):
    predict = {"label": "late / 4", "kind": "regression", "moment": "starts - interval 1 hour", "weight": "fare"}
    trips = [trip(1, TRAIN, late=3), trip(2, TRAIN, late=None), trip(3, TRAIN, fare=-1.0)]
    rows, facts = build(spark, tmp_path, trips, predict=predict, features=[{"column": "city", "as": "id"}])
    assert (rows[1]["label"], rows[1]["weight"]) == (0.75, 1.0)
    assert facts["dropped"] == {"no_label": 1, "no_weight": 1}
    assert facts["rows_read"] == 3


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"predict": {"label": "late", "moment": "starts"}}, "a binary label is a condition"),
        ({"predict": {"label": "late > 1", "moment": "city"}}, "expected a timestamp"),
        ({"features": [{"column": "city"}]}, "'city' is string, not a number; take it as an id"),
        ({"features": [{"column": "fare", "as": "id"}]}, "a fractional number is no id"),
        ({"features": [{"expression": "upper(fare, 2)", "name": "x"}]}, "WRONG_NUM_ARGS"),
    ],
)
def test_a_wrong_type_is_an_error_with_its_line(spark, tmp_path, examples, message):
    with pytest.raises(SettingError, match=r"recipe.yaml:\d+: ") as caught:
        build(spark, tmp_path, [trip(1, TRAIN)], **examples)
    assert message in str(caught.value)


def test_nothing_to_train_on_is_an_error(spark, tmp_path):
    with pytest.raises(InputError, match="train split is empty"):
        build(spark, tmp_path, [trip(1, TEST)])
    with pytest.raises(InputError, match=r"no row of table 'trips' became an example \(1 read, left out: \{'no_label': 1\}\)"):
        build(spark, tmp_path, [trip(1, TRAIN, late=None)])


def test_colliding_row_ids_are_hashed_again_in_key_order(spark):
    def weak(columns):
        counter = columns[1] if len(columns) > 1 else F.lit(0)
        return ((columns[0] + counter) % 3).cast("bigint") + 10 * counter

    keys = [5, 2, 8, 1, 11]
    expected = {1: 1, 2: 2, 5: 10 + (5 + 1) % 3, 8: 20 + (8 + 2) % 3, 11: 30 + (11 + 3) % 3}
    for order in (keys, keys[::-1]):
        rows = spark.createDataFrame([(k,) for k in order], "k int").repartition(3)
        assert {r["k"]: r["row_id"] for r in with_row_ids(rows, ["k"], weak).collect()} == expected


def test_a_label_of_several_classes_is_its_number_and_other_values_are_left_out(spark, tmp_path):
    """Whole numbers are named by their digits; the numbers follow the order of the list."""
    predict = {"label": "late", "kind": "multiclass", "classes": [20, 5, "-1"], "moment": "starts - interval 1 hour"}
    late = [5, 20, 20, 5, -1, 7, None, 20]
    rows, facts = build(spark, tmp_path, [trip(i, TRAIN if i < 7 else TEST, late=value) for i, value in enumerate(late)],
                        predict=predict)  # fmt: skip
    assert {i: row["label"] for i, row in rows.items()} == {0: 1.0, 1: 0.0, 2: 0.0, 3: 1.0, 4: 2.0, 7: 0.0}
    assert facts["dropped"] == {"no_label": 1, "unknown_class": 1}
    shares = facts["statistics"]["label"]
    assert [shares[f"share_{k}"] for k in range(3)] == [0.4, 0.4, 0.2]
    with pytest.raises(InputError, match=r"the train split has no row of 1 of 4 classes: '99'"):
        build(spark, tmp_path, [trip(i, TRAIN, late=value) for i, value in enumerate(late)],
              predict={**predict, "classes": [20, 5, -1, 99]})  # fmt: skip
    with pytest.raises(SettingError, match=r"a multiclass label is a text or a whole number, this one is double"):
        build(spark, tmp_path, [trip(1, TRAIN)], predict={**predict, "label": "fare"})
