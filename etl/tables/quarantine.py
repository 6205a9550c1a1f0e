"""Refused rows: each once, with its reason, its raw form and where it stood."""

from __future__ import annotations

import datetime

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from etl.tables.delta import ensure_table, is_table
from etl.tables.retry import run_again_on_conflict
from lakering.errors import InputError
from lakering.lake import Lake
from schemas import Contract
from schemas.expressions import quote_name

MAX_RAW_BYTES = 64 * 1024


#: What a message has beside its value; of rows of files there is nothing of it.
MESSAGE = {"_key": "binary", "_headers": "array<struct<key:string,value:binary>>", "_timestamp": "timestamp"}


def write_quarantine(spark: SparkSession, lake: Lake, contract: Contract, refused: DataFrame, day: datetime.date,
                     within: str = "true") -> None:  # fmt: skip
    """Merges refused rows (``_source, _position, _modified, _form, _header, _raw, _refusal``, of messages ``_key, _headers,
    _timestamp`` too) on source, position and contract version. ``within`` is what an entry (alias ``old``) must meet to be
    one of these: from literals Delta tells which files need no look."""
    rows = refused.select(
        F.lit(contract.table).alias("table"),
        F.lit(contract.version).alias("contract_version"),
        F.col("_source").alias("source"),
        F.col("_position").alias("position"),
        F.col("_refusal.column").alias("column"),
        F.col("_refusal.rule").alias("rule"),
        F.col("_refusal.value").alias("value"),
        F.substring(F.col("_raw").cast("binary"), 1, MAX_RAW_BYTES).alias("raw"),
        F.coalesce(F.octet_length("_raw") > MAX_RAW_BYTES, F.lit(False)).alias("raw_is_cut"),
        F.col("_form").alias("form"),
        # Of rows that all have a header Spark knows that none of its names is null, and would not take others into such a column.
        F.col("_header").cast("array<string>").alias("header"),
        F.col("_modified").alias("modified"),
        F.lit(day).alias("day"),
        F.lit(None).cast("date").alias("replayed_on"),
        *(F.expr(f"CAST({name if name in refused.columns else 'NULL'} AS {kind}) AS {name[1:]}")
          for name, kind in MESSAGE.items()),
    )  # fmt: skip
    table = _quarantine(spark, lake, lake.quarantine(contract.table), rows.schema)
    same = f"{within} AND " + " AND ".join(f"old.{name} = new.{name}" for name in ("source", "position", "contract_version"))
    merge = table.alias("old").merge(rows.alias("new"), same).whenNotMatchedInsertAll()
    run_again_on_conflict(merge.execute, f"the quarantine of table '{contract.table}'", spread=day.toordinal() % 7 / 7)


def _quarantine(spark: SparkSession, lake: Lake, place: tuple[str, ...], schema: T.StructType) -> DeltaTable:
    """The quarantine; made when it is missing, and widened where it was made before messages were refused into it."""
    uri = lake.storage.uri(*place)
    if not is_table(spark, uri):
        nullable = T.StructType([T.StructField(field.name, field.dataType) for field in schema.fields])
        return ensure_table(spark, lake, place, nullable, ("day",), {"delta.isolationLevel": "Serializable"})
    there = DeltaTable.forPath(spark, uri).toDF().columns
    new = [f"{name[1:]} {kind}" for name, kind in MESSAGE.items() if name[1:] not in there]
    if new:
        spark.sql(f"ALTER TABLE delta.{quote_name(uri)} ADD COLUMNS ({', '.join(new)})")
    return DeltaTable.forPath(spark, uri)


def mark_replayed(spark: SparkSession, lake: Lake, table: str, rows: DataFrame, day: datetime.date) -> int:
    """Marks what quarantine holds of rows (``_source, _position, _form``, each once) that are in their table now, under
    whichever version they were refused. Returns the number of entries marked; one that was marked before stays as it is."""
    quarantine = DeltaTable.forPath(spark, lake.storage.uri(*lake.quarantine(table)))
    same = " AND ".join(f"old.{name} = new._{name}" for name in ("source", "position", "form"))
    merge = quarantine.alias("old").merge(rows.alias("new"), f"old.replayed_on IS NULL AND {same}")
    merge = merge.whenMatchedUpdate(set={"replayed_on": F.lit(day)})
    metrics: list[Row | None] = []
    run_again_on_conflict(lambda: metrics.append(merge.execute().first()), f"the quarantine of table '{table}'",
                          spread=day.toordinal() % 7 / 7)  # fmt: skip
    return metrics[0]["num_updated_rows"] if metrics[0] else 0


def has_quarantine(spark: SparkSession, lake: Lake, table: str) -> bool:
    """Whether a row of the table was ever refused."""
    return is_table(spark, lake.storage.uri(*lake.quarantine(table)))


def read_quarantine(spark: SparkSession, lake: Lake, table: str) -> DataFrame:
    """The refused rows of a table. Raises InputError when none was ever refused."""
    if not has_quarantine(spark, lake, table):
        raise InputError(f"table '{table}' has no quarantine in {lake.storage.root}: no row of it was refused")
    return spark.read.format("delta").load(lake.storage.uri(*lake.quarantine(table)))
