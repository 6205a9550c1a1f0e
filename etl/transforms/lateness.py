"""Event time against the time at which a record was written: a row's alone, so that a replay judges alike."""

from __future__ import annotations

from pyspark.sql import DataFrame

from etl.transforms.sql import literal
from lakering.durations import parse_duration
from schemas import Contract
from schemas.expressions import quote_name

#: Upper bounds of a record's time less its event time, in seconds; in the order in which a histogram is shown.
BOUNDS = {"ahead": 0, "below 1 s": 1, "below 10 s": 10, "below 1 min": 60, "below 10 min": 600, "below 1 h": 3600,
          "below 1 day": 86400}  # fmt: skip
BEYOND = "a day and more"
BUCKETS = (*BOUNDS, BEYOND)
LATENESS = "_lateness"
#: What a row's source begins with where it is a topic's partition and no file.
TOPIC = "kafka:"


def with_time_limits(rows: DataFrame, contract: Contract, written: str) -> DataFrame:
    """Adds ``_lateness``, the histogram's bucket (null without an event time), and refuses rows that are valid but for the
    contract's ``late`` and ``future``. ``written`` is the column of the record's time, in nanoseconds."""
    if contract.event_time is None or contract.require(contract.event_time, "eventTime").type != "timestamp":
        return rows.selectExpr("*", f"CAST(NULL AS STRING) AS {LATENESS}")
    event = quote_name(contract.event_time)
    # Of a row that is refused already, columns may hold anything.
    seconds = f"if(_refusal IS NULL, ({written} div 1000 - unix_micros({event})) / 1e6D, NULL)"
    bounds = " ".join(f"WHEN _seconds < {bound} THEN {literal(name)}" for name, bound in BOUNDS.items())
    bucket = f"CASE WHEN _seconds IS NULL THEN NULL {bounds} ELSE {literal(BEYOND)} END AS {LATENESS}"
    limits = []
    if contract.late is not None:
        limits.append(f"WHEN _seconds > {parse_duration(contract.late)} THEN {_refusal('late', contract.event_time)}")
    if contract.future is not None:
        limits.append(f"WHEN -_seconds > {parse_duration(contract.future)} THEN {_refusal('future', contract.event_time)}")
    refusal = f"CASE {' '.join(limits)} ELSE _refusal END AS _refusal" if limits else "_refusal"
    others = [quote_name(name) for name in rows.columns if name != "_refusal"]
    return rows.selectExpr("*", f"{seconds} AS _seconds").selectExpr(*others, refusal, bucket)


def _refusal(rule: str, column: str) -> str:
    return f"named_struct('column', {literal(column)}, 'rule', '{rule}', 'value', CAST({quote_name(column)} AS STRING))"
