"""Delta tables of the lake: made from a contract, read by name, told apart by id and version."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from lakering.errors import SettingError, StageError
from lakering.lake import Lake
from schemas import Column, Contract
from schemas.contract import MODIFIED
from schemas.expressions import quote_name

if TYPE_CHECKING:
    from deltalake import DeltaTable as DeltaLog

PROVENANCE_FIELDS = [
    T.StructField("_source", T.StringType(), False),
    T.StructField("_position", T.LongType(), False),
    T.StructField("_content_hash", T.BinaryType(), False),
]


SHAPE = "lakering.shape"
COMMIT = re.compile(r"\d{20}\.")
ESCAPED = str.maketrans({"\\": "\\\\", "'": "\\'"})


def spark_schema(contract: Contract) -> T.StructType:
    """The table's columns in the contract's order, then provenance."""
    fields = [T.StructField(c.name, T._parse_datatype_string(c.type), not c.required) for c in contract.columns]
    modified = [T.StructField(MODIFIED, T.LongType(), False)] if contract.repeated_key == "replace" else []
    return T.StructType(fields + PROVENANCE_FIELDS + modified)


def column_names(contract: Contract) -> list[str]:
    """The names of ``spark_schema``, which asks Spark for its types."""
    modified = [MODIFIED] if contract.repeated_key == "replace" else []
    return [*(column.name for column in contract.columns), *(field.name for field in PROVENANCE_FIELDS), *modified]


def is_table(spark: SparkSession, uri: str) -> bool:
    return DeltaTable.isDeltaTable(spark, uri)


def ensure_table(spark: SparkSession, lake: Lake, table: tuple[str, ...], schema: T.StructType,
                 partition_by: tuple[str, ...], properties: Mapping[str, str]) -> DeltaTable:  # fmt: skip
    """The table at a place of the lake; made, empty, when there is none."""
    storage = lake.storage
    if (storage.exists(*table, "_delta_log") and not has_log(lake, table)
            and not any(COMMIT.match(name) for name in storage.list(*table, "_delta_log"))):  # fmt: skip
        # A job was killed as it made the table: Delta takes such a folder for none of its own, and makes no table in it.
        storage.delete(*table, "_delta_log")
    builder = DeltaTable.createIfNotExists(spark).location(storage.uri(*table)).addColumns(schema)
    if partition_by:
        builder = builder.partitionedBy(*partition_by)
    for name, value in properties.items():
        builder = builder.property(name, value)
    return builder.execute()


def create_table(spark: SparkSession, lake: Lake, contract: Contract) -> DeltaTable:
    """The contract's table, made when it is missing, and widened by the contract's new nullable columns.

    Raises SettingError, with both sides, when the contract and the table differ in anything else."""
    uri, shape = lake.storage.uri(*lake.table(contract.table)), _shape(contract)
    if not is_table(spark, uri):
        properties = {"delta.checkpointInterval": "20", "delta.isolationLevel": "Serializable", SHAPE: json.dumps(shape)}
        properties |= _skipping(contract)
        return ensure_table(spark, lake, lake.table(contract.table), spark_schema(contract), contract.partition_by, properties)
    new = validate_shape(lake, contract)
    table = DeltaTable.forPath(spark, uri)
    if new:
        there = table.toDF().columns  # a job that was killed here may have added them, and not noted it
        columns = ", ".join(f"{quote_name(c.name)} {c.type}" for c in new if c.name not in there)
        if columns:
            spark.sql(f"ALTER TABLE delta.{quote_name(uri)} ADD COLUMNS ({columns})")
        spark.sql(f"ALTER TABLE delta.{quote_name(uri)} SET TBLPROPERTIES ('{SHAPE}' = '{json.dumps(shape).translate(ESCAPED)}')")
        table = DeltaTable.forPath(spark, uri)
    return table


def read_state(spark: SparkSession, lake: Lake, table: str) -> None:
    """Has Delta work out, and keep, what a table's newest commit left of its files: what comes to the table next, a merge above
    all, would have to wait for it."""
    DeltaTable.forPath(spark, lake.storage.uri(*lake.table(table))).detail().collect()


def validate_shape(lake: Lake, contract: Contract) -> list[Column]:
    """The contract's columns that its table, which is there, has yet to take up. Raises as ``create_table`` does."""
    uri, shape = lake.storage.uri(*lake.table(contract.table)), _shape(contract)
    # Not from Delta's own detail(): it counts the table's files, in two Spark jobs.
    properties = open_log(lake, lake.table(contract.table)).metadata().configuration
    stored = json.loads(properties.get(SHAPE, "{}"))
    new = [c for c in contract.columns if c.name not in stored and not c.required]
    compared = sorted({*stored, *shape} - {c.name for c in new})
    sides = [(name, stored.get(name, "has none"), shape.get(name, "has none")) for name in compared]
    differing = [f"{name}: table {theirs}, contract {ours}" for name, theirs, ours in sides if theirs != ours]
    if differing:
        raise SettingError(
            f"table '{contract.table}' and its contract differ, and only new nullable columns are taken up:\n  "
            + "\n  ".join(differing),
            next_step=f"change {contract.document.path}, or move the table at {uri} away and ingest again",
        )
    return new


