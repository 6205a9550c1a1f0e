"""What every row carries of where it came from, and a hash of what it says."""

from __future__ import annotations

from pyspark.sql import Column as Expr
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from schemas import Column, Contract
from schemas.contract import PROVENANCE
from schemas.expressions import quote_name


def with_content_hash(rows: DataFrame, contract: Contract) -> DataFrame:
    """Adds ``_content_hash``: 128 bits (MD5) over the typed values of the source columns, by name, nulls left out.

    So CSV and JSON agree, and a new nullable column changes nothing. Each value stands with its length, so that no two
    rows can be written alike."""
    parts = [_canonical(column) for column in sorted(contract.source_columns, key=lambda column: column.name)]
    return rows.withColumn(PROVENANCE[2], F.unhex(F.md5(F.concat_ws("", *parts))))


def _canonical(column: Column) -> Expr:
    value = F.col(quote_name(column.name))
    text = F.unix_micros(value).cast("string") if column.type == "timestamp" else value.cast("string")
    return F.concat(F.lit(f"{column.name}="), F.length(text).cast("string"), F.lit(":"), text, F.lit(";"))


def with_rank_in_key(rows: DataFrame, contract: Contract) -> DataFrame:
    """Adds ``_rank``: 1 for the row of its key that stands. Of a ``keep`` table it is the lowest by source and position,
    of a ``replace`` table the newest by ``orderBy``, else by file time, source and position."""
    if contract.repeated_key == "keep":
        order = [F.col("_source"), F.col("_position")]
    else:
        newest = [F.col(quote_name(contract.order_by)).desc_nulls_last()] if contract.order_by else []
        order = [*newest, F.col("_modified").desc(), F.col("_source").desc(), F.col("_position").desc()]
    key = [quote_name(name) for name in contract.key] or ["_source", "_position"]
    return rows.withColumn("_rank", F.row_number().over(Window.partitionBy(*key).orderBy(*order)))
