"""What a recipe's features are told before any Spark work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from etl.examples import plan_examples
from lakering.errors import SettingError
from recipes import read_recipe
from tests.etl.trips import write_recipe


def refused(tmp_path, **examples) -> str:
    with pytest.raises(SettingError) as caught:
        plan_examples(write_recipe(tmp_path, **examples))
    return str(caught.value)


@pytest.mark.parametrize(
    "feature",
    [
        {"column": "late"},
        {"column": "twice_late"},
        {"expression": "late + 1", "name": "x"},
        {"aggregate": "fare", "by": ["late"], "window": "1 hour", "functions": ["avg"]},
        {"lookup": "cities", "on": {"late": "size", "city": "name"}, "columns": ["state"]},
    ],
)
def test_an_outcome_is_refused_with_its_name_and_place(tmp_path, feature):
    message = refused(tmp_path, features=[{"column": "fare"}, feature])
    assert re.search(r"recipe\.yaml:\d+: examples\.features\.1", message)
    assert "late' of table 'trips' is an outcome" in message


def test_a_refused_outcome_is_told_how_it_can_be_used(tmp_path):
    assert "{aggregate: late, by: [...], window: 3 hours, functions: [avg]}" in refused(tmp_path, features=[{"column": "late"}])


def test_the_moment_reads_no_outcome(tmp_path):
    message = refused(tmp_path, predict={"label": "late > 10", "moment": "ends"})
    assert "examples.predict.moment" in message
    assert "'ends'" in message


def test_an_outcome_without_known_at_is_of_no_use(tmp_path):
    feature = {"aggregate": "tip", "window": "1 hour", "functions": ["avg"]}
    assert "'tip' of table 'trips' is an outcome without knownAt" in refused(tmp_path, features=[feature])


def test_an_unknown_column_is_told_the_nearest(tmp_path):
    assert "no column 'fair'; did you mean 'fare'?" in refused(tmp_path, features=[{"column": "fair"}])


def test_an_unknown_table_is_told_the_nearest(tmp_path):
    feature = {"lookup": "citys", "on": {"city": "name"}, "columns": ["size"]}
    assert "table 'citys' is not there; did you mean 'cities'?" in refused(tmp_path, features=[feature])


def test_each_kind_of_join_has_its_kind_of_table(tmp_path):
    lookup = {"lookup": "weather", "on": {"city": "place"}, "columns": ["rain"]}
    asof = {"asof": "cities", "on": {"city": "name"}, "columns": ["size"], "at_most": "1 hour"}
    assert "join it with 'asof'" in refused(tmp_path, features=[lookup])
    assert "join it with 'lookup'" in refused(tmp_path, features=[asof])


def test_a_lookup_needs_the_whole_key(tmp_path):
    feature = {"lookup": "cities", "on": {"city": "state"}, "columns": ["size"]}
    assert "whole key of table 'cities'; name is missing" in refused(tmp_path, features=[feature])


def test_keys_of_two_types_are_not_joined(tmp_path):
    feature = {"lookup": "cities", "on": {"id": "name"}, "columns": ["size"]}
    assert "trips.id is int and cities.name is string" in refused(tmp_path, features=[feature])


@pytest.mark.parametrize("name", ["fare", "FARE"])
def test_two_features_of_one_name_are_refused(tmp_path, name):
    features = [{"column": "fare"}, {"expression": "fare * 2", "name": name}]
    assert f"two features are called '{name}'" in refused(tmp_path, features=features)


def test_names_of_the_example_table_are_kept(tmp_path):
    assert "'label' is taken" in refused(tmp_path, features=[{"expression": "fare", "name": "label"}])


def test_windows_over_one_value_are_figured_together(tmp_path):
    features = [
        {"aggregate": "late", "by": ["city"], "window": "1 hour", "functions": ["avg"]},
        {"aggregate": "late", "by": ["city"], "window": "2 days", "functions": ["count", "last"]},
    ]
    (aggregate,) = plan_examples(write_recipe(tmp_path, features=features)).aggregates
    assert aggregate.known == ("ends",)
    assert aggregate.windows == {
        3600: {"avg": "late_avg_city_1h"},
        172800: {"count": "late_count_city_2d", "last": "late_last_city_2d"},
    }


def test_a_value_known_in_advance_is_known_from_its_event_time(tmp_path):
    feature = {"aggregate": "fare", "by": ["city"], "window": "1 hour", "functions": ["avg"]}
    (aggregate,) = plan_examples(write_recipe(tmp_path, features=[feature])).aggregates
    assert aggregate.known == ("starts",)


FLIGHTS = Path(__file__).resolve().parents[2] / "recipes" / "flights.yaml"


@pytest.mark.parametrize("column", ["arr_delay", "dep_time"])
def test_the_flights_outcomes_are_refused_as_features(column):
    recipe = read_recipe(FLIGHTS, overrides=[f"examples.features.0.column={column}"])
    with pytest.raises(
        SettingError, match=rf"flights\.yaml:\d+: examples\.features\.0: column '{column}' of table 'flights' is an outcome"
    ):
        plan_examples(recipe)


@pytest.mark.parametrize(
    ("setting", "place"),
    [("examples.predict.label", "label"), ("examples.predict.where", "where"), ("examples.predict.moment", "moment"),
     ("examples.features.6.expression", r"features\.6")],
)  # fmt: skip
@pytest.mark.parametrize("text", ["reflect('java.lang.System', 'exit', 1)", "(select max(year) from t)"])
def test_an_expression_that_reaches_beyond_the_row_is_refused_with_its_line(setting, place, text):
    recipe = read_recipe(FLIGHTS, overrides=[f'{setting}="{text}"'])
    with pytest.raises(SettingError, match=rf"flights\.yaml:\d+: examples\..*{place}.*is not allowed"):
        plan_examples(recipe)
