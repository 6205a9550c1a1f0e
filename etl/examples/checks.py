"""What a feature may read: names that exist, and nothing that is known only after the moment of prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from lakering.documents import Document, Path_
from lakering.errors import LakeringError, SettingError, nearest
from schemas import Column, Contract
from schemas.expressions import Expression, parse_expression

Value = TypeVar("Value")
WHOLE_NUMBERS = ("tinyint", "smallint", "int", "bigint")


class Checker:
    """Checks names and expressions of a recipe; every error names file and line."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def error(self, at: Path_, message: str) -> SettingError:
        return self.document.error(at, message)

    def known(self, name: str, names: Mapping[str, Value], what: str, at: Path_) -> Value:
        if name not in names:
            raise self.error(at, f"{what} {name!r} is not there{nearest(name, names)}")
        return names[name]

    def column(self, name: str, contract: Contract, at: Path_, *, outcomes: bool = True) -> Column:
        """The column of a table; with ``outcomes=False`` one that is an outcome is refused."""
        column = contract.column(name)
        if column is None:
            raise self.error(
                at,
                f"table '{contract.table}' has no column {name!r}{nearest(name, [c.name for c in contract.columns])}",
            )
        if not outcomes and contract.is_outcome(name):
            raise self.error(
                at,
                f"column {name!r} of table '{contract.table}' is an outcome: at the moment of prediction it is not "
                "known yet. Take it out" + _remedy(contract, name),
            )
        return column

    def expression(self, text: str, contract: Contract, at: Path_, *, outcomes: bool = True) -> Expression:
        try:
            parsed = parse_expression(text)
        except LakeringError as error:
            raise self.error(at, error.message) from None
        for name in sorted(parsed.columns):
            self.column(name, contract, at, outcomes=outcomes)
        return parsed

    def kind(self, column: Column, kind: str, at: Path_) -> None:
        """Bytes and arrays can be taken as what they are alone, and nothing else as them."""
        fits = "array" if column.type.startswith("array<") else "image" if column.type == "binary" else None
        if fits and kind != fits:
            raise self.error(at, f"column {column.name!r} is {column.type}: take it as it is (as: {fits})")
        if kind == "text" and column.type != "string":
            raise self.error(at, f"column {column.name!r} is {column.type}: a text is a column of strings")
        if kind in ("array", "image") and not fits:
            wanted = "of type array, with a shape" if kind == "array" else "of bytes (physicalType: binary)"
            raise self.error(at, f"column {column.name!r} is {column.type}: an {kind} is a column {wanted} in its contract")

    def same_type(self, left: Contract, name: str, right: Contract, other: str, at: Path_) -> None:
        """Keys of two kinds never match, or match by a cast that nobody asked for."""
        kinds = [self.column(name, left, at).type, self.column(other, right, at).type]
        if kinds[0] != kinds[1] and not all(kind in WHOLE_NUMBERS for kind in kinds):
            raise self.error(
                at, f"{left.table}.{name} is {kinds[0]} and {right.table}.{other} is {kinds[1]}: they cannot be joined"
            )

    def known_columns(self, contract: Contract, names: Iterable[str], at: Path_, *, required: bool = True) -> tuple[str, ...]:
        """The columns the greatest of which tells when a value that reads ``names`` is known: ``knownAt`` of its
        outcomes; if it reads none, the table's event time. Not ``required``: an empty answer instead of an error."""
        outcomes = [name for name in names if contract.is_outcome(name)]
        found: set[str] = set()
        waiting = list(dict.fromkeys(outcomes))
        for name in waiting:
            column = self.column(name, contract, at)
            if column.known_at is not None:
                found.add(column.known_at)
            elif column.available_at == "outcome" and required:
                raise self.error(
                    at,
                    f"column {name!r} of table '{contract.table}' is an outcome without knownAt: when it is known "
                    "nobody can tell, so no feature may use it. Give it knownAt in its contract",
                )
            elif column.derived is not None:
                waiting += [read for read in column.derived.columns if contract.is_outcome(read) and read not in waiting]
        if outcomes or not required:
            return tuple(sorted(found))
        if contract.event_time is None:
            raise self.error(at, f"table '{contract.table}' has no eventTime, so no window can be laid over it")
        self.column(contract.event_time, contract, at, outcomes=False)
        return (contract.event_time,)


def _remedy(contract: Contract, name: str) -> str:
    column = contract.column(name)
    if column is not None and column.known_at is not None:
        return f", or use it over the past: {{aggregate: {name}, by: [...], window: 3 hours, functions: [avg]}}"
    return ""
