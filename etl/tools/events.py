"""Rows of a table as events: JSON that the table's contract accepts, and that says what the rows say."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.parse import ParsedRows
from etl.transforms.parsing import EXACT_JSON, INSTANT_TEXT
from etl.transforms.sql import literal, literals
from lakering.errors import SettingError
from schemas import Column, Contract
from schemas.expressions import quote_name
from schemas.messages import HEADER

NO_HEADERS = "CAST(array() AS array<struct<key:string,value:binary>>)"
#: Of a null nothing is written: an event without the key says the same.
COMPACT = ("ignoreNullFields", "true", *EXACT_JSON[2:])


def events_of(parsed: ParsedRows, contract: Contract) -> DataFrame:
    """The valid rows as ``key`` (the column that is the message's key; without one the contract's key as a JSON object, null
    without that too), ``value`` (a JSON object of the source columns, nulls left out), ``headers`` (of columns that are a
    header, nulls left out) and ``time`` (of the event; null if the contract has none), in order of that time, else of their
    files.

    Raises SettingError for columns that the broker fills."""
    columns = contract.of_message_values.source_columns
    value = _json([f"{_written(column, contract)} AS {quote_name(column.name)}" for column in columns])
    key = _json([quote_name(name) for name in contract.key]) if contract.key else "CAST(NULL AS STRING)"
    headers = []
    for column in contract.message_columns:
        place = str(column.from_message)
        if place == "key":
            key = _text(column, contract)
        elif place.startswith(HEADER):
            name, text = literal(place.removeprefix(HEADER)), _text(column, contract)
            headers.append(f"named_struct('key', {name}, 'value', CAST({text} AS BINARY))")
        else:
            text = f"column '{column.name}' of table '{contract.table}' is the {place} of a message; the broker sets it"
            raise SettingError(text, next_step=f"take fromMessage out of {contract.document.path}, or fill the topic otherwise")
    sent = f"filter(array({', '.join(headers)}), h -> h.value IS NOT NULL)" if headers else NO_HEADERS
    time = f"CAST({quote_name(contract.event_time)} AS TIMESTAMP)" if contract.event_time else "CAST(NULL AS TIMESTAMP)"
    rows = parsed.valid.selectExpr(
        f"{key} AS key", f"{value} AS value", f"{sent} AS headers", f"{time} AS time", "_source", "_position"
    )
    return rows.orderBy(F.col("time").asc_nulls_last(), "_source", "_position").select("key", "value", "headers", "time")


def _json(columns: list[str]) -> str:
    return f"to_json(struct({', '.join(columns)}), map({literals(COMPACT)}))"


def _written(column: Column, contract: Contract) -> str:
    """A value as the contract reads it from JSON: the format that read a timestamp writes it again."""
    value, dialect = quote_name(column.name), contract.dialect
    if column.type != "timestamp" or dialect.timestamp_format is None:
        return value
    local = f"from_utc_timestamp({value}, {literal(dialect.timestamp_zone)})" if dialect.timestamp_zone else value
    return f"date_format({local}, {literal(dialect.timestamp_format)})"


def _text(column: Column, contract: Contract) -> str:
    """A value as the contract reads it from a key or a header: a text, or the bytes that it is."""
    value = quote_name(column.name)
    if column.type == "binary":
        return value
    if column.type.startswith("array<"):
        return f"to_json({value})"
    if column.type == "timestamp" and contract.dialect.timestamp_format is None:
        return f"date_format({value}, {literal(INSTANT_TEXT)})"
    return f"CAST({_written(column, contract)} AS STRING)"
