"""A data contract as the rest of the house sees it: a table's columns, types, key, partitions, rules and dialect."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lakering.documents import Document, read_document
from lakering.errors import nearest
from lakering.names import fingerprint
from schemas.expressions import Expression

#: Columns that every table carries besides the contract's own (see ``etl.transforms.provenance``).
PROVENANCE = ("_source", "_position", "_content_hash")
#: Of a ``replace`` table also when its file was modified (ns), by which the newer of two rows is told.
MODIFIED = "_modified"


@dataclass(frozen=True)
class Rule:
    """A value rule: ``name`` is one of minimum, maximum, exclusiveMinimum, exclusiveMaximum, minLength, maxLength,
    pattern, validValues."""

    name: str
    argument: Any


@dataclass(frozen=True)
class Column:
    """``type`` is Spark's: string, int, bigint, smallint, tinyint, double, float, decimal(p,s), boolean, date, timestamp,
    binary, array<float>, array<double>, array<int>, array<bigint>.

    An array has a ``shape``: it holds the product of its lengths of elements, row by row, none of them null.

    ``from_message`` says where a topic's message has the value, if not in its own value: key, timestamp, partition, offset or
    header:NAME."""

    name: str
    type: str
    required: bool = False
    rules: tuple[Rule, ...] = ()
    available_at: Literal["prediction", "outcome"] = "prediction"
    known_at: str | None = None
    derived: Expression | None = None
    shape: tuple[int, ...] | None = None
    #: Not shown, so that a contract without any has the fingerprint that it always had.
    from_message: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Dialect:
    """How the table's files write values."""

    delimiter: str = ","
    quote: str = '"'
    escape: str = '"'
    null_tokens: tuple[str, ...] = ("",)
    encoding: str = "UTF-8"
    multi_line: bool = False
    timestamp_format: str | None = None
    timestamp_zone: str | None = None
    extra_columns: Literal["refuse", "ignore"] = "refuse"


@dataclass(frozen=True)
class Contract:
    """One table. ``key`` and ``partition_by`` are names of columns; ``event_time`` is the column of the event's time. A row whose
    record was written more than ``late`` after its event time, or more than ``future`` before it, is refused (durations)."""

    table: str
    version: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    partition_by: tuple[str, ...]
    dialect: Dialect
    repeated_key: Literal["keep", "replace"]
    order_by: str | None
    event_time: str | None
    max_refused_share: float
    document: Document = field(repr=False, compare=False)
    late: str | None = None
    future: str | None = None

    @property
    def source_columns(self) -> tuple[Column, ...]:
        """The columns that files hold; the others are derived from them."""
        return tuple(column for column in self.columns if column.derived is None)

    @property
    def message_columns(self) -> tuple[Column, ...]:
        """The columns that a topic's messages hold beside their value."""
        return tuple(column for column in self.columns if column.from_message is not None)

    @property
    def of_message_values(self) -> Contract:
        """What of the contract is about the values of a topic's messages."""
        columns = tuple(column for column in self.columns if column.from_message is None)
        return self if len(columns) == len(self.columns) else replace(self, columns=columns)

    @property
    def derived_columns(self) -> tuple[Column, ...]:
        """The derived columns, each after the ones that it reads."""
        known = {column.name for column in self.source_columns}
        waiting = [column for column in self.columns if column.derived is not None]
        ordered: list[Column] = []
        while waiting:
            ready = [c for c in waiting if c.derived and c.derived.columns <= known]
            if not ready:
                names = ", ".join(column.name for column in waiting)
                raise self.document.error((), f"derived columns {names} read each other in a circle")
            ordered += ready
            known |= {column.name for column in ready}
            waiting = [column for column in waiting if column.name not in known]
        return tuple(ordered)

    @property
    def fingerprint(self) -> str:
        """Names everything in the contract that decides what a row becomes."""
        places = {column.name: column.from_message for column in self.message_columns}
        return fingerprint([self.table, self.version, [repr(c) for c in self.columns], self.key, self.partition_by,
                            repr(self.dialect), self.repeated_key, self.order_by, self.event_time,
                            *([self.late, self.future] if self.late or self.future else []),
                            *([places] if places else [])])  # fmt: skip

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)

    def require(self, name: str, what: str) -> Column:
        """The column of this name, or an error that says who asked for it."""
        column = self.column(name)
        if column is None:
            raise self.document.error((), f"{what} names column {name!r}, which table '{self.table}' does not have"
                                          + nearest(name, [c.name for c in self.columns]))  # fmt: skip
        return column

    def reads(self, name: str, *, until: Collection[str] = ()) -> set[str]:
        """A column and all that it is derived from, directly or not; not what the columns of ``until`` are derived from."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            column = self.require(waiting.pop(), "an expression")
            if column.name not in found and column.derived is not None and column.name not in until:
                waiting += column.derived.columns
            found.add(column.name)
        return found

    def is_outcome(self, name: str) -> bool:
        """Whether a column is an outcome, itself or through what it is derived from."""
        return any(self.require(read, "an expression").available_at == "outcome" for read in self.reads(name))


def read_contract(path: str | os.PathLike[str]) -> Contract:
    """Reads an ODCS v3 contract. Raises InputError when the file is missing, SettingError when it is wrong or lacks what
    this project needs; both name file and line."""
    from schemas.odcs import build_contract

    return build_contract(read_document(path))
