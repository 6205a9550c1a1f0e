"""What a topic's message holds beside its value, as cells of the contract's columns."""

from __future__ import annotations

from pyspark.sql import DataFrame

from etl.transforms.parsing import cell, wrong
from etl.transforms.sql import literal
from schemas import Column, Contract
from schemas.expressions import quote_name
from schemas.messages import HEADER

#: What ``_file`` is of a message: its source, then what it holds beside its value; of columns whose names may begin alike.
MESSAGE_FILE = "named_struct('source', {0}source, 'key', {0}key, 'headers', {0}headers, 'timestamp', {0}timestamp) AS _file"


def with_message_cells(cells: DataFrame, contract: Contract) -> DataFrame:
    """Adds the cells of columns that are ``fromMessage``; ``_file`` is as ``MESSAGE_FILE`` has it, ``_row`` the offset. Keys and
    headers are texts, cast as those of CSV are, without its null tokens; a column of bytes takes them as they are."""
    added = [sql for column in contract.message_columns for sql in _cells(column)]
    return cells.selectExpr("*", *added) if added else cells


def _cells(column: Column) -> list[str]:
    place, name = str(column.from_message), quote_name(cell(column.name))
    if place == "timestamp":
        return [f"_file.timestamp AS {name}"]
    if place == "partition":
        return [f"substring_index(_file.source, '/', -1) AS {name}"]
    if place == "offset":
        return [f"CAST(_row AS STRING) AS {name}"]
    value = "_file.key"
    if place.startswith(HEADER):
        named = f"filter(_file.headers, h -> h.key = {literal(place.removeprefix(HEADER))})"
        value = f"try_element_at({named}, -1).value"
    if column.type == "binary":
        return [f"{value} AS {name}"]
    text = f"CAST({value} AS STRING)"
    return [f"{text} AS {name}", f"NOT is_valid_utf8({text}) AS {quote_name(wrong(column.name))}"]
