"""Which columns tell a table's rows apart, as far as a sample can say."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from etl.infer.columns import Column

Codes = npt.NDArray[np.int64]
MAX_COLUMNS = 4
#: More columns than these, the likeliest, are not tried: the number of sets grows with their fourth power.
MAX_CANDIDATES = 16
FIRST_LOOK = 2000
ID_NAME = re.compile(r"(?i:(^|_)(id|uuid|guid|key|code|no|nr|num|number|ref)$|^id_)|[a-z](Id|ID|Key|Code|No)$")
#: What a column costs as part of a key: the cheapest set that is unique is taken. Not what is measured, but what names.
COSTS = {"id": 1, "timestamp": 2, "date": 2, "string": 3, "int": 4, "bigint": 4, "smallint": 4}
LONG_TEXT = 100


@dataclass(frozen=True)
class Key:
    """A candidate: ``sure`` says in words how far it is to be trusted."""

    columns: tuple[str, ...]
    sure: str


def infer_key(columns: Sequence[Column], texts: dict[str, Sequence[str | None]], *, is_whole: bool) -> Key | None:
    """The likeliest smallest set of at most four columns without nulls whose values are never the same in two rows.

    Rows that repeat another wholly count once: ingest takes them for the same row."""
    rows = _distinct_rows([texts[column.name] for column in columns])
    candidates = sorted((_cost(column), place, column) for place, column in enumerate(columns) if _may_name(column))
    chosen = [(cost, place, column, *_codes(texts[column.name], rows)) for cost, place, column in candidates[:MAX_CANDIDATES]]
    sets = [found for size in range(1, MAX_COLUMNS + 1) for found in itertools.combinations(chosen, size)]
    sets.sort(key=lambda found: (sum(part[0] for part in found), len(found), sorted(part[1] for part in found)))
    for found in sets:
        if _is_unique(found, FIRST_LOOK) and _is_unique(found, len(rows)):
            named = tuple(part[2] for part in sorted(found, key=lambda part: part[1]))
            chance = len(rows) * (len(rows) - 1) / 2 * float(np.prod([_chance(part[3]) for part in found]))
            return Key(tuple(column.name for column in named), _sure(named, chance, len(rows), is_whole))
    return None


def _distinct_rows(columns: Sequence[Sequence[str | None]]) -> npt.NDArray[np.int64]:
    """The places of rows that no earlier row equals wholly."""
    first: dict[tuple[str | None, ...], int] = {}
    for place, row in enumerate(zip(*columns, strict=True)):
        first.setdefault(row, place)
    return np.fromiter(first.values(), np.int64, len(first))


def _may_name(column: Column) -> bool:
    return (column.required and column.type in COSTS and column.distinct > 1
            and not (column.type == "string" and column.high > LONG_TEXT))  # fmt: skip


def _cost(column: Column) -> int:
    return COSTS["id"] if ID_NAME.search(column.name) else COSTS[column.type]


def _codes(texts: Sequence[str | None], rows: npt.NDArray[np.int64]) -> tuple[Codes, int]:
    numbers: dict[str | None, int] = {}
    codes = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), np.int64, len(texts))
    return codes[rows], len(numbers)


def _is_unique(found: Sequence[tuple[int, int, Column, Codes, int]], first: int) -> bool:
    together, size = np.zeros(min(first, len(found[0][3])), np.int64), 1
    for *_, codes, number in found:
        if size * number >= 2**62:
            _, together = np.unique(together, return_inverse=True)
            size = len(together)
        together = together * number + codes[:first]
        size *= number
    return len(np.unique(together)) == len(together)


def _chance(codes: Codes) -> float:
    """That two rows taken at random hold the same value."""
    shares = np.bincount(codes) / len(codes)
    return float((shares**2).sum())


def _sure(columns: Sequence[Column], chance: float, rows: int, is_whole: bool) -> str:
    seen = f"no two of {rows:,} rows have the same"
    if len(columns) == 1 and columns[0].type in ("timestamp", "date"):
        words = f"DOUBTFUL: {seen}, but a time rarely names a row; of two rows of one instant the second would be refused"
    elif len(columns) == 1:
        named = ID_NAME.search(columns[0].name)
        words = f"LIKELY: {seen}, and it is named like an id" if named else f"POSSIBLE: {seen}, though it is not named like an id"
    elif chance >= 10:
        words = f"LIKELY: {seen}; values as varied as these would by chance repeat about {chance:,.0f} times"
    else:
        words = f"DOUBTFUL: {seen}, but in so few rows that may be chance"
    return words if is_whole else f"{words}. Rows beyond the sample may repeat it"
