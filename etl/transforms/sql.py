"""Pieces of Spark SQL. Wide projections are written as text: a call for each function of each cell costs more than the cells."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterable
from typing import Any

from schemas.expressions import quote_name


def literal(value: Any) -> str:
    """A value as Spark SQL writes it."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | decimal.Decimal):
        return repr(value) if not isinstance(value, decimal.Decimal) else f"{value}BD"
    if isinstance(value, datetime.datetime):
        return f"TIMESTAMP '{value.isoformat(sep=' ')}'"
    if isinstance(value, datetime.date):
        return f"DATE '{value.isoformat()}'"
    # Spark would put the value of ${env:HOME} in place of that text, wherever in a statement it stands.
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\u0024{") + "'"


def literals(values: Iterable[Any]) -> str:
    return ", ".join(literal(value) for value in values)


def names(columns: Iterable[str]) -> str:
    return ", ".join(map(quote_name, columns))
