"""From cells to typed rows: a cell is accepted only if its text says exactly what its type holds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.transforms.parsing import PLACE, cell, kind
from etl.transforms.sql import literal, literals
from schemas import Column, Contract, Dialect, Rule
from schemas.expressions import quote_name

#: ``\\z`` and not ``$``, which in Java holds before a last line end too.
DECIMAL_TEXT = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\z"
ISO_TIMESTAMP = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"
ZONED_TIMESTAMP = ISO_TIMESTAMP + r"(Z|[+-][0-9]{2}:[0-9]{2})\z"
PLAIN_TIMESTAMP = ISO_TIMESTAMP + r"\z"
#: One character class, which no length of text can make Java's matcher recurse on.
ARRAY_TEXT = r"^\s*\[[-+0-9.eE,\s]*\]\s*\z"
INTEGERS = ("tinyint", "smallint", "int", "bigint")
JSON_KINDS = {"boolean": "BOOLEAN", "string": "STRING", "date": "STRING", "timestamp": "STRING", "binary": "STRING"}
JSON_NUMBER = r"^(BIGINT|DOUBLE|FLOAT|DECIMAL.*)$"
MAX_VALUE_CHARS = 1000
COMPARISONS = {"minimum": "<", "maximum": ">", "exclusiveMinimum": "<=", "exclusiveMaximum": ">="}


@dataclass(frozen=True)
class Check:
    """What is wrong with a row, when ``condition`` holds: a rule of a column, and the SQL of the value to be shown."""

    column: str
    rule: str
    condition: str
    shown: str


def with_typed_columns(cells: DataFrame, contract: Contract) -> DataFrame:
    """The contract's columns, typed, and ``_refusal`` (struct of column, rule, value; null for a good row), with ``PLACE`` and
    ``_raw``.

    The first thing wrong is named, in the contract's column order: structure, type, null, then value rules. Columns of a
    refused row may hold anything."""
    kinds = dict(cells.dtypes)
    typed = cells.selectExpr(
        "*", *[f"{_typed(c, kinds, contract.dialect)} AS {quote_name(c.name)}" for c in contract.source_columns]
    )
    for column in contract.derived_columns:
        assert column.derived is not None
        typed = typed.withColumn(column.name, F.expr(column.derived.sql).cast(column.type))
    checks = [check for column in contract.columns for check in _checks(column, kinds, column.name in contract.partition_by)]
    first = " ".join(f"WHEN {check.condition} THEN {number}" for number, check in enumerate(checks, start=1))
    columns = [quote_name(column.name) for column in contract.columns]
    # A number first: of a good row nothing of what follows is worked out, and the code stays small enough to be compiled.
    judged = typed.selectExpr("*", f"CASE WHEN _fault IS NOT NULL THEN 0 {first} END AS _check")
    return judged.selectExpr(*PLACE, "_raw", *columns, f"if(_check IS NULL, NULL, {_refusal(checks)}) AS _refusal")


def _refusal(checks: list[Check]) -> str:
    shown = list(dict.fromkeys(check.shown for check in checks))
    place = f"get(array({literals([0] + [shown.index(check.shown) for check in checks])}), _check)"
    column = f"get(array({literals([None] + [check.column for check in checks])}), _check)"
    rule = f"get(array({literals(['', *(check.rule for check in checks)])}), _check)"
    value = f"if(_check = 0, _fault_value, get(array({', '.join(shown)}), {place}))" if shown else "_fault_value"
    return (f"named_struct('column', CAST({column} AS STRING), 'rule', if(_check = 0, _fault, {rule}), "
            f"'value', substring(make_valid_utf8({value}), 1, {MAX_VALUE_CHARS}))")  # fmt: skip


def _checks(column: Column, kinds: dict[str, str], partitions: bool) -> list[Check]:
    value = quote_name(column.name)
    held = kinds.get(cell(column.name))
    text = quote_name(cell(column.name)) if held == "string" else f"CAST({value} AS STRING)"
    shown = "CAST(NULL AS STRING)" if column.type == "binary" or column.type.startswith("array<") else text
    found = []
    if column.derived is None and held == "string":
        if kind(column.name) in kinds:
            found.append(("type", f"{text} IS NOT NULL AND NOT {_is_json_kind(column)}"))
        if column.type != "string":
            again = f" OR CAST({value} AS STRING) <> {text}" if column.type in INTEGERS or column.type == "date" else ""
            found.append(("type", f"{text} IS NOT NULL AND ({value} IS NULL{again})"))
    if column.shape is not None:
        whole = math.prod(column.shape)
        found.append(("shape", f"size({value}) <> {whole}"))
        finite = "" if column.type in ("array<int>", "array<bigint>") else " OR isnan(e) OR abs(e) = double('Infinity')"
        found.append(("type", f"exists({value}, e -> e IS NULL{finite})"))
    if column.required:
        found.append(("null", f"{value} IS NULL"))
    if partitions and column.type == "string":
        # In a partition's path, Spark writes an empty text as a null.
        found.append(("null", f"{value} = ''"))
    found += [(rule.name, _breaks(value, rule, column.type)) for rule in column.rules]
    nothing = "CAST(NULL AS STRING)"
    return [Check(column.name, rule, condition, nothing if rule == "null" else shown) for rule, condition in found]


def _is_json_kind(column: Column) -> str:
    name = quote_name(kind(column.name))
    if column.type.startswith("array<"):
        return f"startswith({name}, 'ARRAY')"
    if column.type in JSON_KINDS:
        return f"{name} = {literal(JSON_KINDS[column.type])}"
    return f"{name} RLIKE {literal(JSON_NUMBER)}"


def _typed(column: Column, kinds: dict[str, str], dialect: Dialect) -> str:
    """The value that a cell says; null, or a value that does not write itself so again, when it says something else."""
    type_, text = column.type, quote_name(cell(column.name))
    if type_ == "string" or kinds[cell(column.name)] == type_:
        return text
    value = f"try_cast({text} AS {type_})"
    if type_ in INTEGERS or type_ == "date":
        return value  # compared with the text when it is judged: no '+5', '007', '5.0', '2013' for a date
    if type_ == "boolean":
        return f"CASE {text} WHEN 'true' THEN true WHEN 'false' THEN false END"
    if type_ in ("double", "float"):
        return (
            f"if({text} RLIKE {literal(DECIMAL_TEXT)}, nullif(nullif({value}, {type_}('Infinity')), {type_}('-Infinity')), NULL)"
        )
    if type_.startswith("decimal"):
        precision, scale = map(int, re.findall(r"\d+", type_))
        exact = rf"^-?(0|[1-9][0-9]{{0,{max(precision - scale - 1, 0)}}})" + (rf"(\.[0-9]{{1,{scale}}})?\z" if scale else r"\z")
        return f"if({text} RLIKE {literal(exact)}, {value}, NULL)"
    if type_ == "binary":
        return f"try_to_binary({text}, 'base64')"
    if type_.startswith("array<"):
        wide = "array<bigint>" if type_ in ("array<int>", "array<bigint>") else "array<double>"
        parsed = f"from_json({text}, {literal(wide)})"
        return f"if({text} RLIKE {literal(ARRAY_TEXT)}, transform({parsed}, e -> try_cast(e AS {type_[6:-1]})), NULL)"
    return _timestamp(text, dialect)


def _timestamp(text: str, dialect: Dialect) -> str:
    """An instant. A text without a zone needs the contract's ``timestampZone``."""
    zone = literal(dialect.timestamp_zone)
    if dialect.timestamp_format is not None:
        moment = f"try_to_timestamp({text}, {literal(dialect.timestamp_format)})"
        return f"to_utc_timestamp({moment}, {zone})" if dialect.timestamp_zone else moment
    moment = f"try_cast({text} AS TIMESTAMP)"
    zoned = f"WHEN {text} RLIKE {literal(ZONED_TIMESTAMP)} THEN {moment}"
    plain = f"WHEN {text} RLIKE {literal(PLAIN_TIMESTAMP)} THEN to_utc_timestamp({moment}, {zone})"
    return f"CASE {zoned} {plain if dialect.timestamp_zone else ''} END"


