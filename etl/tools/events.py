"""Rows of a table as events: JSON that the table's contract accepts, and that says what the rows say."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.parse import ParsedRows
from etl.transforms.parsing import EXACT_JSON
from etl.transforms.sql import literal, literals
from schemas import Column, Contract
from schemas.expressions import quote_name

#: Of a null nothing is written: an event without the key says the same.
COMPACT = ("ignoreNullFields", "true", *EXACT_JSON[2:])


def events_of(parsed: ParsedRows, contract: Contract) -> DataFrame:
    """The valid rows as ``key`` (the contract's key as a JSON object, null without one), ``value`` (a JSON object of the
    source columns, nulls left out) and ``time`` (of the event; null if the contract has none), in order of that time, else
    of their files."""
    value = _json([f"{_written(column, contract)} AS {quote_name(column.name)}" for column in contract.source_columns])
    key = _json([quote_name(name) for name in contract.key]) if contract.key else "CAST(NULL AS STRING)"
    time = f"CAST({quote_name(contract.event_time)} AS TIMESTAMP)" if contract.event_time else "CAST(NULL AS TIMESTAMP)"
    rows = parsed.valid.selectExpr(f"{key} AS key", f"{value} AS value", f"{time} AS time", "_source", "_position")
    return rows.orderBy(F.col("time").asc_nulls_last(), "_source", "_position").select("key", "value", "time")


def _json(columns: list[str]) -> str:
    return f"to_json(struct({', '.join(columns)}), map({literals(COMPACT)}))"


def _written(column: Column, contract: Contract) -> str:
    """A value as the contract reads it from JSON: the format that read a timestamp writes it again."""
    value, dialect = quote_name(column.name), contract.dialect
    if column.type != "timestamp" or dialect.timestamp_format is None:
        return value
    local = f"from_utc_timestamp({value}, {literal(dialect.timestamp_zone)})" if dialect.timestamp_zone else value
    return f"date_format({local}, {literal(dialect.timestamp_format)})"
