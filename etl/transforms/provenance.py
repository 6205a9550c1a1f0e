"""What every row carries of where it came from, and a hash of what it says."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from etl.transforms.sql import literal
from lakering.names import fingerprint
from schemas import Contract
from schemas.contract import MODIFIED, PROVENANCE
from schemas.expressions import quote_name

#: Greater numbers, and negative ones, are of 16 digits in hexadecimal.
MAX_15_DIGITS = 0xFFF_FFFF_FFFF_FFFF


def with_content_hash(rows: DataFrame, contract: Contract) -> DataFrame:
    """Adds ``_content_hash``: 128 bits over the typed values of the source columns, by name, nulls left out.

    So CSV and JSON agree, and a new nullable column changes nothing. Two chains of xxHash64 from different seeds, in which
    each value stands behind a number for its column's name; over rows with as many columns MD5 of their texts took half of
    an ingest."""
    columns = sorted(contract.source_columns, key=lambda column: column.name)
    values = [quote_name(column.name) for column in columns]
    numbers = [f"{int(fingerprint(column.name, length=15), 16)}L" for column in columns]
    pairs = ", ".join(f"if({value} IS NULL, NULL, {number}), {value}" for value, number in zip(values, numbers, strict=True))
    # Columns of their own: named four times below, they would else be worked out four times.
    halves = {f"_half_{seed}": F.expr(f"xxhash64({literal(seed)}, {pairs})") for seed in ("first", "second")}
    # Padded where there is need: to pad every row took longer than to hash it.
    digits = ", ".join(f"if({half} BETWEEN 0 AND {MAX_15_DIGITS}, lpad(hex({half}), 16, '0'), hex({half}))" for half in halves)
    return rows.withColumns(halves).withColumn(PROVENANCE[2], F.expr(f"unhex(concat({digits}))")).drop(*halves)


def with_rank_in_key(rows: DataFrame, contract: Contract, within: tuple[str, ...] = ()) -> DataFrame:
    """Adds ``_rank``: 1 for the row of its key that stands. Of a ``keep`` table it is the lowest by source and position, of a
    ``replace`` table the newest (``newest_last``). ``within`` are functions of the key that rows are sorted by first: numbers
    are compared faster than the key, and rows that lie together by them are not moved again."""
    if contract.repeated_key == "keep":
        order = [F.col("_source"), F.col("_position")]
    else:
        order = [F.col(quote_name(name)).desc_nulls_last() for name in newest_last(contract)]
    key = list(dict.fromkeys(quote_name(name) for name in (*within, *key_of(contract))))
    return rows.withColumn("_rank", F.row_number().over(Window.partitionBy(*key).orderBy(*order)))


def newest_last(contract: Contract) -> tuple[str, ...]:
    """The columns by which of two rows of a ``replace`` table's key the newer is told; no two rows are alike in all."""
    return (*([contract.order_by] if contract.order_by else []), MODIFIED, "_source", "_position")


def key_of(contract: Contract) -> tuple[str, ...]:
    """The contract's key; without one, where a row came from is its key."""
    return contract.key or ("_source", "_position")
