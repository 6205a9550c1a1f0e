"""Ids of values: 0 is padding, 1 is null, then the buckets of unknown values, then the vocabulary learnt on train."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import reduce

from pyspark.sql import Column as Expr
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from recipes.settings import IdSettings

PADDING, NULL, FIRST_BUCKET = 0, 1, 2


def fit_vocabulary(train: DataFrame, settings: Mapping[str, IdSettings], texts: Collection[str] = ()) -> DataFrame:
    """Columns ``feature, value, count, id``: the values (strings) seen at least ``min_count`` times, the most frequent
    first, at most ``max_size`` of each feature. Of ``texts`` it is their words, each as often as it stands there. One pass
    for all features."""
    names = list(settings)
    pairs = [cell for place, name in enumerate(names) if name not in texts for cell in (F.lit(place), F.col(name))]
    parts = [train.select(F.stack(F.lit(len(pairs) // 2), *pairs).alias("_place", "value"))] if pairs else []
    parts += [train.select(F.lit(names.index(name)).alias("_place"), F.explode(f"{name}.words").alias("value")) for name in texts]
    values = reduce(DataFrame.unionAll, parts).where("value is not null")

    def setting(of: Callable[[IdSettings], int]) -> Expr:
        return F.array(*[F.lit(of(settings[name])) for name in names])[F.col("_place")]

    counts = values.groupBy("_place", "value").count().where(F.col("count") >= setting(lambda s: s.min_count))
    rank = F.row_number().over(Window.partitionBy("_place").orderBy(F.desc("count"), "value"))
    known = counts.withColumn("_rank", rank).where(F.col("_rank") <= setting(lambda s: s.max_size))
    feature = F.array(*map(F.lit, names))[F.col("_place")]
    first = setting(lambda s: FIRST_BUCKET + s.buckets)
    learnt = known.select(feature.alias("feature"), "value", "count", (first + F.col("_rank") - 1).cast("int").alias("id"))
    return learnt.repartition(1).sortWithinPartitions("feature", "id")


def with_ids(rows: DataFrame, vocabulary: DataFrame, settings: Mapping[str, IdSettings]) -> DataFrame:
    """Replaces each feature's value (string) by its id (int32)."""
    for name, ids in settings.items():
        known = vocabulary.where(F.col("feature") == name).select(F.col("value").alias(name), F.col("id").alias("_id"))
        bucket = F.lit(FIRST_BUCKET).cast("bigint") + F.pmod(F.xxhash64(name), F.lit(ids.buckets).cast("bigint"))
        value = F.when(F.col(name).isNull(), NULL).otherwise(F.coalesce(F.col("_id"), bucket.cast("int")))
        rows = rows.join(known, name, "left").withColumn(name, value.cast("int")).drop("_id")
    return rows


def num_ids(settings: IdSettings, vocabulary_size: int) -> int:
    return FIRST_BUCKET + settings.buckets + vocabulary_size
