"""Refused rows: each once, with its reason, its raw form and where it stood."""

from __future__ import annotations

import datetime

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from etl.tables.delta import is_table
from lakering.errors import InputError
from lakering.lake import Lake
from schemas import Contract

MAX_RAW_BYTES = 64 * 1024


def write_quarantine(spark: SparkSession, lake: Lake, contract: Contract, refused: DataFrame, day: datetime.date) -> None:
    """Merges refused rows (``_source``, ``_position``, ``_raw``, ``_refusal``) on source, position and contract version."""
    rows = refused.select(
        F.lit(contract.table).alias("table"),
        F.lit(contract.version).alias("contract_version"),
        F.col("_source").alias("source"),
        F.col("_position").alias("position"),
        F.col("_refusal.column").alias("column"),
        F.col("_refusal.rule").alias("rule"),
        F.col("_refusal.value").alias("value"),
        F.substring(F.col("_raw").cast("binary"), 1, MAX_RAW_BYTES).alias("raw"),
        (F.octet_length("_raw") > MAX_RAW_BYTES).alias("raw_is_cut"),
        F.lit(day).alias("day"),
    )
    uri = lake.storage.uri(*lake.quarantine(contract.table))
    if not is_table(spark, uri):
        rows.write.format("delta").partitionBy("day").save(uri)
        return
    table = DeltaTable.forPath(spark, uri)
    same = " AND ".join(f"old.{name} = new.{name}" for name in ("source", "position", "contract_version"))
    table.alias("old").merge(rows.alias("new"), same).whenNotMatchedInsertAll().execute()


def read_quarantine(spark: SparkSession, lake: Lake, table: str) -> DataFrame:
    """The refused rows of a table. Raises InputError when none was ever refused."""
    uri = lake.storage.uri(*lake.quarantine(table))
    if not is_table(spark, uri):
        raise InputError(f"table '{table}' has no quarantine in {lake.storage.root}: no row of it was refused")
    return spark.read.format("delta").load(uri)
