"""What a column's texts say of it: type, nulls, range, and what a person should know before using it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from etl.infer.notes import notes_on_text
from etl.infer.sample import Cells
from etl.infer.types import FORMATS, INTEGER, clock_of, infer_type, is_integer, parse_timestamp, patterns_of

NULL_TOKENS = ("", "NA", "N/A", "n/a", "null", "NULL", "None", "nan", "NaN", "-")
#: Words that are never values; others count as null once a column of numbers, dates or truths holds them.
PLAIN_NULLS = ("", "null", "NULL", "N/A", "n/a")
#: A whole number is an int while what was seen leaves it this much room to grow, else a bigint.
ROOM = 10
#: Texts of so few values, none longer, are told as a set.
MAX_VALUES, MAX_VALUE_LENGTH = 20, 40
CENTS = re.compile(r"-?[0-9]+\.[0-9]{2}")
WHOLE = ("smallint", "int", "bigint")
NOT_FINITE = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class Column:
    """A column as it is inferred. ``type`` is the contract's physical type; ``low`` and ``high`` are the extremes as
    written (of a string: its lengths); ``values`` are all values of a short set; ``notes`` are for a person; ``shape`` is
    an array's length; ``clock`` tells whether timestamps are zoned, local or either, ``pattern`` how they are written."""

    name: str
    num_rows: int
    nulls: int
    distinct: int
    examples: tuple[str, ...] = ()
    type: str = "string"
    low: Any = None
    high: Any = None
    values: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    shape: int | None = None
    clock: str | None = None
    pattern: str | None = None

    @property
    def required(self) -> bool:
        return self.nulls == 0

    @property
    def logical(self) -> str:
        """The standard's type."""
        if self.type.startswith("array"):
            return "array"
        if self.type in WHOLE:
            return "integer"
        if self.type in ("float", "double") or self.type.startswith("decimal"):
            return "number"
        return "string" if self.type == "binary" else self.type


def null_tokens(columns: dict[str, Cells]) -> dict[str, list[str]]:
    """Of CSV's columns: the tokens that mean null, each with the columns that hold it.

    A contract's null tokens are those of all its columns. So a word that may be a value (``NA`` is Namibia too) counts only
    where a column would be no text without it, or holds nothing else."""
    found: dict[str, list[str]] = {}
    for name, cells in columns.items():
        seen = Counter(cells.texts)
        others = [text for text in seen if text is not None and text not in NULL_TOKENS]
        means_null = not others or infer_type(others) is not None
        for token in NULL_TOKENS:
            if seen[token] and (means_null or token in PLAIN_NULLS):
                found.setdefault(token, []).append(name)
    return {token: found[token] for token in NULL_TOKENS if token in found}


def infer_column(name: str, cells: Cells, tokens: tuple[str, ...], pattern: str | None = None) -> Column:
    """One column; ``pattern`` is the table's one way to write timestamps, None for ISO."""
    values = Counter(text for text in cells.texts if text is not None and text not in tokens)
    column = Column(name, len(cells.texts), len(cells.texts) - values.total(), len(values),
                    tuple(text for text, _ in values.most_common(3)))  # fmt: skip
    if cells.declared is not None:
        return _declared(column, cells.declared, values)
    if not values:
        return replace(column, notes=("only nulls were seen, so its type is not known: string, until it is",))
    kind, notes = _type_of(values, cells.kinds)
    if kind is None and pattern is not None and pattern in patterns_of(values, FORMATS):
        return _with_figures(replace(column, type="timestamp", clock="local", pattern=pattern), values)
    if kind is None:
        more = () if cells.kinds else notes_on_text(name, values, [token for token in NULL_TOKENS if token not in tokens])
        return _with_figures(replace(column, notes=(*notes, *more)), values)
    return _with_figures(replace(column, type=kind, notes=notes, clock=_clock(values) if kind == "timestamp" else None), values)


def _clock(values: Counter[str]) -> str:
    clocks = {clock_of(text) for text in values}
    return "either" if len(clocks) > 1 else str(clocks.pop())


def _declared(column: Column, kind: str, values: Counter[str]) -> Column:
    """A column of Parquet. Of bytes and arrays the texts are lengths."""
    column = replace(column, type=kind)
    if kind == "binary":
        return replace(column, examples=())
    if column.logical == "array":
        lengths = sorted(map(int, values)) or [1]
        odd = f"arrays of {lengths[0]} to {lengths[-1]} values: those of another shape are refused"
        most = int(values.most_common(1)[0][0]) if values else 1
        return replace(column, examples=(), shape=most, notes=(odd,) if len(lengths) > 1 else ())
    if kind in ("float", "double") and (odd_values := sum(values.pop(text, 0) for text in NOT_FINITE)):
        column = replace(column, notes=(f"{odd_values:,} values are NaN or infinite: rows with them are refused",))
    if kind == "timestamp" and values:
        column = replace(column, clock="zoned" if all(text.endswith("Z") for text in values) else "local")
    return _with_figures(column, values)


def _type_of(values: Counter[str], kinds: Counter[str]) -> tuple[str | None, tuple[str, ...]]:
    """The type, None for a text, and notes. ``kinds`` are of JSON, which tells numbers from texts."""
    kind, main, notes = infer_type(values), kinds.most_common(1)[0][0] if kinds else None, []
    if len(kinds) > 1:
        counts = ", ".join(f"{count:,} {name}s" for name, count in kinds.most_common())
        notes.append(f"values of several kinds ({counts}): rows with another than the first are refused")
    if main == "string" and kind in ("boolean", "bigint", "double"):
        return None, (*notes, f"written in quotes: as {kind} these rows would be refused")
    if main == "number" and kind is None:
        return ("decimal(38,0)" if all(INTEGER.fullmatch(text) for text in values) else "double"), tuple(notes)
    if kind == "bigint":
        return ("int" if all(is_integer(text, 2**31 // ROOM) for text in values) else "bigint"), tuple(notes)
    if kind == "double" and all(CENTS.fullmatch(text) for text in values):
        digits = max(len(text.lstrip("-")) - 1 for text in values)
        notes.append(f"two decimals everywhere: if it is money, physicalType: decimal({max(10, digits + 2)},2) is exact")
    elif kind == "double" and all(text.endswith(".0") for text in values):
        notes.append("whole numbers written as 5.0: as int these rows would be refused")
    return kind, tuple(notes)


def _with_figures(column: Column, values: Counter[str]) -> Column:
    """The column with its extremes, and its values where they are few."""
    if not values or column.type == "boolean":
        return column
    if column.type == "string":
        lengths = [len(text) for text in values]
        few = len(values) <= MAX_VALUES and column.num_rows >= 2 * len(values) and max(lengths) <= MAX_VALUE_LENGTH
        return replace(column, low=min(lengths), high=max(lengths), values=tuple(sorted(values)) if few else ())
    by: Callable[[str], Any] = int if column.type in WHOLE else float
    if column.type == "date":
        by = str
    elif column.type == "timestamp":
        by = lambda text: parse_timestamp(text, column.pattern)  # noqa: E731
    return replace(column, low=min(values, key=by), high=max(values, key=by))
