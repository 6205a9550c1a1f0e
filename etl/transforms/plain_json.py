"""JSON lines that need no parser: flat objects without a backslash, of which a cut at each quote tells everything.

Most lines are such, and Spark's parsers, of which an exact reading needs two, cost several times as much. What is taken
here is judged just as the parsers would have it; whatever is not wholly plain is left to them.
"""

from __future__ import annotations

import re

from pyspark.sql import DataFrame

from etl.transforms.parsing import BLANK, PLACE, cell
from etl.transforms.sql import literal
from etl.transforms.validation import INTEGERS, num_digits
from schemas import Column, Contract
from schemas.expressions import quote_name

#: The rule of a line that is not plain, and has to be read once more (``parsing.with_json_cells``).
NOT_PLAIN = "(not plain)"
STRINGS = ("string", "date", "timestamp", "binary")
#: The parsers allow longer strings, but none as long as this.
MAX_BYTES = 16_000_000
#: Control characters, which no JSON string holds as they are.
CONTROL = r"[\x00-\x1f]"
INTEGER = r"0|-?[1-9][0-9]{0,30}"


def with_plain_cells(lines: DataFrame, contract: Contract) -> DataFrame:
    """Of plain lines the cells: texts, and of numbers and booleans the values. Any other line has the fault ``NOT_PLAIN``.

    Cut at its quotes, a line without escapes is in turns what stands between strings and what stands in them. A column's name
    is found once; behind it stands a colon, and then either a string and what ends the pair, or a bare value with what ends
    it. These pieces belong to this column alone, so when they and the opening brace are all that there is, the line is these
    pairs and nothing else: no key twice, none that is not known."""
    columns = contract.source_columns
    is_whole = f"{is_clean('_raw')} AND NOT _raw RLIKE {literal(CONTROL)}"
    rows = lines.selectExpr("*", f"if({is_whole}, split(_raw, '\"', -1), NULL) AS _tokens")
    found = (f"CAST(array_position(_tokens, {literal(c.name)}) AS INT) AS {_of('at', c)}" for c in columns)
    rows = rows.selectExpr("*", "size(_tokens) AS _size", *found)
    rows = rows.selectExpr("*", *(f"trim(get(_tokens, {_of('at', c)})) AS {_of('after', c)}" for c in columns))
    rows = rows.selectExpr("*", *(f"{_bare(c)} AS {_of('bare', c)}" for c in columns if c.type not in STRINGS))
    rows = rows.selectExpr("*", *(f"{_value(column)} AS {quote_name(cell(column.name))}" for column in columns))
    used = " + ".join(_used(column) for column in columns)
    is_plain = f"coalesce(_size > 1 AND trim(get(_tokens, 0)) = '{{' AND 1 + {used} = _size, false)"
    fault = (f"CASE WHEN {is_plain} THEN if(is_valid_utf8(_raw), NULL, 'utf8') WHEN octet_length(trim(_raw)) = 0 "
             f"THEN {literal(BLANK)} ELSE {literal(NOT_PLAIN)} END AS _fault")  # fmt: skip
    cells = (quote_name(cell(column.name)) for column in columns)
    return rows.selectExpr(*PLACE, "_raw", fault, "CAST(NULL AS STRING) AS _fault_value", *cells)


def is_clean(text: str) -> str:
    """Whether a line has no escape, and a length that the parsers take. Its strings must hold nothing of ``CONTROL`` either."""
    return rf"octet_length({text}) < {MAX_BYTES} AND NOT contains({text}, '\\')"


def _of(what: str, column: Column) -> str:
    return quote_name(f"_{what}_{column.name}")


def _bare(column: Column) -> str:
    after = _of("after", column)
    return f"trim(substring({after}, 2, octet_length({after}) - 2))"


def _used(column: Column) -> str:
    """How many pieces are the column's; null when they are not as they have to be."""
    at, after = (_of(what, column) for what in ("at", "after"))
    if column.type in STRINGS:
        string = f"WHEN {after} = ':' AND trim(get(_tokens, {at} + 2)) = if({at} + 3 = _size, '}}', ',') THEN 4"
        is_fit = f"{_bare(column)} = 'null'"
    else:
        string, is_fit = "", fits(column, _of("bare", column))
    ends = f"startswith({after}, ':') AND endswith({after}, if({at} + 1 = _size, '}}', ','))"
    # Between strings stands no name.
    return f"CASE WHEN {at} = 0 THEN 0 WHEN {at} % 2 = 1 THEN NULL {string} WHEN {ends} AND ({is_fit}) THEN 2 END"


def _value(column: Column) -> str:
    if column.type in STRINGS:
        return f"if({_of('after', column)} = ':', get(_tokens, {_of('at', column)} + 1), NULL)"
    return typed_value(column, _of("bare", column))


def cell_type(column: Column) -> str:
    """What a plain cell is: a text where JSON has a string, else a value."""
    return "STRING" if column.type in STRINGS else column.type


def typed_value(column: Column, bare: str) -> str:
    """The value that a bare text says, if it ``fits``."""
    if column.type == "boolean":
        return f"CASE {bare} WHEN 'true' THEN true WHEN 'false' THEN false END"
    return f"try_cast({bare} AS {column.type})" if not column.type.startswith("array<") else f"CAST(NULL AS {column.type})"


def fits(column: Column, bare: str) -> str:
    """Whether a bare text is null, or one that the parsers take for what the cell holds. (They make a double of a number with a
    fraction: 0.0001 is 1.0E-4 to them, which is no decimal.)"""
    value, is_null = quote_name(cell(column.name)), f"{bare} = 'null'"
    if column.type in INTEGERS:
        return f"octet_length({bare}) = {num_digits(value)} OR {is_null}"  # its shortest text, so nothing but digits
    if column.type == "boolean":
        return f"{value} IS NOT NULL OR {is_null}"
    if column.type.startswith("array<"):
        return is_null
    forms = [INTEGER]
    if column.type == "double":
        forms.append(r"-?(0|[1-9][0-9]{0,15})\.[0-9]{1,20}")
    if column.type.startswith("decimal"):
        scale = int(re.findall(r"\d+", column.type)[1])
        if scale:
            forms.append(rf"(?!-?0\.000)-?(0|[1-9][0-9]{{0,6}})\.[0-9]{{1,{min(scale, 8)}}}")
    form = rf"\A({'|'.join(forms)})\z"
    return f"({value} IS NOT NULL AND {bare} RLIKE {literal(form)}) OR {is_null}"
