"""What was known at a moment: running figures over values that become known, and expire, along a time line.

Every example is one row on the time line of its key; a value is a row that adds itself when it becomes known, and a row
that takes itself away when it leaves the window. A running sum over the line then holds, at each example, exactly the
values with ``moment - window < known <= moment``: O(n log n) for any number of windows, without a join on a range. The
line of a key is cut into buckets at least as long as the longest window, so that one key does not mean one task; a value
that lives across a cut is put into both buckets.

Sums are of 64-bit integers (see ``fixed_point``), so they do not depend on the order or partitioning of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

from pyspark.sql import Column as Expr
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

MOMENT = "_moment"


@dataclass(frozen=True)
class Stream:
    """Values as they became known.

    ``frame`` has the examples' key columns and ``known`` (bigint, microseconds); for sums ``number`` (bigint); for the
    latest value ``last``, a struct whose first field is ``known`` and whose next fields settle ties. ``windows`` maps
    lengths in microseconds to whether numbers are summed, beside being counted; ``last_within`` is how old, in
    microseconds, the latest value may be (exclusive)."""

    name: str
    frame: DataFrame
    windows: Mapping[int, bool] = field(default_factory=dict)
    last_within: int | None = None

    @property
    def longest(self) -> int:
        return max([*self.windows, self.last_within or 0])

    def count(self, window: int) -> str:
        return f"_{self.name}_n_{window}"

    def sum(self, window: int) -> str:
        return f"_{self.name}_s_{window}"

    @property
    def last(self) -> str:
        return f"_{self.name}_last"


def with_past(examples: DataFrame, keys: Sequence[str], streams: Sequence[Stream]) -> DataFrame:
    """Adds to each example (which has ``_moment``, bigint microseconds) its streams' columns ``count(window)``,
    ``sum(window)`` and ``last``. An example with a null in its key matches nothing: its columns are null."""
    width = 2 * max(stream.longest for stream in streams)
    moment = F.col(MOMENT)
    queries = examples.withColumns({"_bucket": _bucket(moment, width), "_time": moment, "_is_query": F.lit(1)})
    line = reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True),
                  [_line_of(stream, keys, width) for stream in streams], queries)  # fmt: skip
    past = Window.partitionBy(*keys, "_bucket").orderBy("_time", "_is_query").rowsBetween(Window.unboundedPreceding, Window.currentRow)
    matched = reduce(Expr.__and__, [F.col(key).isNotNull() for key in keys], F.lit(True))
    running: dict[str, Expr] = {}
    for stream in streams:
        for name in _sums(stream):
            running[name] = F.when(matched, F.coalesce(F.sum(name).over(past), F.lit(0).cast("bigint")))
        if stream.last_within is not None:
            newest = F.max(stream.last).over(past)
            running[stream.last] = F.when(matched & (newest["known"] > moment - stream.last_within), newest)
    # One select: each of several would be a window, and a pass, of its own.
    figured = line.select(*[c for c in line.columns if c not in running], *[e.alias(n) for n, e in running.items()])
    return figured.where("_is_query = 1").drop("_bucket", "_time", "_is_query")


def _line_of(stream: Stream, keys: Sequence[str], width: int) -> DataFrame:
    """The rows of one stream on the time line."""
    known, here = F.col("known"), _bucket(F.col("known"), width)
    crosses = {w: _bucket(known + w, width) != here for w in {*stream.windows, stream.last_within or 0}}

    def entry(bucket: Expr, time: Expr, signs: Mapping[int, Expr], carries: Expr) -> Expr:
        fields = [signs.get(w, F.lit(None).cast("bigint")).alias(str(w)) for w in stream.windows]
        return F.struct(bucket.alias("bucket"), time.alias("time"), *fields, carries.alias("carries"))

    one, minus, no = F.lit(1).cast("bigint"), F.lit(-1).cast("bigint"), F.lit(False)
    has_last = F.lit(stream.last_within is not None)
    begins = entry(here, known, {w: one for w in stream.windows}, has_last)
    lives_on = entry(here + width, known, {w: F.when(crosses[w], one) for w in stream.windows},
                     crosses[stream.last_within or 0] & has_last)  # fmt: skip
    ends = [entry(_bucket(known + w, width), known + w, {w: minus}, no) for w in stream.windows]
    entries = F.array_compact(F.array(begins, F.when(crosses[stream.longest], lives_on), *ends))
    rows = stream.frame.where(reduce(Expr.__and__, [F.col(key).isNotNull() for key in keys], known.isNotNull()))
    rows = rows.withColumn("_entry", F.explode(entries))
    columns = {stream.count(w): F.col(f"_entry.{w}") for w in stream.windows}
    columns |= {stream.sum(w): F.col(f"_entry.{w}") * F.col("number") for w, summed in stream.windows.items() if summed}
    if stream.last_within is not None:
        columns[stream.last] = F.when(F.col("_entry.carries"), F.col("last"))
    return rows.select(*keys, F.col("_entry.bucket").alias("_bucket"), F.col("_entry.time").alias("_time"),
                       F.lit(0).alias("_is_query"), *[column.alias(name) for name, column in columns.items()])  # fmt: skip


def _sums(stream: Stream) -> list[str]:
    return [stream.count(w) for w in stream.windows] + [stream.sum(w) for w, summed in stream.windows.items() if summed]


def _bucket(time: Expr, width: int) -> Expr:
    """The start of the bucket that a time lies in; in whole numbers, since a quotient in doubles rounds at the cuts."""
    return time - F.pmod(time, F.lit(width).cast("bigint"))


def micros(columns: Iterable[Expr]) -> Expr:
    """The greatest of timestamps or dates, as microseconds since 1970; null when one of them is."""
    times = [F.unix_micros(column.cast("timestamp")) for column in columns]
    whole = reduce(Expr.__and__, [time.isNotNull() for time in times])
    return F.when(whole, F.greatest(*times) if len(times) > 1 else times[0])


def fixed_point(greatest: float | None, count: int) -> float:
    """The scale, a power of two, at which the sum of ``count`` numbers up to ``greatest`` stays below 2^61.

    Whole numbers are kept exactly (while their sum allows); of others, the error is below ``greatest * count / 2^61``."""
    if not greatest or not count:
        return 1.0
    return math.ldexp(1.0, max(-1000, min(1000, 61 - math.frexp(float(greatest) * count)[1])))


def at_scale(value: Expr, scale: float) -> Expr:
    """A number as a 64-bit integer at a scale of ``fixed_point``."""
    return F.rint(value * scale).cast("bigint")


def finite(value: Expr) -> Expr:
    """The number as a double; null for NaN and infinities."""
    number = value.cast("double")
    return F.when(F.abs(number) < float("inf"), number)