def _breaks(value: str, rule: Rule, type_: str) -> str:
    """Whether a value breaks a rule; null (which ``required`` judges) breaks none."""
    bound = literal(rule.argument) if rule.name != "validValues" else ""
    if rule.name in COMPARISONS:
        return f"{value} {COMPARISONS[rule.name]} " + (f"{type_} {bound}" if type_ in ("date", "timestamp") else bound)
    if rule.name in ("minLength", "maxLength"):
        return f"length({value}) {'<' if rule.name == 'minLength' else '>'} {bound}"
    if rule.name == "pattern":
        return f"NOT {value} RLIKE {_whole(rule.argument)}"
    cast = f"{type_} " if type_ in ("date", "timestamp") else ""
    return f"NOT {value} IN ({', '.join(cast + literal(v) for v in rule.argument)})"


def _whole(pattern: str) -> str:
    return literal(rf"\A(?:{pattern})\z")


def pattern_probe(contract: Contract) -> str | None:
    """A query that Spark refuses to plan when a pattern or the timestamp format means nothing to Java; None without any."""
    patterns = [rule.argument for column in contract.columns for rule in column.rules if rule.name == "pattern"]
    probes = [f"'' RLIKE {_whole(pattern)}" for pattern in patterns]
    if contract.dialect.timestamp_format is not None:
        probes.append(f"try_to_timestamp('2000-01-01', {literal(contract.dialect.timestamp_format)})")
    return f"SELECT {', '.join(probes)}" if probes else None
