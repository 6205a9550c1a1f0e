"""A small world for tests of examples: trips with an outcome, weather by the hour, cities of today."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from etl.examples import Plan, plan_examples
from etl.examples.build import Built, built_examples
from etl.tables.delta import spark_schema
from recipes import Recipe, read_recipe
from schemas import read_contract

TYPES = {"string": "string", "int": "integer", "double": "number", "timestamp": "timestamp"}
#: Column: type, key or not, custom properties.
TRIPS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "id": ("int", True, {}),
    "city": ("string", False, {}),
    "starts": ("timestamp", False, {}),
    "fare": ("double", False, {}),
    "ends": ("timestamp", False, {"availableAt": "outcome"}),
    "late": ("int", False, {"availableAt": "outcome", "knownAt": "ends"}),
    "tip": ("int", False, {"availableAt": "outcome"}),
    "twice_late": ("int", False, {"derived": "2 * late"}),
}
WEATHER: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "place": ("string", True, {}),
    "station": ("int", True, {}),
    "at": ("timestamp", True, {}),
    "rain": ("double", False, {}),
}
CITIES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "name": ("string", True, {}),
    "size": ("int", False, {}),
    "state": ("string", False, {}),
}
TABLES: dict[str, tuple[dict[str, Any], dict[str, tuple[str, bool, dict[str, Any]]]]] = {
    "trips": ({"eventTime": "starts"}, TRIPS),
    "weather": ({"eventTime": "at"}, WEATHER),
    "cities": ({"repeatedKey": "replace"}, CITIES),
}
EXAMPLES: dict[str, Any] = {
    "from": "trips",
    "predict": {"label": "late > 10", "moment": "starts - interval 1 hour"},
    "features": [{"column": "fare"}],
    "split": {"by": "time", "train": "< 2024-01-03", "validation": "< 2024-01-04"},
}


def at(text: str) -> datetime.datetime:
    """``'2 08:30:00'`` is half past eight on the second of January 2024, UTC."""
    day, time = text.split()
    return datetime.datetime.fromisoformat(f"2024-01-{int(day):02} {time}").replace(tzinfo=datetime.UTC)


def write_recipe(folder: Path, **examples: Any) -> Recipe:
    """The world's contracts and a recipe of its own, whose ``examples`` are ``EXAMPLES`` with changes."""
    for name, (properties, columns) in TABLES.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(_contract(name, properties, columns), sort_keys=False))
    tables = {name: {"contract": f"{name}.yaml", "sources": [{"files": "none", "format": "csv"}]} for name in TABLES}
    recipe = {"name": "trips", "tables": tables, "examples": {**EXAMPLES, **examples}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return read_recipe(folder / "recipe.yaml", lake=str(folder / "lake"))


def _contract(name: str, properties: dict[str, Any], columns: dict[str, tuple[str, bool, dict[str, Any]]]) -> dict[str, Any]:
    fields = []
    for column, (kind, is_key, custom) in columns.items():
        field: dict[str, Any] = {"name": column, "logicalType": TYPES[kind], "physicalType": kind}
        if is_key:
            field |= {"primaryKey": True, "primaryKeyPosition": list(columns).index(column) + 1, "required": True}
        if custom:
            field["customProperties"] = [{"property": key, "value": value} for key, value in custom.items()]
        fields.append(field)
    table = {"name": name, "logicalType": "object", "physicalType": "table", "properties": fields}
    table["customProperties"] = [{"property": key, "value": value} for key, value in properties.items()]
    return {"apiVersion": "v3.1.0", "kind": "DataContract", "id": name, "version": "1.0.0", "status": "active", "schema": [table]}


def frame(spark: SparkSession, folder: Path, table: str, rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """A table of the world; what a row leaves out is null."""
    schema = spark_schema(read_contract(folder / f"{table}.yaml"))
    whole = [{"_source": "f", "_position": i, "_content_hash": b"", "_modified": 0, **row} for i, row in enumerate(rows)]
    nullable = T.StructType([T.StructField(field.name, field.dataType) for field in schema])
    return spark.createDataFrame([tuple(row.get(name) for name in schema.names) for row in whole], nullable)


def trip(id: int, starts: str, late: int | None = 0, ends: str | None = None, **more: Any) -> dict[str, Any]:
    """A trip that ends two hours after it starts, unless told otherwise."""
    begin = at(starts)
    end = at(ends) if ends else begin + datetime.timedelta(hours=2)
    return {"id": id, "city": "rome", "starts": begin, "fare": 1.0, "ends": end, "late": late,
            "twice_late": None if late is None else 2 * late, **more}  # fmt: skip


@contextmanager
def world(spark: SparkSession, folder: Path, trips: Sequence[Mapping[str, Any]], *, weather: Sequence[Mapping[str, Any]] = (),
          cities: Sequence[Mapping[str, Any]] = (), **examples: Any) -> Iterator[tuple[Plan, Built]]:  # fmt: skip
    """The examples built of rows, nothing written."""
    plan = plan_examples(write_recipe(folder, **examples))
    rows = {"trips": trips, "weather": weather, "cities": cities}
    frames = {name: frame(spark, folder, name, rows[name]) for name in plan.contracts}
    with built_examples(plan, frames.__getitem__) as built:
        yield plan, built


def build(
    spark: SparkSession, folder: Path, trips: Sequence[Mapping[str, Any]], **more: Any
) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """Example rows by the trip's id, and the facts of the build."""
    with world(spark, folder, trips, **more) as (_, built):
        rows = built.rows.join(built.keys.select("row_id", "id"), "row_id").collect()
        return {row["id"]: row.asDict() for row in rows}, built.facts
