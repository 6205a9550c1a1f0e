"""JSON lines that need no parser: flat objects without a backslash, of which a cut at each quote tells everything.

Most messages are such, and Spark's parsers, of which an exact reading needs two, cost several times as much. What is taken
here is judged just as the parsers would have it; whatever is not wholly plain is left to them.
"""

from __future__ import annotations

import re

from pyspark.sql import DataFrame

from etl.transforms.sql import literal
from schemas import Column, Contract
from schemas.expressions import quote_name

#: The column that says whether a line is plain.
PLAIN = "_plain"
STRINGS = ("string", "date", "timestamp", "binary")
INTEGER = r"0|-?[1-9][0-9]{0,30}"
#: The parsers allow longer strings, but none as long as this.
MAX_BYTES = 16_000_000
#: Escapes, and control characters, which no JSON string holds as they are.
NOT_PLAIN = r"[\\\x00-\x1f]"


def plain_cell(name: str) -> str:
    """The column that holds a cell of a plain line."""
    return f"_plain_{name}"


def plain_kind(column: Column) -> str:
    """The JSON kind of a plain cell that is not null."""
    return "STRING" if column.type in STRINGS else "BOOLEAN" if column.type == "boolean" else "DOUBLE"


def with_plain_cells(lines: DataFrame, contract: Contract) -> DataFrame:
    """Adds ``_plain``, and of plain lines the cells.

    Cut at its quotes, a line without escapes is in turns what stands between strings and what stands in them. A column's name
    is found once; behind it stands a colon, and then either a string and what ends the pair, or a bare value with what ends
    it. These pieces belong to this column alone, so when they and the opening brace are all that there is, the line is these
    pairs and nothing else: no key twice, none that is not known."""
    columns = contract.source_columns
    may_be = f"octet_length(_raw) < {MAX_BYTES} AND NOT _raw RLIKE {literal(NOT_PLAIN)}"
    rows = lines.selectExpr("*", f"if({may_be}, split(_raw, '\"', -1), NULL) AS _tokens")
    found = (f"CAST(array_position(_tokens, {literal(c.name)}) AS INT) AS {_of('at', c)}" for c in columns)
    rows = rows.selectExpr("*", "size(_tokens) AS _size", *found)
    rows = rows.selectExpr("*", *(f"trim(get(_tokens, {_of('at', c)})) AS {_of('after', c)}" for c in columns))
    bare = (f"trim(substring({_of('after', c)}, 2, length({_of('after', c)}) - 2)) AS {_of('bare', c)}" for c in columns)
    rows = rows.selectExpr("*", *bare)
    used = " + ".join(_used(column) for column in columns)
    is_plain = f"coalesce(_size > 1 AND trim(get(_tokens, 0)) = '{{' AND 1 + {used} = _size, false) AS {PLAIN}"
    return rows.selectExpr(*lines.columns, is_plain, *(f"{_value(c)} AS {quote_name(plain_cell(c.name))}" for c in columns))


def _of(what: str, column: Column) -> str:
    return quote_name(f"_{what}_{column.name}")


def _used(column: Column) -> str:
    """How many pieces are the column's; null when they are not as they have to be."""
    at, after, bare = (_of(what, column) for what in ("at", "after", "bare"))
    string = ""
    if column.type in STRINGS:
        string = f"WHEN {after} = ':' AND trim(get(_tokens, {at} + 2)) = if({at} + 3 = _size, '}}', ',') THEN 4"
    form = _bare_form(column)
    fits = f"({bare} = 'null' OR {bare} RLIKE {literal(form)})" if form else f"{bare} = 'null'"
    ends = f"startswith({after}, ':') AND endswith({after}, if({at} + 1 = _size, '}}', ','))"
    # Between strings stands no name.
    return f"CASE WHEN {at} = 0 THEN 0 WHEN {at} % 2 = 1 THEN NULL {string} WHEN {ends} AND {fits} THEN 2 END"


def _bare_form(column: Column) -> str | None:
    """Bare values that the parsers hand on as they stand, or as another text of the same value. (They make a double of a number
    with a fraction: 0.0001 is 1.0E-4 to them, which is no decimal.)"""
    if column.type == "boolean":
        return r"\A(true|false)\z"
    if column.type in STRINGS or column.type.startswith("array<"):
        return None
    forms = [INTEGER]
    if column.type == "double":
        forms.append(r"-?(0|[1-9][0-9]{0,15})\.[0-9]{1,20}")
    if column.type.startswith("decimal"):
        scale = int(re.findall(r"\d+", column.type)[1])
        if scale:
            forms.append(rf"(?!-?0\.000)-?(0|[1-9][0-9]{{0,6}})\.[0-9]{{1,{min(scale, 8)}}}")
    return rf"\A({'|'.join(forms)})\z"


def _value(column: Column) -> str:
    at, after, bare = (_of(what, column) for what in ("at", "after", "bare"))
    if column.type in STRINGS:
        return f"if({after} = ':', get(_tokens, {at} + 1), NULL)"
    return f"if({at} = 0, NULL, nullif({bare}, 'null'))"
