"""Which split a row falls into: by its moment, or by a seeded hash."""

from __future__ import annotations

from pyspark.sql import Column as Expr
from pyspark.sql import functions as F

from etl.transforms.point_in_time import MOMENT
from recipes.settings import HashSplit, TimeSplit, parse_bound
from schemas.expressions import quote_name

SPLIT = "split"


def split_of(settings: TimeSplit | HashSplit, seed: int) -> Expr:
    """``train``, ``validation`` or ``test``; never null."""
    if isinstance(settings, TimeSplit):
        return (
            F.when(F.col(MOMENT) < _micros(settings.train), "train")
            .when(F.col(MOMENT) < _micros(settings.validation), "validation")
            .otherwise("test")
        )
    share = uniform(F.xxhash64(F.lit(seed), *[F.col(quote_name(name)) for name in settings.of]))
    return (
        F.when(share < settings.test, "test").when(share < settings.test + settings.validation, "validation").otherwise("train")
    )


def uniform(hashed: Expr) -> Expr:
    """A 64-bit hash as a double in [0, 1): its upper 53 bits."""
    return F.shiftrightunsigned(hashed, 11).cast("double") * 2.0**-53


def _micros(bound: str) -> Expr:
    return F.lit(int(parse_bound(bound).timestamp()) * 1_000_000).cast("bigint")
