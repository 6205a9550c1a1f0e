"""How example rows lie in files: in the order of a seeded hash, files and row groups of even size, no dictionaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from etl.session import session_settings
from etl.transforms.row_ids import ROW_ID
from etl.transforms.splits import SPLIT, uniform
from lakering.manifest import SPLITS

#: Long enough that nothing which cleans tables by their own settings touches a pinned version.
RETENTION = "interval 36500 days"
RETENTION_PROPERTIES = ("delta.deletedFileRetentionDuration", "delta.logRetentionDuration")
TABLE_PROPERTIES = {
    "delta.enableDeletionVectors": "false",
    "delta.columnMapping.mode": "none",
    **dict.fromkeys(RETENTION_PROPERTIES, RETENTION),
    "delta.dataSkippingNumIndexedCols": "0",
}
KEYS_PER_FILE = 5_000_000
#: A row group with binary columns is no larger, since a feed holds windows of them; the recipe's rows are for slim rows.
MAX_ROW_GROUP_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Layout:
    """How rows are put into files. ``seed`` orders them."""

    format: str
    row_group_rows: int
    row_groups_per_file: int
    seed: int

    def within(self, row_bytes: int) -> Layout:
        """The layout of rows so wide that fewer of them must do for a row group."""
        return replace(self, row_group_rows=max(1, min(self.row_group_rows, MAX_ROW_GROUP_BYTES // row_bytes)))

    def num_files(self, num_rows: int) -> int:
        return math.ceil(num_rows / (self.row_group_rows * self.row_groups_per_file))


def write_keys(uri: str, keys: DataFrame, num_rows: int) -> None:
    files = math.ceil(num_rows / KEYS_PER_FILE)
    keys.repartition(files, ROW_ID).sortWithinPartitions(ROW_ID).write.parquet(uri)


def write_rows(uri: str, rows: DataFrame, num_rows: Mapping[str, int], layout: Layout,
               widths: Mapping[str, int] | None = None) -> None:  # fmt: skip
    """Writes example rows in the order of a seeded hash of ``row_id``, each file by a task of its own, so that the same
    rows give the same files. Files and row groups are of even size. ``widths`` are the bytes of a binary column's cell."""
    row_bytes = _row_width(rows, widths or {})
    layout = layout.within(row_bytes) if widths else layout
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
    # Parquet takes a row group's size in bytes alone, and a Delta write takes it from the session alone; without
    # dictionaries every row has the same width, so that bytes mean rows.
    size = layout.row_group_rows * row_bytes
    wanted: dict[str, str | int] = {"parquet.block.size": size, "parquet.enable.dictionary": "false"}
    if widths:
        # It counts finished pages as compressed, by which row groups of arrays came out many times too large: here a page
        # ends with its row group. And it counts after a hundred rows at the earliest, which may be too many of these.
        wanted |= {"parquet.page.size": min(2 * size, 2**30), "parquet.page.row.count.limit": 2 * layout.row_group_rows,
                   "parquet.page.size.row.check.min": max(1, min(100, layout.row_group_rows // 8))}  # fmt: skip
    with session_settings(rows.sparkSession, wanted):
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


def _row_width(rows: DataFrame, widths: Mapping[str, int]) -> int:
    fields = [field for field in rows.schema.fields if field.name != SPLIT]
    return sum(widths.get(field.name, 8 if isinstance(field.dataType, T.LongType) else 4) for field in fields)
