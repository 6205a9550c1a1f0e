"""Expressions that people write in contracts and recipes: a small, safe part of Spark SQL.

An expression is parsed here, before Spark sees it. Only columns, literals, operators and the functions of
``schemas.grammar`` pass: nothing that reaches the JVM, reads a clock or a random source, or holds a query. Operators and
casts that would throw on a bad row (ANSI mode) are rewritten to their ``try_`` form: a row gets a null instead of
stopping the rows beside it, and the contract says what a null means. Texts are not numbers: where Spark would cast one
unasked (``text_column > 5``), write the cast.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Expression:
    """``text`` as written, ``sql`` as Spark is to run it, and the columns that it reads."""

    text: str
    sql: str
    #: Not shown: a set's order is another one in each process, and what is shown names builds.
    columns: frozenset[str] = field(repr=False)


def parse_expression(text: str) -> Expression:
    """Parses an expression. Raises SettingError that names the part that is not allowed, and the nearest that is."""
    # The parser takes 0.3 s to import: a job whose contracts hold no expression does not wait for it.
    from schemas.grammar import parse

    sql, columns = parse(text)
    return Expression(text, sql, columns)


def quote_name(name: str) -> str:
    """A column's name as SQL takes it."""
    return "`" + name.replace("`", "``") + "`"