def _skipping(contract: Contract) -> dict[str, str]:
    """Least and greatest values are kept of what files are looked up by, the key (or a row's place) and times: of every column,
    as by default, they took a tenth of an ingest."""
    found = dict.fromkeys([*contract.key, *([contract.event_time] if contract.event_time else [])])
    kept = [name for name in found if name not in contract.partition_by and contract.require(name, "the key").type != "boolean"]
    kept += [] if contract.key else ["_position"]
    return {"delta.dataSkippingStatsColumns": ",".join(kept)} if kept else {"delta.dataSkippingNumIndexedCols": "0"}


def _shape(contract: Contract) -> dict[str, str]:
    """What may not change while the table lives: of each column its type, whether it may be null and what it is derived
    from; the key and what a repeated one means; the partitions."""
    shape = {}
    for column in contract.columns:
        parts = [
            column.type,
            *(["not null"] if column.required else []),
            *([f"as {column.derived.text}"] if column.derived else []),
            *([f"of shape {list(column.shape)}"] if column.shape else []),
        ]
        shape[column.name] = " ".join(parts)
    return shape | {"(key)": ", ".join(contract.key), "(partitions)": ", ".join(contract.partition_by),
                    "(repeated key)": contract.repeated_key}  # fmt: skip


def read_table(spark: SparkSession, lake: Lake, contract: Contract) -> DataFrame:
    """An event or side table. Raises StageError, with the command that fills it, when it is missing."""
    uri = lake.storage.uri(*lake.table(contract.table))
    if not is_table(spark, uri):
        raise _missing(lake, contract.table)
    return spark.read.format("delta").load(uri)


def table_id(lake: Lake, table: str) -> str | None:
    """What tells a table from another that had its name before; None when there is none."""
    return table_version(lake, table)[0] if has_log(lake, lake.table(table)) else None


def table_version(lake: Lake, table: str) -> tuple[str, int]:
    """A table's id and version, read from its log without a JVM. Raises StageError when it is missing."""
    if not has_log(lake, lake.table(table)):
        raise _missing(lake, table)
    log = open_log(lake, lake.table(table))
    return str(log.metadata().id), log.version()


def has_log(lake: Lake, table: tuple[str, ...]) -> bool:
    """Whether a table was ever committed. One that was to be made as its job was killed has a folder for its log, and no more."""
    return any(lake.storage.exists(*table, "_delta_log", name) for name in (f"{0:020d}.json", "_last_checkpoint"))


def open_log(lake: Lake, table: tuple[str, ...]) -> DeltaLog:
    """A table's log, read without a JVM."""
    from deltalake import DeltaTable as DeltaLog

    storage = lake.storage
    return (DeltaLog(storage.path(*table)) if storage.is_local
            else DeltaLog(storage.uri(*table), storage_options=storage.settings.for_delta()))  # fmt: skip


def read_commits(lake: Lake, table: str, after: int) -> list[list[dict[str, Any]]]:
    """The actions of every commit after a version, oldest first, as Delta's log holds them."""
    commits: list[list[dict[str, Any]]] = []
    while lake.storage.exists(*(name := (*lake.table(table), "_delta_log", f"{after + 1 + len(commits):020d}.json"))):
        commits.append([json.loads(line) for line in lake.storage.read(*name).splitlines()])
    return commits


def _missing(lake: Lake, table: str) -> StageError:
    return StageError(
        f"table '{table}' is not in the lake {lake.storage.root}",
        next_step=f"spark-submit --properties-file spark-defaults.conf etl/jobs/ingest_batch.py --recipe FILE --table {table}",
    )
