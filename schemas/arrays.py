"""Columns that hold many values in a cell: ``binary`` (bytes, such as an image) and arrays of numbers of one shape."""

from __future__ import annotations

from open_data_contract_standard.model import SchemaProperty

from lakering.documents import Document
from lakering.errors import nearest
from schemas.contract import Contract

At = tuple[str | int, ...]
BINARY = "binary"
#: Of the standard's logical type, what an array may hold; the first is the default.
ELEMENTS = {"number": ("double", "float"), "integer": ("bigint", "int")}
SPELLINGS = {"integer": "int", "long": "bigint"}


def is_nested(kind: str) -> bool:
    """Whether a column's type is one that nothing can be compared, ordered or told apart by."""
    return kind == BINARY or kind.startswith("array<")


def build_array_type(document: Document, item: SchemaProperty, at: At) -> str:
    """Spark's type of an array, such as ``array<float>``, out of the standard's ``items``."""
    if item.items is None:
        raise document.error(at, "key 'items' is missing: what the array holds, such as "
                                 "{logicalType: number, physicalType: float}")  # fmt: skip
    logical = item.items.logicalType or ""
    if logical not in ELEMENTS:
        raise document.error((*at, "items", "logicalType"), f"an array of {logical!r} is not supported")
    physical = (item.items.physicalType or ELEMENTS[logical][0]).lower()
    physical = SPELLINGS.get(physical, physical)
    if physical not in ELEMENTS[logical]:
        raise document.error((*at, "items", "physicalType"), f"physical type {item.items.physicalType!r} is no element of an "
                             f"array of {logical}s{nearest(physical, ELEMENTS[logical])}")  # fmt: skip
    kind = f"array<{physical}>"
    if (item.physicalType or "array").lower().replace(" ", "") not in ("array", kind):
        raise document.error((*at, "physicalType"), f"physical type {item.physicalType!r} differs from items: {kind}")
    return kind


def validate_nested(contract: Contract, at: At) -> None:
    """Raises where a contract compares, orders, derives or leaves without a shape what it cannot."""
    uses = {"primaryKey": contract.key, "partitioned": contract.partition_by, "orderBy": (contract.order_by,)}
    for index, column in enumerate(contract.columns):
        where = (*at, "properties", index)
        is_array = column.type.startswith("array<")
        if is_array and column.shape is None:
            raise contract.document.error(where, "custom property 'shape' is missing: the array's lengths, such as [28, 28]")
        if column.shape is not None and not is_array:
            raise contract.document.error(where, f"custom property 'shape' belongs to an array, {column.name!r} is {column.type}")
        if not is_nested(column.type):
            continue
        if column.derived is not None:
            raise contract.document.error(where, f"a column of type {column.type} cannot be derived")
        for use, names in uses.items():
            if column.name in names:
                raise contract.document.error(where, f"column {column.name!r} is {column.type}: it cannot be in {use}")
