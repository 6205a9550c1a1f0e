"""Contracts of columns that hold bytes and arrays."""

from __future__ import annotations

import pytest

from lakering.errors import SettingError
from schemas import Rule, read_contract

CONTRACT = """apiVersion: v3.1.0
kind: DataContract
id: digits
version: 1.0.0
status: active
schema:
  - name: digits
    customProperties:
      - {property: repeatedKey, value: replace}
    properties:
      - {name: id, logicalType: integer, physicalType: int, primaryKey: true}
      - {name: picture, logicalType: string, physicalType: binary, logicalTypeOptions: {maxLength: 100000}}
      - name: pixels
        logicalType: array
        items: {logicalType: number, physicalType: float}
        customProperties: [{property: shape, value: [28, 28]}]
      - name: counts
        logicalType: array
        physicalType: array<bigint>
        items: {logicalType: integer}
        customProperties: [{property: shape, value: [3]}]
"""


def read(folder, text):
    (folder / "file.yaml").write_text(text)
    return read_contract(folder / "file.yaml")


def test_bytes_and_arrays_have_types_of_their_own(tmp_path):
    columns = read(tmp_path, CONTRACT).columns
    assert [(c.type, c.shape) for c in columns] == [
        ("int", None),
        ("binary", None),
        ("array<float>", (28, 28)),
        ("array<bigint>", (3,)),
    ]
    assert columns[1].rules == (Rule("maxLength", 100000),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("        items: {logicalType: number, physicalType: float}\n", "", r"file.yaml:13: .*key 'items' is missing"),
        ("items: {logicalType: number", "items: {logicalType: string", r"file.yaml:15: .*an array of 'string' is not supported"),
        ("physicalType: float", "physicalType: flaot", r"file.yaml:15: .*no element of an array of numbers; did you mean 'float'"),
        ("array<bigint>", "array<int>", r"file.yaml:19: .*physical type 'array<int>' differs from items: array<bigint>"),
        ("[{property: shape, value: [3]}]", "[]", r"file.yaml:17: .*'shape' is missing: the array's lengths"),
        ("value: [3]", "value: [0]", r"file.yaml:21: .*'shape': Input should be greater than or equal to 1, got 0"),
        ("value: [3]", "value: []", r"file.yaml:21: .*'shape': .*at least 1 item"),
        ("physicalType: int,", "physicalType: binary,", r"file.yaml:11: .*physical type 'binary' does not hold a integer"),
        ("{maxLength: 100000}", "{pattern: a}", r"file.yaml:12: .*'pattern' is no rule for a binary"),
        ("integer, physicalType: int, p", "string, physicalType: binary, p", r"file.yaml:11: .*is binary: it cannot be in primaryKey"),
        ("value: replace}", "value: replace}\n      - {property: orderBy, value: pixels}", r"'pixels' is array<float>: .*orderBy"),
        ("primaryKey: true}", "primaryKey: true, customProperties: [{property: shape, value: [1]}]}", r"'shape' belongs to an array"),
        ("maxLength: 100000}}", "maxLength: 9}, customProperties: [{property: derived, value: id}]}", r"binary cannot be derived"),
        ("maxLength: 100000}}", "maxLength: 9}, quality: [{metric: invalidValues, arguments: {validValues: [a]}, mustBe: 0}]}",
         r"file.yaml:12: .*binary has no valid values"),
    ],
)  # fmt: skip
def test_what_such_columns_cannot_be_is_named_with_its_line(tmp_path, old, new, message):
    assert old in CONTRACT
    with pytest.raises(SettingError, match=message):
        read(tmp_path, CONTRACT.replace(old, new, 1))
