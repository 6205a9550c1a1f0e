"""From cells to typed rows: a cell is accepted only if its text says exactly what its type holds."""

from __future__ import annotations

import re

from pyspark.sql import Column as Expr
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.transforms.parsing import cell, kind
from schemas import Column, Contract, Dialect, Rule
from schemas.expressions import quote_name

#: ``\z`` and not ``$``, which in Java holds before a last line end too.
DECIMAL_TEXT = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\z"
ISO_TIMESTAMP = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"
ZONE = r"(Z|[+-][0-9]{2}:[0-9]{2})\z"
INTEGERS = ("tinyint", "smallint", "int", "bigint")
JSON_KINDS = {"boolean": "BOOLEAN", "string": "STRING", "date": "STRING", "timestamp": "STRING"}
JSON_NUMBER = r"^(BIGINT|DOUBLE|FLOAT|DECIMAL.*)$"
MAX_VALUE_CHARS = 1000


def with_typed_columns(cells: DataFrame, contract: Contract) -> DataFrame:
    """Adds the contract's columns, typed, and ``_refusal`` (struct of column, rule, value; null for a good row).

    The first thing wrong is named, in the contract's column order: structure, type, null, then value rules. Columns of a
    refused row may be null."""
    typed = cells
    derived = {column.name: column for column in contract.derived_columns}
    texts = {column.name: F.col(cell(column.name)) for column in contract.source_columns}
    typed = typed.withColumns({c.name: _typed(texts[c.name], c, contract.dialect) for c in contract.source_columns})
    for name, column in derived.items():
        assert column.derived is not None
        typed = typed.withColumn(name, F.expr(column.derived.sql).cast(column.type))
    has_kinds = kind(contract.source_columns[0].name) in cells.columns
    reasons = [F.when(F.col("_fault").isNotNull(), _refusal(None, F.col("_fault.rule"), F.col("_fault.value")))]
    for column in contract.columns:
        reasons += _reasons(column, has_kinds, column.name in contract.partition_by)
    kept = [name for name in cells.columns if not name.startswith(("_cell_", "_kind_", "_fault"))]
    return typed.select(*kept, *[c.name for c in contract.columns], F.coalesce(*reasons).alias("_refusal"))


def _refusal(column: str | None, rule: Expr, value: Expr) -> Expr:
    return F.struct(
        F.lit(column).cast("string").alias("column"),
        rule.alias("rule"),
        F.substring(F.make_valid_utf8(value.cast("string")), 1, MAX_VALUE_CHARS).alias("value"),
    )


def _reasons(column: Column, has_kinds: bool, partitions: bool) -> list[Expr]:
    value, reasons = F.col(quote_name(column.name)), []
    if column.derived is None:
        text = F.col(cell(column.name))
        if has_kinds:
            right = F.col(kind(column.name))
            right = right == JSON_KINDS[column.type] if column.type in JSON_KINDS else right.rlike(JSON_NUMBER)
            reasons.append(F.when(text.isNotNull() & ~right, _refusal(column.name, F.lit("type"), text)))
        if column.type != "string":
            reasons.append(F.when(text.isNotNull() & value.isNull(), _refusal(column.name, F.lit("type"), text)))
    if column.required:
        reasons.append(F.when(value.isNull(), _refusal(column.name, F.lit("null"), F.lit(None))))
    if partitions and column.type == "string":
        # In a partition's path, Spark writes an empty text as a null.
        reasons.append(F.when(value == "", _refusal(column.name, F.lit("null"), value)))
    for rule in column.rules:
        reasons.append(F.when(~_holds(value, rule, column.type), _refusal(column.name, F.lit(rule.name), value)))
    return reasons


def _typed(text: Expr, column: Column, dialect: Dialect) -> Expr:
    """The value that a text says, or null when it says something else."""
    kind_ = column.type
    if kind_ == "string":
        return text
    value = text.try_cast(kind_)
    if kind_ in INTEGERS or kind_ == "date":
        # What is written back must be what was read: no '+5', '007', '5.0', '2013' for a date.
        return F.when(value.cast("string") == text, value)
    if kind_ == "boolean":
        return F.when(text.isin("true", "false"), value)
    if kind_ in ("double", "float"):
        finite = ~F.isnan(value) & (F.abs(value) != F.lit(float("inf")))
        return F.when(text.rlike(DECIMAL_TEXT) & finite, value)
    if kind_.startswith("decimal"):
        precision, scale = map(int, re.findall(r"\d+", kind_))
        exact = rf"^-?(0|[1-9][0-9]{{0,{max(precision - scale - 1, 0)}}})" + (rf"(\.[0-9]{{1,{scale}}})?\z" if scale else r"\z")
        return F.when(text.rlike(exact), value)
    return _timestamp(text, dialect)


def _timestamp(text: Expr, dialect: Dialect) -> Expr:
    """An instant. A text without a zone needs the contract's ``timestampZone``."""
    if dialect.timestamp_format is not None:
        moment = F.try_to_timestamp(text, F.lit(dialect.timestamp_format))
        return F.to_utc_timestamp(moment, dialect.timestamp_zone) if dialect.timestamp_zone else moment
    moment = text.try_cast("timestamp")
    zoned = F.when(text.rlike(ISO_TIMESTAMP + ZONE), moment)
    if dialect.timestamp_zone is None:
        return zoned
    return F.coalesce(zoned, F.when(text.rlike(ISO_TIMESTAMP + r"\z"), F.to_utc_timestamp(moment, dialect.timestamp_zone)))


def _holds(value: Expr, rule: Rule, type_: str) -> Expr:
    """Whether a rule holds; null (which ``required`` judges) holds."""
    bound = F.lit(rule.argument).cast(type_) if type_ in ("date", "timestamp") else F.lit(rule.argument)
    if rule.name == "minimum":
        held = value >= bound
    elif rule.name == "maximum":
        held = value <= bound
    elif rule.name == "exclusiveMinimum":
        held = value > bound
    elif rule.name == "exclusiveMaximum":
        held = value < bound
    elif rule.name == "minLength":
        held = F.length(value) >= rule.argument
    elif rule.name == "maxLength":
        held = F.length(value) <= rule.argument
    elif rule.name == "pattern":
        held = value.rlike(rf"\A(?:{rule.argument})\z")
    else:
        held = value.isin(list(rule.argument))
    return F.coalesce(held, F.lit(True))
