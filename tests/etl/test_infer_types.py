"""What is inferred as a type is what ingest accepts as one: the same texts are judged here and by Spark."""

from __future__ import annotations

import pytest
from pyspark.sql import functions as F

from etl.infer.types import DATE_FORMATS, FORMATS, clock_of, infer_type, is_boolean, is_date, is_double, is_integer, patterns_of
from etl.ingest import ingest_table
from etl.tables import read_table
from recipes import read_recipe
from tests.etl.conftest import NOW

TEXTS = [
    "0",
    "-0",
    "1",
    "+1",
    "-1",
    "007",
    "5.0",
    "5.",
    ".5",
    "1e3",
    "1E-3",
    "1e400",
    "-1.50",
    "12d",
    "1_000",
    "1,5",
    "NaN",
    "Infinity",
    "inf",
    "nan",
    "2147483647",
    "2147483648",
    "-2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "99999999999999999999999999999999999999999",
    "true",
    "false",
    "True",
    "t",
    "1.0e5",
    "0.1",
    "00.1",
    "٣",
    "2013",
    "2013-01",
    "2013-01-01",
    "2013-1-1",
    "2013-02-30",
    "2012-02-29",
    "2013-01-01T00:00:00",
    "2013-01-01T00:00:00Z",
    "2013-01-01T00:00:00.5Z",
    "2013-01-01T00:00:00.1234567Z",
    "2013-01-01T00:00:00+05:30",
    "2013-01-01T00:00:00+18:00",
    "2013-01-01T00:00:00+18:30",
    "2013-01-01T00:00:00-0500",
    "2013-01-01T24:00:00Z",
    "2013-01-01T23:59:60Z",
    "2013-01-01T23:60:00Z",
    "2013-01-01T1:00:00Z",
    "2013-01-01T00:00Z",
    "2013-02-30T00:00:00Z",
    "0001-01-01",
    "9999-12-31",
    "12013-01-01",
    "x",
]
TEXTS += [" 1", "1 ", "2013-01-01 12:30:00", "2013-01-01 12:30:00Z", "2013-01-01  12:30:00", "2013-01-01 ", "true "]

CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: t
version: 1.0.0
status: draft
schema:
  - name: t
    customProperties: [{property: timestampZone, value: UTC}]
    properties:
      - {name: i, logicalType: integer, primaryKey: true, primaryKeyPosition: 1}
"""

TIMES = [
    "2013-01-05T7:30",
    "2013/1/5T07:30",
    "13/1/2013",
    "1/13/2013",
    "01/13/2013",
    "1/13/13",
    "13.1.2013",
    "2013/1/5",
    "2013/01/05",
]
TIMES += ["2013-01-05 07:30", "2013-01-05 7:30", "2013-1-5 7:30", "2013/1/5 7:30:15", "1/5/2013 7:30", "13/1/2013 07:30:59", "1/13/2013 7:30:15 PM", "1/13/2013 7:30:15", "1/13/2013 7:30 AM",
          "1/13/2013 12:30 AM", "1/13/2013 13:30 AM", "1/13/2013 0:30 AM", "1/13/2013 7:30 pm", "31.12.2013 23:59", "31.12.2013 24:00", "30.2.2013 10:00",
          "1/5/2013 7:3", "1/5/2013  7:30", "1/5/0099 7:30", " 1/5/2013 7:30", "2013/1/5 7:30", "1/5/2013 7:30:15.5", "29.2.2012 0:00:00"]  # fmt: skip


KINDS = {
    "boolean": "boolean",
    "int": "integer",
    "bigint": "integer",
    "double": "number",
    "date": "date",
    "timestamp": "timestamp",
}


def test_texts_are_accepted_here_as_ingest_accepts_them(spark, tmp_path):
    """Each text stands once in a column of each type, alone in its row: what ingest refuses is the text of that type."""
    columns = [f"      - {{name: {name}_, logicalType: {kind}, physicalType: {name}}}\n" for name, kind in KINDS.items()]
    (tmp_path / "t.yaml").write_text(CONTRACT + "".join(columns))
    (tmp_path / "recipe.yaml").write_text("name: t\ntables: {t: {contract: t.yaml, sources: [{files: t.csv, format: csv}]}}\n")
    tried = [(text, name) for text in TEXTS for name in KINDS]
    rows = "".join(
        f"{i}," + ",".join(f'"{text}"' if name == of else "" for name in KINDS) + "\n" for i, (text, of) in enumerate(tried)
    )
    (tmp_path / "t.csv").write_text("i," + ",".join(f"{name}_" for name in KINDS) + "\n" + rows)
    recipe = read_recipe(tmp_path / "recipe.yaml", lake=str(tmp_path / "lake"))
    contract = recipe.contract("t")
    result = ingest_table(spark, recipe, contract, recipe.settings.tables["t"].sources, now=NOW)
    assert result.rows_read == len(tried)
    accepted = {tried[row["i"]] for row in read_table(spark, recipe.lake, contract).select("i").collect()}
    ours = {"boolean": is_boolean, "int": lambda text: is_integer(text, 2**31), "bigint": is_integer, "double": is_double,
            "date": is_date, "timestamp": lambda text: clock_of(text) is not None}  # fmt: skip
    assert {(text, name) for text, name in tried if ours[name](text)} == accepted


def test_a_timestamp_is_zoned_or_local():
    assert [clock_of(text) for text in ("2013-01-01T00:00:00+05:30", "2013-01-01 00:00:00.5", "2013-01-01")] == [
        "zoned",
        "local",
        None,
    ]
    assert not any(
        accepts(text)
        for accepts in (is_boolean, is_integer, is_double, is_date, clock_of)
        for text in ("", "1\n", "2013-01-01\n")
    )


def judged(spark, texts, **values):
    """Of each rule: the texts for which it gives a value."""
    rows = spark.createDataFrame([(text,) for text in texts], "text string")
    found = rows.select("text", *[value(F.col("text")).isNotNull().alias(name) for name, value in values.items()]).collect()
    return {name: {row["text"] for row in found if row[name]} for name in values}


def test_other_ways_to_write_times_are_ones_that_ingest_reads(spark):
    rules = {
        pattern: (lambda text, pattern=pattern: F.try_to_timestamp(text, F.lit(pattern))) for pattern in FORMATS | DATE_FORMATS
    }
    found = judged(spark, TIMES, **rules)
    for known in (FORMATS, DATE_FORMATS):
        for pattern in known:
            ours = {text for text in TIMES if patterns_of([text], {pattern: known[pattern]})}
            assert ours, f"no text tries {pattern}"
            assert ours <= found[pattern], pattern


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["1", "-7"], "bigint"),
        (["1", "2.5"], "double"),
        (["1", "007"], None),
        (["true", "false"], "boolean"),
        (["true", "1"], None),
        (["2024-01-01"], "date"),
        (["2024-01-01", "2024-01-01T00:00:00Z"], None),
        (["2024-01-01T00:00:00Z", "2024-01-01 00:00:00"], "timestamp"),
        (["12345678901234567890"], None),
        (["12345678901234567890", "0.5"], "double"),
        ([], None),
    ],
)
def test_the_narrowest_type_of_all_texts_is_taken(texts, kind):
    assert infer_type(texts) == kind
