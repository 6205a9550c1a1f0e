"""Row ids: an int64 hash of a row's key, the same wherever and however often the row is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyspark.sql import Column as Expr
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from lakering.errors import IntegrityError
from schemas.expressions import quote_name

ROW_ID = "row_id"
MAX_ROUNDS = 1000
Hash = Callable[[Sequence[Expr]], Expr]


def xxhash64(columns: Sequence[Expr]) -> Expr:
    return F.xxhash64(*columns)


def with_row_ids(rows: DataFrame, key: Sequence[str], hash_of: Hash = xxhash64) -> DataFrame:
    """Adds ``row_id``. Of the rows whose keys collide the first, in key order, keeps its hash; the others are hashed again
    with a counter, until no two are alike.

    Raises IntegrityError when two rows have the same key."""
    columns = [F.col(quote_name(name)) for name in key]
    rows = rows.withColumns({ROW_ID: hash_of(columns), "_round": F.lit(0)})
    for _ in range(MAX_ROUNDS):
        if rows.groupBy(ROW_ID).count().where("count > 1").isEmpty():
            return rows.drop("_round")
        # Who was there in an earlier round stays, so a row that moved never pushes another.
        rank = F.row_number().over(Window.partitionBy(ROW_ID).orderBy("_round", *columns))
        rows = rows.withColumn("_round", F.col("_round") + F.when(rank > 1, 1).otherwise(0))
        again = hash_of([*columns, F.col("_round")])
        rows = rows.withColumn(ROW_ID, F.when(F.col("_round") == 0, F.col(ROW_ID)).otherwise(again)).localCheckpoint()
    raise IntegrityError(f"after {MAX_ROUNDS} rounds two rows still share a row_id: is ({', '.join(key)}) unique?")
