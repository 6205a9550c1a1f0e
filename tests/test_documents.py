"""Wrong recipes and contracts: the error names file, line, what was expected, and the nearest valid name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakering.errors import InputError, SettingError
from recipes import read_recipe
from schemas import read_contract

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """name: trips
tables:
  trips:
    contract: trips.yaml
    sources: [{files: a.csv, format: csv}]
examples:
  from: trips
  predict: {label: fare, kind: regression, moment: at}
  features:
    - {column: zone, as: id}
    - {aggregate: fare, by: [zone], window: 3 hours, functions: [avg]}
  split: {by: time, train: "< 2024-01-01", validation: "< 2024-02-01", test: rest}
model: {name: wide_and_deep}
training: {epochs: 3}
"""
CONTRACT = """apiVersion: v3.1.0
kind: DataContract
id: trips
version: 1.0.0
status: active
schema:
  - name: trips
    customProperties:
      - {property: eventTime, value: at}
    properties:
      - {name: id, logicalType: integer, primaryKey: true}
      - {name: at, logicalType: timestamp, required: true}
      - name: fare
        logicalType: number
        logicalTypeOptions: {minimum: 0}
        customProperties:
          - {property: availableAt, value: outcome}
          - {property: knownAt, value: at}
      - {name: late, logicalType: boolean, customProperties: [{property: derived, value: "fare > 10"}]}
"""


def read(tmp_path, reader, text):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return reader(path)


def test_the_texts_that_the_cases_below_break_are_right(tmp_path):
    assert read(tmp_path, read_recipe, RECIPE).settings.training.epochs == 3
    assert read(tmp_path, read_contract, CONTRACT).is_outcome("late")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 3", "epoch: 3", r"file.yaml:14: training.epoch: unknown key 'epoch'; did you mean 'epochs'\?"),
        ("epochs: 3", "epochs: three", r"file.yaml:14: training.epochs: .*valid integer.*got 'three'"),
        ("column: zone", "colum: zone", r"file.yaml:10: .*exactly one of the keys column, expression, asof, lookup, aggregate"),
        ("as: id", "like: id", r"file.yaml:10: .*unknown key 'like'.*known: as, column, ids"),
        ("3 hours", "3 hrs", r"file.yaml:11: .*expected a duration such as '3 hours'.*got '3 hrs'"),
        ("[avg]", "[median]", r"file.yaml:11: .*'avg', 'count', 'sum' or 'last', got 'median'"),
        ("name: trips", "name: ../trips", r"file.yaml:1: .*name '../trips' is not a name"),
        ("name: trips", 'name: "tri\'ps"', r"file.yaml:1: .*is not a name"),
        ("format: csv", "format: cvs", r"file.yaml:5: .*'parquet' or 'images', got 'cvs'"),
        ("< 2024-02-01", "< 2023-02-01", r"file.yaml:12: .*must end before validation"),
        ("    contract: trips.yaml\n", "", r"file.yaml:3: tables.trips: key 'contract' is missing"),
        ("name: trips", "name: &x trips", r"file.yaml:1: .*anchors, aliases and tags"),
        ("name: trips", "name: !!python/object:os.system trips", r"file.yaml:1: .*anchors, aliases and tags"),
        ("epochs: 3", "epochs: 3, epochs: 4", r"file.yaml:14: key 'epochs' stands here twice"),
        ("a.csv", "'${NOT_SET_ANYWHERE}/a.csv'", r"file.yaml:5: \$\{NOT_SET_ANYWHERE\} is not set"),
        ("{epochs: 3}", "{epochs: 3", r"file.yaml:1[45]: not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_named_with_its_line(tmp_path, old, new, message):
    assert old in RECIPE
    with pytest.raises(SettingError, match=message):
        read(tmp_path, read_recipe, RECIPE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("logicalType: number", "logicaltype: number", r"file.yaml:14: .*unknown key 'logicaltype'; did you mean 'logicalType'"),
        (
            "logicalType: number",
            "logicalType: nummer",
            r"file.yaml:14: .*logical type 'nummer' is not supported; did you mean 'number'",
        ),
        ("{minimum: 0}", "{minimun: 0}", r"file.yaml:15: .*'minimun' is no rule for a double; did you mean 'minimum'"),
        ("{minimum: 0}", "{minimum: low}", r"file.yaml:15: .*minimum 'low' has the wrong type"),
        ("property: knownAt", "property: knowAt", r"file.yaml:18: .*unknown custom property 'knowAt'; did you mean 'knownAt'"),
        ("value: outcome", "value: afterwards", r"file.yaml:17: .*'availableAt'.*got 'afterwards'"),
        (
            "knownAt, value: at",
            "knownAt, value: att",
            r"file.yaml:13: .*knownAt 'att' is not a timestamp column; did you mean 'at'",
        ),
        ("fare > 10", "fair > 10", r"file.yaml:19: .*derived from 'fair', which is not a column; did you mean 'fare'"),
        ("fare > 10", "reflect('x')", r"file.yaml:19: .*function 'reflect' is not allowed"),
        ("fare > 10", "at - interval 2 huors > at", r"file.yaml:19: .*interval 2 hours; did you mean 'hour'"),
        ("{minimum: 0}", "{minimum: '0'}", r"file.yaml:15: .*minimum '0' has the wrong type"),
        ("fare > 10", "late", r"derived columns late read each other in a circle"),
        ("name: late", "name: fare", r"file.yaml:19: .*column 'fare' stands here twice"),
        ("name: late", "name: ../late", r"column '../late' is not a name"),
        ("eventTime, value: at", "eventTime, value: fare", r"eventTime 'fare' is not a timestamp or date"),
        ("required: true}", "required: true, partitioned: true}", r"partition column 'at' is not of the key"),
        ("apiVersion: v3.1.0", "apiVersion: v2.2.2", r"file.yaml:1: .*version 3, got 'v2.2.2'"),
    ],
)
def test_a_wrong_contract_is_named_with_its_line(tmp_path, old, new, message):
    assert old in CONTRACT
    with pytest.raises(SettingError, match=message):
        read(tmp_path, read_contract, CONTRACT.replace(old, new, 1))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml does not exist"):
        read_recipe(tmp_path / "none.yaml")


def test_overrides_are_typed_and_checked_like_the_recipe(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(RECIPE)
    changed = read_recipe(path, overrides=["training.epochs=5", "examples.features.1.window=1 day"])
    assert changed.settings.training.epochs == 5
    assert changed.section("examples")["examples"]["features"][1]["window"] == "1 day"
    with pytest.raises(SettingError, match="unknown key 'epoch'; did you mean 'epochs'"):
        read_recipe(path, overrides=["training.epoch=5"])
    with pytest.raises(SettingError, match="unknown key 'from_day'"):
        read_recipe(path, overrides=["training.from_day=2013-13-45"])
    with pytest.raises(SettingError, match="expected key=value"):
        read_recipe(path, overrides=["training.epochs"])


def test_a_recipe_under_the_contract_of_another_table_is_refused(tmp_path):
    (tmp_path / "trips.yaml").write_text(CONTRACT.replace("  - name: trips", "  - name: rides"))
    recipe = read(tmp_path, read_recipe, RECIPE)
    with pytest.raises(SettingError, match="is the contract of table 'rides', not of 'trips'"):
        recipe.contract("trips")


@pytest.mark.parametrize("name", ["flights", "weather", "planes", "airports", "airlines"])
def test_the_contracts_that_ship_are_right(name):
    assert read_contract(ROOT / "schemas" / f"{name}.yaml").table == name
