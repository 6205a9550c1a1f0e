"""Example tables: written once, each build in a folder of its own, complete when its ``build.json`` is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from etl.examples.build import Built, built_examples
from etl.examples.kinds import arrow_rows
from etl.examples.plan import Plan
from etl.session import session_settings
from etl.tables.delta import read_table
from etl.tables.example_files import read_row_groups, validate_counts
from etl.tables.example_layout import Layout, write_keys, write_rows
from lakering.errors import StageError
from lakering.lake import EXAMPLES, Lake
from lakering.lock import storage_lock
from lakering.names import validate_identifier
from schemas import Contract

BUILD = "build.json"
TABLE, KEYS, LEARNT = "table", "keys", "learnt"
#: Where rows are put that are read again while a build is made; what is no staging stays.
STAGING = "staging"
STAGED = {"vocabulary": (LEARNT, "vocabulary")}


def find_build(lake: Lake, recipe: str, build_id: str | None = None) -> dict[str, Any]:
    """The record of a complete build, the newest by default. Raises StageError that names build_examples."""
    command = "spark-submit --properties-file spark-defaults.conf etl/jobs/build_examples.py --recipe FILE"
    chosen = validate_identifier(build_id, "build") if build_id else lake.newest(EXAMPLES, recipe, marker=BUILD)
    record = read_build(lake, recipe, chosen) if chosen else None
    if record is None:
        which = f"build {build_id!r}" if build_id else "build"
        raise StageError(f"no complete {which} of recipe '{recipe}' in {lake.storage.root}", next_step=command)
    return record


def read_build(lake: Lake, recipe: str, build_id: str) -> dict[str, Any] | None:
    """The record of a build, or None while it is not complete."""
    folder = lake.build(recipe, build_id)
    if not lake.storage.exists(*folder, BUILD):
        return None
    record: dict[str, Any] = lake.storage.read_json(*folder, BUILD)
    return record


def read_inputs(
    spark: SparkSession, lake: Lake, contracts: Mapping[str, Contract], versions: Mapping[str, int]
) -> Callable[[str], DataFrame]:
    """Tables by name, at the versions that the build is named by, with every column of their contracts."""

    def read(name: str) -> DataFrame:
        read_table(spark, lake, contracts[name])
        rows = spark.read.format("delta").option("versionAsOf", versions[name]).load(lake.storage.uri(*lake.table(name)))
        # A column that the contract has gained, and no ingest has written yet.
        new = [column for column in contracts[name].columns if column.name not in rows.columns]
        return rows.withColumns({c.name: F.lit(None).cast(T._parse_datatype_string(c.type)) for c in new}) if new else rows

    return read


def build_lock(lake: Lake, recipe: str, build_id: str, *, wait: bool = True) -> AbstractContextManager[None]:
    """One at a time makes a build, pins it or removes it, on a local file system; elsewhere two builders of one build must
    be kept apart by who runs them. With ``wait=False`` another holder raises BusyError."""
    return storage_lock(lake.storage, *lake.build(recipe, build_id), what=f"build {build_id}", wait=wait)


def make_build(spark: SparkSession, lake: Lake, plan: Plan, build_id: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a build out of the versions that ``inputs`` name, its record last, and returns the record. What an unfinished
    one left in the folder is removed first.

    Raises IntegrityError when the files do not hold the rows that were counted."""
    folder = lake.build(plan.recipe.name, build_id)
    lake.storage.delete(*folder)

    def stage(name: str, rows: DataFrame) -> DataFrame:
        uri = lake.storage.uri(*folder, *STAGED.get(name, (STAGING, name)))
        rows.write.parquet(uri)
        return spark.read.schema(rows.schema).parquet(uri)

    versions = {name: version for name, (_, version) in inputs["tables"].items()}
    with (session_settings(spark, _python_settings(spark, plan)),
          built_examples(plan, read_inputs(spark, lake, plan.contracts, versions), stage) as built):  # fmt: skip
        _write_built(lake, plan, folder, built)
    lake.storage.delete(*folder, STAGING)
    record = _record_of(lake, plan, build_id, inputs, built)
    lake.storage.write_json(record, *folder, BUILD)
    return record


def _python_settings(spark: SparkSession, plan: Plan) -> dict[str, str | int]:
    """No more rows for Python at a time than fit; Spark counts rows, however long they are."""
    name, most = "spark.sql.execution.arrow.maxRecordsPerBatch", arrow_rows(plan)
    return {} if most is None else {name: min(most, int(spark.conf.get(name, "10000") or most))}


def _write_built(lake: Lake, plan: Plan, folder: tuple[str, ...], built: Built) -> None:
    settings = plan.examples
    layout = Layout(settings.format, settings.row_group_rows, settings.row_groups_per_file, settings.seed)
    write_keys(lake.storage.uri(*folder, KEYS), built.keys, sum(built.num_rows.values()))
    learnt = {name: built.facts[name] for name in ("statistics", "by_split", "fills", "vocabulary_sizes")}
    learnt["columns"] = [asdict(column) for column in built.facts["columns"]]
    learnt["ids"] = {feature.name: feature.ids.model_dump() for feature in plan.features if feature.ids}
    lake.storage.write_json(learnt, *folder, LEARNT, "statistics.json")
    write_rows(lake.storage.uri(*folder, TABLE), built.rows, built.num_rows, layout, built.widths)


def _record_of(lake: Lake, plan: Plan, build_id: str, inputs: Mapping[str, Any], built: Built) -> dict[str, Any]:
    table, settings = (*lake.build(plan.recipe.name, build_id), TABLE), plan.examples
    version, row_groups = read_row_groups(lake, table, settings.format)
    validate_counts(row_groups, built.num_rows, f"build {build_id}")
    sizes = dict(zip(row_groups["path"].to_pylist(), row_groups["file_bytes"].to_pylist(), strict=True))
    return {
        **built.facts,
        "columns": [asdict(column) for column in built.facts["columns"]],
        "build": build_id,
        "recipe": plan.recipe.name,
        "inputs": inputs,
        "format": settings.format,
        "version": version,
        "table": "/".join(table),
        "num_rows": built.num_rows,
        "label_kind": settings.predict.kind,
        "classes": settings.predict.classes,
        "weight": "weight" if plan.weight else None,
        "features": {feature.name: feature.how for feature in plan.features},
        "contracts": {name: contract.fingerprint for name, contract in plan.contracts.items()},
        "files": len(sizes),
        "row_groups": row_groups.num_rows,
        "bytes": sum(sizes.values()),
    }
