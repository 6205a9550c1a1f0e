"""Columns whose values a topic's messages hold beside their own value."""

from __future__ import annotations

from lakering.errors import nearest
from schemas.contract import Contract

At = tuple[str | int, ...]
HEADER = "header:"
WHOLE = ("bigint", "int", "smallint", "tinyint")
#: What a place holds, as types of columns; None for texts and bytes, which may say a value of any type.
PLACES = {"key": None, "timestamp": ("timestamp",), "partition": WHOLE, "offset": WHOLE}


def validate_message_columns(contract: Contract, at: At) -> None:
    """Raises for a ``fromMessage`` that is no place in a message, or holds other values than its column."""
    for index, column in enumerate(contract.columns):
        place, where = column.from_message, (*at, "properties", index)
        if place is None:
            continue
        if place not in PLACES and (not place.startswith(HEADER) or place == HEADER):
            known = [*PLACES, "header:NAME"]
            raise contract.document.error(where, f"fromMessage {place!r} is no place in a message{nearest(place, known)}")
        if column.derived is not None:
            raise contract.document.error(where, "a column is derived or fromMessage, not both; take one of them out")
        types = PLACES.get(place)
        if types is not None and column.type not in types:
            raise contract.document.error(where, f"fromMessage {place!r} needs a column of type {' or '.join(types)}, "
                                                 f"{column.name!r} is {column.type}")  # fmt: skip
    if contract.message_columns and not contract.of_message_values.source_columns:
        raise contract.document.error(at, "every column is fromMessage, and none is left for the values of messages")
