"""Files of every kind are ingested whole under the contract inferred from them."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from etl.infer import infer_table, sample_files, write_contract, write_recipe
from etl.ingest import ingest_table
from etl.tables import read_table
from recipes import Recipe, read_recipe
from tests.etl.conftest import NOW
from tests.rides import write_rides

HOUR = datetime.timedelta(hours=1)
START = datetime.datetime(2024, 1, 13, 8, tzinfo=datetime.UTC)


def inferred(folder: Path, files: str, name: str = "t") -> Recipe:
    """The recipe inferred from files, beside its contract."""
    table = infer_table(name, sample_files(str(folder / files), max_rows=1000))
    (folder / f"{name}.yaml").write_text(write_contract(table), encoding="utf-8")
    (folder / "recipe.yaml").write_text(write_recipe(table, str(folder / "recipe.yaml"), str(folder / f"{name}.yaml")))
    return read_recipe(folder / "recipe.yaml", lake=str(folder / "lake"))


def ingest(spark: SparkSession, recipe: Recipe) -> tuple[int, int, int]:
    """Rows read, written and refused."""
    contract = recipe.contract(recipe.name)
    result = ingest_table(spark, recipe, contract, recipe.settings.tables[recipe.name].sources, now=NOW)
    return result.rows_read, result.rows_written, result.rows_refused


def stored(spark: SparkSession, recipe: Recipe) -> DataFrame:
    return read_table(spark, recipe.lake, recipe.contract(recipe.name))


def write_latin(path: Path) -> None:
    path.write_bytes("id;city;price\n1;Köln;1,5\n2;Orléans;NA\n".encode("latin-1"))


def write_multi_line(path: Path) -> None:
    path.write_bytes(gzip.compress(b'id,note,at\n1,"one\ntwo",13/1/2024 8:00\n2,"say ""hi""",13/1/2024 9:00\n'))


def write_parquet(path: Path) -> None:
    at = pa.array([START.replace(tzinfo=None), (START + HOUR).replace(tzinfo=None)], pa.timestamp("us"))
    pq.write_table(pa.table({"id": [1, 2], "at": at, "ratio": [0.5, None], "vector": pa.array([[1.0, 2.0]] * 2)}), path)


def write_arrays(path: Path) -> None:
    path.write_text('{"id": 1, "vector": [1, 2], "ok": true}\n{"id": 2, "vector": [3, 4.5], "ok": null}\n')


@pytest.mark.parametrize(
    ("name", "write", "rows"),
    [
        ("t.csv", write_latin, [{"id": 1, "city": "Köln", "price": "1,5"}, {"id": 2, "city": "Orléans", "price": "NA"}]),
        ("t.csv.gz", write_multi_line, [{"id": 1, "note": "one\ntwo", "at": START}, {"id": 2, "note": 'say "hi"', "at": START + HOUR}]),
        ("t.parquet", write_parquet, [{"id": 1, "at": START, "ratio": 0.5, "vector": [1, 2]}, {"id": 2, "at": START + HOUR, "ratio": None, "vector": [1, 2]}]),
        ("t.jsonl", write_arrays, [{"id": 1, "vector": [1, 2], "ok": True}, {"id": 2, "vector": [3, 4.5], "ok": None}]),
    ],
)  # fmt: skip
def test_files_are_ingested_under_what_is_inferred(
    spark: SparkSession, tmp_path: Path, name: str, write: Any, rows: list[dict[str, Any]]
) -> None:
    write(tmp_path / name)
    recipe = inferred(tmp_path, name)
    assert ingest(spark, recipe) == (2, 2, 0)
    times = [column.name for column in recipe.contract("t").columns if column.type == "timestamp"]
    found = stored(spark, recipe).orderBy("id").selectExpr(*[f"unix_micros({n}) {n}" if n in times else n for n in rows[0]])
    expected = [{n: int(v.timestamp() * 1e6) if n in times else v for n, v in row.items()} for row in rows]
    assert [row.asDict() for row in found.collect()] == expected


def test_rides_are_ingested_under_what_is_inferred(spark: SparkSession, tmp_path: Path) -> None:
    write_rides(tmp_path / "data", num_rows=300, num_bad=0)
    recipe = inferred(tmp_path, "data/rides/*.jsonl", "rides")
    contract = recipe.contract("rides")
    assert (contract.key, contract.event_time) == (("ride_id",), "started_at")
    assert [column.name for column in contract.columns if not column.required] == ["temperature"]
    assert ingest(spark, recipe) == (300, 300, 0)
    first = stored(spark, recipe).orderBy("ride_id").collect()[0].asDict()
    source = json.loads((tmp_path / "data" / "rides" / "a.jsonl").read_text().splitlines()[0])
    assert {name: first[name] for name in source if name != "started_at"} == {
        n: v for n, v in source.items() if n != "started_at"
    }


def test_csv_of_another_dialect_is_ingested_under_what_is_inferred(spark: SparkSession, tmp_path: Path) -> None:
    rows = ["id;day;at;fare;zone;paid;note"]
    for i in range(50):
        zone, paid = "north" if i % 2 else "NULL", "true" if i % 3 else ""
        rows.append(f"{i};2024-01-0{i % 9 + 1};2024-01-01 08:{i:02}:00;{i / 4};{zone};{paid};'x;{i}'")
    (tmp_path / "a.csv").write_bytes(("\ufeff" + "\r\n".join(rows) + "\r\n").encode())
    recipe = inferred(tmp_path, "a.csv")
    contract = recipe.contract("t")
    assert {column.name: column.type for column in contract.columns} == {
        "id": "int", "day": "date", "at": "timestamp", "fare": "double", "zone": "string", "paid": "boolean", "note": "string"}  # fmt: skip
    assert (contract.dialect.delimiter, contract.dialect.quote, contract.dialect.timestamp_zone) == (";", "'", "UTC")
    assert ingest(spark, recipe) == (50, 50, 0)
    by_id = {row["id"]: row for row in stored(spark, recipe).collect()}
    row = by_id[3]
    assert (row["fare"], row["zone"], row["paid"], row["note"], row["at"].minute) == (0.75, "north", None, "x;3", 3)
    assert by_id[4]["zone"] is None
