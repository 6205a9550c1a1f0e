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
#: A bucket is this many times the longest window: of the values, this part lives across a cut and is put into two.
BUCKET_WINDOWS = 4


@dataclass(frozen=True)
class Stream:
    """Values as they became known.

    ``frame`` has the examples' key columns and ``known`` (bigint, microseconds); for sums ``number`` (bigint); for the
    latest value ``last``, a struct with a field ``known``, and ``tie`` (bigint), by which the last of several that became
    known together is told. ``windows`` maps
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
    width = BUCKET_WINDOWS * max(stream.longest for stream in streams)
    moment = F.col(MOMENT)
    queries = examples.withColumns({"_bucket": _bucket(moment, width), "_turn": moment * 2 + 1})
    line = reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True),
                  [_line_of(stream, keys, width) for stream in streams], queries)  # fmt: skip
    ties = ["_tie"] if any(stream.last_within is not None for stream in streams) else []
    # The bucket first: what rows are sorted by first is compared fastest, and keys are often few.
    past = Window.partitionBy("_bucket", *keys).orderBy("_turn", *ties).rowsBetween(Window.unboundedPreceding, Window.currentRow)
    matched = reduce(Expr.__and__, [F.col(key).isNotNull() for key in keys], F.lit(True))
    running: dict[str, Expr] = {}
    for stream in streams:
        for name in _sums(stream):
            running[name] = F.when(matched, F.coalesce(F.sum(name).over(past), F.lit(0).cast("bigint")))
        if stream.last_within is not None:
            newest = F.last(stream.last, ignorenulls=True).over(past)
            running[stream.last] = F.when(matched & (newest["known"] > moment - stream.last_within), newest)
    # One select: each of several would be a window, and a pass, of its own.
    figured = line.select(*[c for c in line.columns if c not in running], *[e.alias(n) for n, e in running.items()])
    return figured.where("_turn & 1 = 1").drop("_bucket", "_turn", "_tie")


def _line_of(stream: Stream, keys: Sequence[str], width: int) -> DataFrame:
    """The rows of one stream on the time line. ``_turn`` orders them: twice the time, one more for an example, so that
    what becomes known at the moment itself is seen."""
    known, windows, within = F.col("known"), list(stream.windows), stream.last_within
    here, one, none = _bucket(known, width), F.lit(1).cast("bigint"), F.lit(None).cast("bigint")

    def crosses(window: int) -> Expr:
        return _bucket(known + window, width) != here

    lives_on = F.when(crosses(stream.longest), here + width)
    rows = [
        [here, known, *[one] * len(windows), F.lit(within is not None)],
        [lives_on, known, *[F.when(crosses(w), one) for w in windows], crosses(within) if within is not None else F.lit(False)],
        *[[_bucket(known + w, width), known + w, *[-one if w == v else none for v in windows], F.lit(False)] for w in windows],
    ]
    signs = [stream.count(w) for w in windows]
    fields = [*keys, *(["number"] if any(stream.windows.values()) else []), *(["last", "tie"] if within is not None else [])]
    there = reduce(Expr.__and__, [F.col(key).isNotNull() for key in keys], known.isNotNull())
    stacked = F.stack(F.lit(len(rows)), *[cell for row in rows for cell in row]).alias("_bucket", "_time", *signs, "_carries")
    line = stream.frame.where(there).select(*fields, stacked).where("_bucket is not null")
    columns = {stream.sum(w): F.col(stream.count(w)) * F.col("number") for w, summed in stream.windows.items() if summed}
    if within is not None:
        columns |= {stream.last: F.when(F.col("_carries"), F.col("last")), "_tie": F.col("tie")}
    return line.select(*keys, "_bucket", (F.col("_time") * 2).alias("_turn"), *signs, *[c.alias(n) for n, c in columns.items()])


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
