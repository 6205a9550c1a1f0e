"""Puts valid rows into their table, each key once, with the same answer however often it is run."""

from __future__ import annotations

from dataclasses import dataclass

from delta.tables import DeltaTable
from pyspark.sql import Column as Expr
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from etl.tables.delta import create_table, spark_schema
from etl.transforms.provenance import with_rank_in_key
from lakering.lake import Lake
from schemas import Contract
from schemas.expressions import quote_name

#: Above this many touched partition values, the literals would outgrow what they save.
MAX_LITERALS = 1000


@dataclass(frozen=True)
class Counts:
    """What became of the valid rows of a batch. ``conflicts`` are refused: same key, other content."""

    written: int = 0
    already_present: int = 0
    replaced: int = 0
    superseded: int = 0
    conflicts: int = 0


def write_rows(spark: SparkSession, lake: Lake, contract: Contract, rows: DataFrame) -> tuple[Counts, DataFrame]:
    """Writes a batch of valid rows (contract's columns, provenance, ``_modified``, ``_raw``), which the caller has cached.

    Returns the counts and the conflicting rows, with ``_refusal``. The caller holds the table's lock."""
    table = create_table(spark, lake, contract)
    ranked = with_rank_in_key(rows, contract)
    names = spark_schema(contract).names
    winners = ranked.where("_rank = 1").select(*names)
    if contract.repeated_key == "replace":
        return _overwrite(lake, contract, ranked, winners), rows.limit(0).withColumn("_refusal", F.lit(None))
    touched = _touched_partitions(rows, contract)
    stored = table.toDF().alias("old") if touched is None else table.toDF().alias("old").where(touched)
    if stored.isEmpty():
        _append(lake, contract, winners)
    else:
        _merge(table, contract, winners, touched)
    return _classify(DeltaTable.forPath(spark, lake.storage.uri(*lake.table(contract.table))).toDF(), contract, rows, touched)


def _append(lake: Lake, contract: Contract, winners: DataFrame) -> None:
    # Rebalancing gives each partition few files of even size, whatever the partitions of the batch were.
    hints = [quote_name(name) for name in contract.partition_by]
    even = winners.hint("rebalance", *hints) if hints else winners.hint("rebalance")
    even.write.format("delta").mode("append").save(lake.storage.uri(*lake.table(contract.table)))


def _merge(table: DeltaTable, contract: Contract, winners: DataFrame, touched: Expr | None) -> None:
    same = _same_key(contract, "old", "new")
    if touched is not None:
        # Delta prunes partitions by literals alone; a join on the partition columns reads the whole table.
        same = touched & same
    table.alias("old").merge(winners.alias("new"), same).whenNotMatchedInsertAll().execute()


def _same_key(contract: Contract, old: str, new: str) -> Expr:
    key = contract.key or ("_source", "_position")
    condition = F.lit(True)
    for name in key:
        condition &= F.col(f"{old}.{quote_name(name)}") == F.col(f"{new}.{quote_name(name)}")
    return condition


def _touched_partitions(rows: DataFrame, contract: Contract) -> Expr | None:
    """A condition on the stored rows (``old``) that names, as literals, the partitions that a batch touches; None for all."""
    if not contract.partition_by:
        return None
    values = rows.select(*map(quote_name, contract.partition_by)).distinct().limit(MAX_LITERALS + 1).collect()
    if len(values) > MAX_LITERALS or not values:
        return None
    condition = F.lit(False)
    for row in values:
        equal = F.lit(True)
        for name in contract.partition_by:
            equal &= F.col(f"old.{quote_name(name)}") == F.lit(row[name])
        condition |= equal
    return condition


def _classify(stored: DataFrame, contract: Contract, rows: DataFrame, touched: Expr | None) -> tuple[Counts, DataFrame]:
    """Says of each row what became of it, from the table alone: so a retry says the same."""
    old = stored.alias("old") if touched is None else stored.alias("old").where(touched)
    joined = rows.alias("new").join(old, _same_key(contract, "old", "new"), "left")
    own = (F.col("old._source") == F.col("new._source")) & (F.col("old._position") == F.col("new._position"))
    fate = (
        F.when(own, "written")
        .when(F.col("old._content_hash") == F.col("new._content_hash"), "already_present")
        .otherwise("conflict")
    )
    judged = joined.select(
        "new.*",
        F.concat(F.col("old._source"), F.lit(":"), F.col("old._position")).alias("_stored"),
        fate.alias("_fate"),
    )
    found = {row["_fate"]: row["count"] for row in judged.groupBy("_fate").count().collect()}
    counts = Counts(
        written=found.get("written", 0),
        already_present=found.get("already_present", 0),
        conflicts=found.get("conflict", 0),
    )
    key = ", ".join(contract.key) or "_source, _position"
    refusal = F.struct(F.lit(key).alias("column"), F.lit("conflict").alias("rule"),
                       F.concat(F.lit("stored from "), F.col("_stored")).alias("value"))  # fmt: skip
    return counts, judged.where("_fate = 'conflict'").withColumn("_refusal", refusal).drop("_stored", "_fate")


def _overwrite(lake: Lake, contract: Contract, ranked: DataFrame, winners: DataFrame) -> Counts:
    """A side table becomes what the batch says; within the batch the newest of a key stands."""
    uri = lake.storage.uri(*lake.table(contract.table))
    winners.hint("rebalance").write.format("delta").mode("overwrite").save(uri)
    found = ranked.select(F.count_if(F.col("_rank") == 1).alias("won"), F.count("*").alias("all")).first()
    assert found is not None
    return Counts(written=found["won"], superseded=found["all"] - found["won"])
