"""Which rows become examples: what is predicted of them, when, and with what weight."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column as Expr
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.transforms.point_in_time import MOMENT, finite, micros

DROPPED = "_dropped"
#: Why a row became no example, in the order in which it is judged.
REASONS = ("where", "no_moment", "no_label", "unknown_class", "no_weight", "label_known_before", "no_image")


def with_prediction(rows: DataFrame, *, label: Expr, moment: Expr, where: Expr | None, weight: Expr | None,
                    label_known: Sequence[str], classes: Sequence[str] = ()) -> DataFrame:  # fmt: skip
    """Adds ``label`` (and ``weight``) as float32, ``_moment`` in microseconds, and ``_dropped``: null for an example, else
    one of ``REASONS``. A row whose label was already known at the moment is no prediction. With ``classes`` the label is the
    number of the one that its value names as a text, and -1 for any other."""
    if classes:
        label = F.array_position(F.array(*map(F.lit, classes)), label.cast("string")) - 1
    values = {"label": _float32(label), MOMENT: micros([moment])}
    if weight is not None:
        values["weight"] = F.when(finite(weight) >= 0, _float32(weight))
    known = micros([F.col(name) for name in label_known]) if label_known else F.lit(None).cast("bigint")
    rows = rows.withColumns({**values, "_where": where if where is not None else F.lit(True), "_label_known": known})
    reason = (
        F.when(~F.coalesce(F.col("_where"), F.lit(False)), "where")
        .when(F.col(MOMENT).isNull(), "no_moment")
        .when(F.col("label").isNull(), "no_label")
        .when(F.col("label") < 0 if classes else F.lit(False), "unknown_class")
        .when(F.col("weight").isNull() if weight is not None else F.lit(False), "no_weight")
        .when(F.col("_label_known") <= F.col(MOMENT), "label_known_before")
    )
    return rows.withColumn(DROPPED, reason).drop("_where", "_label_known")


def _float32(value: Expr) -> Expr:
    """A finite float32, or null: a double beyond float32's range would become infinite."""
    number = finite(value).cast("float")
    return F.when(F.abs(number) < float("inf"), number)


def to_feature(value: Expr) -> Expr:
    """A number as a float32 feature; NaN and infinities stay, to be counted (see ``statistics.clean``)."""
    return value.cast("double").cast("float")
