"""From cells to typed rows: a cell is accepted only if its text says exactly what its type holds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.transforms.parsing import PLACE, cell, kind, wrong
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
#: Beyond these years neither Python nor pandas holds a date, and every reader would stumble.
YEARS = {"date": ("DATE '0001-01-01'", "DATE '9999-12-31'"),
         "timestamp": ("TIMESTAMP '0001-01-01 00:00:00Z'", "TIMESTAMP '9999-12-31 23:59:59.999999Z'")}  # fmt: skip
#: What Spark writes for a null in a partition's path, and the longest name that a file system takes.
NULL_PARTITION, MAX_NAME_BYTES = "__HIVE_DEFAULT_PARTITION__", 255
#: What is written as %XX in a partition's path.
ESCAPED_IN_PATH = r"""[\x01-\x1f"#%'*/:=?\\\x7f{\[\]^]"""
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
    nothing = "CAST(NULL AS STRING)"
    shown = nothing if column.type == "binary" or (column.type.startswith("array<") and held != "string") else text
    found = []
    if wrong(column.name) in kinds:
        found.append(("utf8" if column.type == "string" else "type", quote_name(wrong(column.name))))
    if column.derived is None and held == "string":
        if kind(column.name) in kinds:
            found.append(("type", f"{text} IS NOT NULL AND NOT {_is_json_kind(column)}"))
        if column.type != "string":
            again = ""
            if column.type in INTEGERS:
                again = f" OR octet_length({text}) <> {num_digits(value)}"
            elif column.type == "date":
                again = f" OR CAST({value} AS STRING) <> {text}"
            found.append(("type", f"{text} IS NOT NULL AND ({value} IS NULL{again})"))
    if column.shape is not None:
        whole = math.prod(column.shape)
        found.append(("shape", f"size({value}) <> {whole}"))
        finite = "" if column.type in ("array<int>", "array<bigint>") else " OR isnan(e) OR abs(e) = double('Infinity')"
        found.append(("type", f"exists({value}, e -> e IS NULL{finite})"))
    if column.type in YEARS:
        first, last = YEARS[column.type]
        found.append(("type", f"{value} < {first} OR {value} > {last}"))
    if column.required:
        found.append(("null", f"{value} IS NULL"))
    if partitions and column.type == "string":
        # In a partition's path, Spark writes an empty text as a null, and one that is written as a null is read as one.
        found.append(("null", f"{value} IN ('', {literal(NULL_PARTITION)})"))
        found.append(("partition", _unfit_for_path(column.name)))
    found += [(rule.name, _breaks(value, rule, column.type)) for rule in column.rules]
    return [Check(column.name, rule, condition, nothing if rule == "null" else shown) for rule, condition in found]


def num_digits(value: str) -> str:
    """The length of an integer's shortest text. A text that says the integer and is as short is that text."""
    digits = " ".join(f"WHEN {value} < 1{'0' * n} THEN {n}" for n in range(1, 5))
    negative = " ".join(f"WHEN {value} > -1{'0' * n} THEN {n + 1}" for n in range(1, 4))
    written = f"octet_length(CAST({value} AS STRING))"
    return f"if({value} < 0, CASE {negative} ELSE {written} END, CASE {digits} ELSE {written} END)"


def _unfit_for_path(name: str) -> str:
    """Whether a text cannot be the name of a partition's folder: it holds a NUL, or is too long."""
    value, room = quote_name(name), MAX_NAME_BYTES - len(name) - 1
    in_path = f"regexp_replace({value}, {literal(ESCAPED_IN_PATH)}, '%00')"
    return f"contains({value}, '\\0') OR (octet_length({value}) > {room // 3} AND octet_length({in_path}) > {room})"


def _is_json_kind(column: Column) -> str:
    name = quote_name(kind(column.name))
    if column.type.startswith("array<"):
        return f"startswith({name}, 'ARRAY')"
    if column.type in JSON_KINDS:
        return f"{name} = {literal(JSON_KINDS[column.type])}"
    return f"({name} = 'DOUBLE' OR {name} RLIKE {literal(JSON_NUMBER)})"


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
    moment = f"try_cast({text} AS TIMESTAMP)"
    if dialect.timestamp_format is not None:
        moment = f"try_to_timestamp({text}, {literal(dialect.timestamp_format)})"
    # Null for an hour that a change of the clocks left out: Java would take it for the next.
    instant = (
        f"if(from_utc_timestamp(to_utc_timestamp({moment}, {zone}), {zone}) = {moment}, to_utc_timestamp({moment}, {zone}), NULL)"
    )
    if dialect.timestamp_format is not None:
        return instant if dialect.timestamp_zone else moment
    # Most texts are told without a regular expression. Spark takes fields of one digit, and a part that is not said: with the
    # first signs and the last digit at their places there is room for neither.
    usual = (f"octet_length({text}) = 20 AND endswith({text}, 'Z') AND locate('-', {text}) = 5 AND locate(':', {text}) = 14 "
             f"AND substring({text}, 17, 1) = ':' AND substring({text}, 19, 1) BETWEEN '0' AND '9'")  # fmt: skip
    zoned = f"WHEN ({usual}) OR {text} RLIKE {literal(ZONED_TIMESTAMP)} THEN {moment}"
    plain = f"WHEN {text} RLIKE {literal(PLAIN_TIMESTAMP)} THEN {instant}"
    return f"CASE {zoned} {plain if dialect.timestamp_zone else ''} END"


def _breaks(value: str, rule: Rule, type_: str) -> str:
    """Whether a value breaks a rule; null (which ``required`` judges) breaks none."""
    if rule.name in COMPARISONS:
        return f"{value} {COMPARISONS[rule.name]} {_bound(rule.argument, type_)}"
    if rule.name in ("minLength", "maxLength"):
        return _breaks_length(value, int(rule.argument), is_least=rule.name == "minLength")
    if rule.name == "pattern":
        return f"NOT {value} RLIKE {_whole(rule.argument)}"
    return f"NOT {value} IN ({', '.join(_bound(argument, type_) for argument in rule.argument)})"


def _breaks_length(value: str, limit: int, is_least: bool) -> str:
    """As ``length`` says, but characters are counted where bytes, one to four of each, leave it open."""
    if is_least:
        return f"octet_length({value}) < {4 * limit} AND length({value}) < {limit}"
    return f"octet_length({value}) > {limit} AND length({value}) > {limit}"


def _bound(argument: Any, type_: str) -> str:
    """A rule's value, as the column holds it: a float that was written as 0.1 is not above 0.1."""
    if type_ in ("date", "timestamp"):
        return f"{type_} {literal(argument)}"
    return f"CAST({literal(argument)} AS FLOAT)" if type_ == "float" else literal(argument)


def _whole(pattern: str) -> str:
    return literal(rf"\A(?:{pattern})\z")


def pattern_probe(contract: Contract) -> str | None:
    """A query that fails when a pattern or the timestamp format means nothing to Java; None without any."""
    patterns = [rule.argument for column in contract.columns for rule in column.rules if rule.name == "pattern"]
    probes = [f"'' RLIKE {_whole(pattern)}" for pattern in patterns]
    if (written := contract.dialect.timestamp_format) is not None:
        again = f"try_to_timestamp(date_format(TIMESTAMP '2001-02-03 16:05:06', {literal(written)}), {literal(written)})"
        day = f"coalesce(CAST({again} AS DATE) BETWEEN DATE '2001-02-02' AND DATE '2001-02-04', false)"
        probes.append(f"assert_true({day}, {literal(f'timestampFormat {written!r} does not tell a day')})")
    return f"SELECT {', '.join(probes)}" if probes else None
