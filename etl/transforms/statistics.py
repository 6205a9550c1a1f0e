"""Figures of float columns that do not depend on the order or partitioning of rows.

Counts and extremes are exact, sums are made in fixed point, quantiles are exact over all rows, or over the sample of
rows with the smallest hashes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.sql import Column as Expr
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.transforms.point_in_time import at_scale, finite, fixed_point
from etl.transforms.row_ids import ROW_ID
from etl.transforms.splits import SPLIT, uniform

QUANTILES = {f"p{share:02d}": share / 100 for share in (1, 5, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 95, 99)}
SAMPLE_ROWS = 200_000


@dataclass(frozen=True)
class Moments:
    """Of one column in one split: values that are there, nulls, NaNs and infinities (which count as nulls), extremes,
    and the sums of ``x - centre`` and of its square."""

    count: int
    nulls: int
    not_finite: int
    min: float
    max: float
    centre: float
    sum1: float
    sum2: float

    @property
    def mean(self) -> float:
        return self.centre + self.sum1 / self.count if self.count else 0.0

    def filled(self, value: float) -> Moments:
        """The same column with its nulls filled."""
        if not self.nulls:
            return self
        low, high = (min(self.min, value), max(self.max, value)) if self.count else (value, value)
        away = value - self.centre
        return Moments(self.count + self.nulls, 0, self.not_finite, low, high, self.centre,
                       self.sum1 + self.nulls * away, self.sum2 + self.nulls * away * away)  # fmt: skip

    def figures(self) -> dict[str, float]:
        """Count, mean, std (of the population), min, max."""
        if not self.count:
            return {"count": 0}
        variance = self.sum2 / self.count - (self.sum1 / self.count) ** 2
        return {"count": self.count, "mean": self.mean, "std": math.sqrt(max(variance, 0.0)), "min": self.min, "max": self.max}

    def indicator_figures(self) -> dict[str, float]:
        """The same of the column's indicator: 1 where it is null."""
        total = self.count + self.nulls
        share = self.nulls / total
        return {"count": total, "mean": share, "std": (share * (1 - share)) ** 0.5,
                "min": float(self.nulls == total), "max": float(self.nulls > 0)}  # fmt: skip


def fit_moments(rows: DataFrame, names: Sequence[str]) -> dict[str, dict[str, Moments]]:
    """Moments by split and column, in two passes: extremes first, which give the sums their fixed point."""
    aggregates: list[Expr] = [F.count("*").alias("n")]
    for i, name in enumerate(names):
        value = finite(F.col(name))
        aggregates += [
            F.count(name).alias(f"c{i}"),
            F.count(value).alias(f"f{i}"),
            F.min(value).alias(f"a{i}"),
            F.max(value).alias(f"b{i}"),
        ]
    first = {row[SPLIT]: row for row in rows.groupBy(SPLIT).agg(*aggregates).collect()}
    centres, scales = {}, {}
    for i, name in enumerate(names):
        lows = [row[f"a{i}"] for row in first.values() if row[f"a{i}"] is not None]
        highs = [row[f"b{i}"] for row in first.values() if row[f"b{i}"] is not None]
        centre = (min(lows) + max(highs)) / 2 if lows else 0.0
        reach = max(highs) - centre if lows else 0.0
        total = sum(row["n"] for row in first.values())
        centres[name] = centre
        scales[name] = (fixed_point(reach, total), fixed_point(reach * reach, total))
    sums: list[Expr] = []
    for i, name in enumerate(names):
        away = finite(F.col(name)) - centres[name]
        sums += [
            F.sum(at_scale(away, scales[name][0])).alias(f"s{i}"),
            F.sum(at_scale(away * away, scales[name][1])).alias(f"q{i}"),
        ]
    second = {row[SPLIT]: row for row in rows.groupBy(SPLIT).agg(*sums).collect()} if sums else {}
    return {
        split: {
            name: Moments(row[f"f{i}"], row["n"] - row[f"f{i}"], row[f"c{i}"] - row[f"f{i}"],
                          _number(row[f"a{i}"]), _number(row[f"b{i}"]), centres[name],
                          _number(second[split][f"s{i}"]) / scales[name][0], _number(second[split][f"q{i}"]) / scales[name][1])
            for i, name in enumerate(names)
        }
        for split, row in first.items()
    }  # fmt: skip


def fit_quantiles(rows: DataFrame, names: Sequence[str], num_rows: int) -> dict[str, dict[str, float]]:
    """Quantiles of filled columns."""
    if num_rows > SAMPLE_ROWS:
        rows = rows.where(uniform(F.xxhash64(ROW_ID)) < SAMPLE_ROWS / num_rows)
    shares = F.array(*[F.lit(q) for q in QUANTILES.values()])
    found = rows.agg(*[F.percentile(name, shares).alias(f"q{i}") for i, name in enumerate(names)]).first()
    assert found is not None
    return {name: dict(zip(QUANTILES, found[f"q{i}"], strict=True)) for i, name in enumerate(names) if found[f"q{i}"]}


def float32(value: float) -> float:
    """The nearest float32, as a Python float."""
    return float(np.float32(value))


def fill_expressions(fills: Mapping[str, float], indicators: Sequence[str]) -> dict[str, Expr]:
    """Each column without nulls, as float32, and the indicator columns ``<name>_is_null`` (0 or 1)."""
    filled = {}
    for name, value in fills.items():
        number = finite(F.col(name))
        filled[name] = F.coalesce(number, F.lit(value)).cast("float")
        if name in indicators:
            filled[indicator(name)] = number.isNull().cast("float")
    return filled


def indicator(name: str) -> str:
    return f"{name}_is_null"


def _number(value: Any) -> float:
    return 0.0 if value is None else float(value)
