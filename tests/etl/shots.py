"""A small world with arrays, texts and images: shots, and the files that they name."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from etl.examples import Plan, plan_examples
from etl.examples.build import Built, built_examples
from etl.examples.inputs import build_inputs
from etl.tables import table_version
from etl.tables.delta import create_table, spark_schema
from etl.tables.examples import make_build
from lakering.lake import Lake
from recipes import Recipe, read_recipe
from tests.etl.trips import at

Rows = Sequence[Mapping[str, Any]]
KEY = {"primaryKey": True, "primaryKeyPosition": 1}
TIME = {"primaryKey": True, "primaryKeyPosition": 2}
SHAPE = [{"property": "shape", "value": [2, 3]}]
OUTCOME = [{"property": "availableAt", "value": "outcome"}]
SHOTS: list[dict[str, Any]] = [
    {"name": "id", "logicalType": "integer", "physicalType": "int", **KEY},
    {"name": "at", "logicalType": "timestamp", "required": True},
    {"name": "hit", "logicalType": "boolean", "customProperties": OUTCOME},
    {"name": "note", "logicalType": "string"},
    {"name": "verdict", "logicalType": "string", "customProperties": OUTCOME},
    {"name": "file", "logicalType": "string"},
    {"name": "grid", "logicalType": "array", "items": {"logicalType": "number"}, "customProperties": SHAPE},
]
FILES: list[dict[str, Any]] = [
    {"name": "path", "logicalType": "string", **KEY},
    {"name": "image", "logicalType": "string", "physicalType": "binary"},
    {
        "name": "tiles",
        "logicalType": "array",
        "items": {"logicalType": "integer", "physicalType": "int"},
        "customProperties": SHAPE,
    },
]
FRAMES: list[dict[str, Any]] = [
    {"name": "camera", "logicalType": "string", **KEY},
    {"name": "taken", "logicalType": "timestamp", **TIME},
    {"name": "frame", "logicalType": "string", "physicalType": "binary"},
]
TABLES: dict[str, tuple[dict[str, str], list[dict[str, Any]]]] = {
    "shots": ({"eventTime": "at"}, SHOTS),
    "files": ({"repeatedKey": "replace"}, FILES),
    "frames": ({"eventTime": "taken"}, FRAMES),
}
EXAMPLES: dict[str, Any] = {
    "from": "shots",
    "predict": {"label": "hit", "moment": "at"},
    "split": {"by": "time", "train": "< 2024-01-03", "validation": "< 2024-01-04"},
}


def write_recipe(folder: Path, features: Rows, **examples: Any) -> Recipe:
    """The world's contracts, and a recipe with these features."""
    for name, (properties, columns) in TABLES.items():
        table = {"name": name, "properties": columns,
                 "customProperties": [{"property": key, "value": value} for key, value in properties.items()]}  # fmt: skip
        contract = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": name, "version": "1.0.0", "status": "active",
                    "schema": [table]}  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(contract, indent=1))
    tables = {name: {"contract": f"{name}.yaml", "sources": [{"files": "none", "format": "csv"}]} for name in TABLES}
    recipe = {"name": "shots", "tables": tables, "examples": {**EXAMPLES, "features": list(features), **examples}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe, indent=1))
    return read_recipe(folder / "recipe.yaml", lake=str(folder / "lake"))


def shot(id: int, when: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "at": at(when), "hit": True, **more}


def frames_of(spark: SparkSession, plan: Plan, rows: Mapping[str, Rows]) -> dict[str, DataFrame]:
    """The plan's tables; what a row leaves out is null."""
    frames = {}
    for name, contract in plan.contracts.items():
        schema = T.StructType([T.StructField(field.name, field.dataType) for field in spark_schema(contract)])
        whole = [
            {"_source": "f", "_position": i, "_content_hash": b"", "_modified": 0, **row}
            for i, row in enumerate(rows.get(name, []))
        ]
        frames[name] = spark.createDataFrame([tuple(row.get(column) for column in schema.names) for row in whole], schema)
    return frames


def build(spark: SparkSession, folder: Path, features: Rows, **rows: Rows) -> tuple[dict[int, dict[str, Any]], Built]:
    """Examples built of rows, nothing written: the example rows by the shot's id, and what else was built."""
    plan = plan_examples(write_recipe(folder, features))
    with built_examples(plan, frames_of(spark, plan, rows).__getitem__) as built:
        found = built.rows.join(built.keys.select("row_id", "id"), "row_id").collect()
    return {row["id"]: row.asDict() for row in found}, built


def write_build(spark: SparkSession, folder: Path, features: Rows, **rows: Rows) -> tuple[Lake, dict[str, Any]]:
    """Writes tables and a build of them; returns the lake and the build's record."""
    recipe = write_recipe(folder, features)
    lake, plan = recipe.lake, plan_examples(recipe)
    for name, frame in frames_of(spark, plan, rows).items():
        create_table(spark, lake, plan.contracts[name])
        frame.write.format("delta").mode("append").save(lake.storage.uri(*lake.table(name)))
    inputs = build_inputs(plan, {name: table_version(lake, name) for name in plan.contracts})
    return lake, make_build(spark, lake, plan, "b1", inputs)


def picture(color: tuple[int, int, int], kind: str = "PNG") -> bytes:
    """The bytes of a file with a picture of one color."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(file, kind)
    return file.getvalue()
