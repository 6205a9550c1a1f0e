"""Example tables: written once, each build in a folder of its own, complete when its ``build.json`` is there."""

from __future__ import annotations

import fcntl
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from etl.examples.build import Built
from etl.examples.plan import Plan
from etl.tables.delta import read_table
from etl.tables.example_files import read_row_groups, validate_counts
from etl.transforms.row_ids import ROW_ID
from etl.transforms.splits import SPLIT, uniform
from lakering.errors import StageError
from lakering.lake import EXAMPLES, Lake
from lakering.manifest import SPLITS, Column
from lakering.names import validate_identifier
from schemas import Contract

BUILD = "build.json"
TABLE, KEYS, LEARNT = "table", "keys", "learnt"
#: Long enough that nothing which cleans tables by their own settings touches a pinned version.
RETENTION = "interval 36500 days"
TABLE_PROPERTIES = {
    "delta.enableDeletionVectors": "false",
    "delta.columnMapping.mode": "none",
    "delta.deletedFileRetentionDuration": RETENTION,
    "delta.logRetentionDuration": RETENTION,
    "delta.dataSkippingNumIndexedCols": "0",
}
KEYS_PER_FILE = 5_000_000


@dataclass(frozen=True)
class Layout:
    """How rows are put into files. ``seed`` orders them."""

    format: str
    row_group_rows: int
    row_groups_per_file: int
    seed: int

    def num_files(self, num_rows: int) -> int:
        return math.ceil(num_rows / (self.row_group_rows * self.row_groups_per_file))


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


@contextmanager
def build_lock(lake: Lake, recipe: str, build_id: str) -> Iterator[None]:
    """One builder of a build at a time, on a local file system; elsewhere two at once must be kept apart by who runs them."""
    if not lake.storage.is_local:
        yield
        return
    path = lake.storage.path(*lake.build(recipe, build_id)) + ".lock"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another builder of {build_id} ({path})", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_build(lake: Lake, plan: Plan, build_id: str, inputs: Mapping[str, Any], built: Built) -> dict[str, Any]:
    """Writes a build, its record last, and returns the record. What an unfinished one left in the folder is removed.

    Raises IntegrityError when the files do not hold the rows that were counted."""
    folder, recipe = lake.build(plan.recipe.name, build_id), plan.recipe.name
    settings = plan.examples
    layout = Layout(settings.format, settings.row_group_rows, settings.row_groups_per_file, settings.seed)
    lake.storage.delete(*folder)
    columns: list[Column] = built.facts["columns"]
    _write_keys(lake.storage.uri(*folder, KEYS), built.keys, sum(built.num_rows.values()))
    if built.vocabulary is not None:
        ordered = built.vocabulary.repartition(1).sortWithinPartitions("feature", "id")
        ordered.write.parquet(lake.storage.uri(*folder, LEARNT, "vocabulary"))
    facts = {**built.facts, "columns": [asdict(column) for column in columns]}
    learnt = {name: facts[name] for name in ("columns", "statistics", "by_split", "fills", "vocabulary_sizes")}
    lake.storage.write_json(
        {**learnt, "ids": {f.name: f.ids.model_dump() for f in plan.features if f.ids}}, *folder, LEARNT, "statistics.json"
    )
    write_rows(lake.storage.uri(*folder, TABLE), built.rows, built.num_rows, layout)

    version, row_groups = read_row_groups(lake, (*folder, TABLE), settings.format)
    validate_counts(row_groups, built.num_rows, f"build {build_id}")
    record = {
        **facts, "build": build_id, "recipe": recipe, "inputs": inputs, "format": settings.format, "version": version,
        "table": "/".join((*folder, TABLE)), "num_rows": built.num_rows, "label_kind": settings.predict.kind,
        "weight": "weight" if plan.weight else None, "features": {f.name: f.how for f in plan.features},
        "contracts": {name: contract.fingerprint for name, contract in plan.contracts.items()},
        "files": len(row_groups.group_by("path").aggregate([])), "row_groups": row_groups.num_rows,
        "bytes": sum(dict(zip(row_groups["path"].to_pylist(), row_groups["file_bytes"].to_pylist(), strict=True)).values()),
    }  # fmt: skip
    lake.storage.write_json(record, *folder, BUILD)
    return record


def _write_keys(uri: str, keys: DataFrame, num_rows: int) -> None:
    files = math.ceil(num_rows / KEYS_PER_FILE)
    keys.repartition(files, ROW_ID).sortWithinPartitions(ROW_ID).write.parquet(uri)


def write_rows(uri: str, rows: DataFrame, num_rows: Mapping[str, int], layout: Layout) -> None:
    """Writes example rows in the order of a seeded hash of ``row_id``, each file by a task of its own, so that the same
    rows give the same files. Files and row groups are of even size."""
    files = {split: layout.num_files(num_rows.get(split, 0)) for split in SPLITS}
    share = uniform(F.xxhash64(F.col(ROW_ID), F.lit(layout.seed)))
    index, first = F.lit(0), 0
    for split, count in files.items():
        index = F.when(F.col(SPLIT) == split, first + F.floor(share * count)).otherwise(index)
        first += count
    # As bigint, as the keys were found: Spark hashes an int otherwise.
    tasks = F.array(*[F.lit(key).cast("bigint") for key in _task_keys(rows.sparkSession, first)])
    placed = rows.withColumns({"_share": share, "_task": tasks[index.cast("int")]})
    ordered = placed.repartition(first, "_task").sortWithinPartitions(SPLIT, "_share", ROW_ID).drop("_share", "_task")
    with _row_groups_of(rows.sparkSession, layout.row_group_rows * _row_width(rows)):
        writer = ordered.write.partitionBy(SPLIT)
        if layout.format == "parquet":
            writer.parquet(uri)
        else:
            writer.format("delta").options(**TABLE_PROPERTIES).save(uri)


def _task_keys(spark: SparkSession, tasks: int) -> list[int]:
    """For each task a number that Spark's hash partitioning sends to it: ``repartition`` takes a column, not a place."""
    numbers = spark.range(64 * tasks + 64)
    found = numbers.groupBy(F.pmod(F.hash("id"), F.lit(tasks)).alias("task")).agg(F.min("id").alias("number")).collect()
    keys = {row["task"]: row["number"] for row in found}
    return [keys[task] for task in range(tasks)]


def _row_width(rows: DataFrame) -> int:
    return sum(8 if isinstance(field.dataType, T.LongType) else 4 for field in rows.schema.fields if field.name != SPLIT)


@contextmanager
def _row_groups_of(spark: SparkSession, num_bytes: int) -> Iterator[None]:
    """Row groups of a size. Parquet takes it in bytes alone, and a Delta write takes it from the session alone; without
    dictionaries every row has the same width, so that bytes mean rows. Put back afterwards, on failure too."""
    wanted = {"parquet.block.size": str(num_bytes), "parquet.enable.dictionary": "false"}
    before = {name: spark.conf.get(name, None) for name in wanted}
    try:
        for name, value in wanted.items():
            spark.conf.set(name, value)
        yield
    finally:
        for name, old in before.items():
            if old is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, old)
