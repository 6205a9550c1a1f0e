"""What a contract calls Parquet's types."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

WHOLE = {"int8": "smallint", "int16": "smallint", "int32": "int", "int64": "bigint", "uint8": "smallint", "uint16": "int",
         "uint32": "bigint"}  # fmt: skip
ELEMENTS = {"float": "float", "double": "double", "int32": "int", "int64": "bigint"}
PLAIN = {"bool": "boolean", "float": "float", "double": "double", "halffloat": "float", "date32[day]": "date"}
#: A type that holds the values of both; what is not here is not mixed.
WIDER = {frozenset(pair): wider for pair, wider in {
    ("smallint", "int"): "int", ("smallint", "bigint"): "bigint", ("int", "bigint"): "bigint", ("float", "double"): "double",
}.items()}  # fmt: skip


def contract_type(kind: pa.DataType) -> str | None:
    """The contract's type of a Parquet column, None when a contract has none for it."""
    if pa.types.is_dictionary(kind):
        return contract_type(kind.value_type)
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})" if kind.precision <= 38 and kind.scale >= 0 else None
    if pa.types.is_timestamp(kind):
        return "timestamp"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "binary"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        element = ELEMENTS.get(str(kind.value_type))
        return f"array<{element}>" if element else None
    return WHOLE.get(str(kind)) or PLAIN.get(str(kind))


def texts_of(column: pa.ChunkedArray) -> list[str | None]:
    """A column's values as texts, for figures of them; bytes and arrays by their length."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", tz="UTC" if kind.tz else None), safe=False)
    elif pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        column = pc.list_value_length(column)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        column = pc.binary_length(column)
    texts: list[str | None] = column.cast(pa.string()).to_pylist()
    return texts


def widen(types: Counter[str]) -> str | None:
    """The one type that holds what columns of several files hold, None when there is none."""
    left = list(types)
    while len(left) > 1:
        wider = WIDER.get(frozenset(left[:2]))
        if wider is None:
            return None
        left[:2] = [wider]
    return left[0]
