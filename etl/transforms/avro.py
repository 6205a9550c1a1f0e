"""Messages in Avro as cells: exactly what their writer wrote, or a reason why not.

Spark's own decoder takes a message that goes on behind its record, and answers what it cannot decode with nulls. So each
message is decoded with 16 bytes behind it that only it has: they are found again in their place if, and only if, the record
ended where the message does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import types as T

from etl.transforms.parsing import BLANK, PLACE, cell, cell_of_value, first_fault, is_number, kind, unfit_for, wrong
from etl.transforms.sql import literal, literals
from schemas import Column, Contract
from schemas.avro import UnusableSchemaError, WriterSchema
from schemas.expressions import quote_name

Known = Mapping[int | None, WriterSchema | UnusableSchemaError]
#: Before the record, where a message names its schema: a zero, and the id in four bytes, the highest first.
HEADER_BYTES = 5
#: What Spark makes of a schema's fields, or why it takes none of it: a stream comes here with each micro-batch.
ANALYSED: dict[str, tuple[T.DataType, ...] | str] = {}


class _Reading(NamedTuple):
    """How the messages of some ids are read: by column of the contract that their schema has, the SQL of the value and what
    Spark makes of it."""

    ids: tuple[int | None, ...]
    decoded: str
    frame: str
    values: dict[str, tuple[str, T.DataType]]


def wire_id(raw: str) -> str:
    """The schema id of a message (SQL of its bytes); null where it does not begin as such a message does."""
    begins = f"octet_length({raw}) >= {HEADER_BYTES} AND substring({raw}, 1, 1) = X'00'"
    return f"if({begins}, CAST(conv(hex(substring({raw}, 2, 4)), 16, 10) AS BIGINT), NULL)"


def with_avro_cells(rows: DataFrame, contract: Contract, schemas: Known) -> DataFrame:
    """Takes messages (``_raw``) apart, each by the schema that it names; with a schema under None, all by that. Values become
    cells as those of Parquet do. A column that a writer's schema lacks is null; where its values are of a kind that the
    contract's type does not hold, those that are not null are wrong."""
    is_bare = None in schemas
    rows = rows.selectExpr("*", "CAST(_raw AS BINARY) AS _bytes")
    body, id_ = ("_bytes", "CAST(NULL AS BIGINT)") if is_bare else (f"substring(_bytes, {HEADER_BYTES + 1})", wire_id("_bytes"))
    rows = rows.selectExpr("*", f"{body} AS _body", f"{id_} AS _id")
    rows = rows.selectExpr("*", "unhex(md5(_body)) AS _mark")
    readings, unusable = _readings(rows, contract, schemas)
    rows = rows.selectExpr("*", *(f"if({_is_of(reading.ids)}, {_from_avro('concat(_body, _mark)', reading.frame)}, NULL) AS "
                                  f"{reading.decoded}" for reading in readings))  # fmt: skip
    refused = {id: ("schema", reason) for id, reason in unusable.items()} | _with_extra_fields(contract, schemas, unusable)
    faults = [(BLANK, "octet_length(_bytes) = 0")]
    if not is_bare:
        known = f"coalesce(_id IN ({literals(schemas)}), false)" if schemas else "false"
        faults += [("avro_header", "_id IS NULL"), ("schema_id", f"NOT {known}")]
    faults += [(rule, f"_id <=> {literal(id)}") for id, (rule, _) in refused.items()]
    whole = " ".join(f"WHEN {_is_of(reading.ids)} THEN {reading.decoded}.end = _mark" for reading in readings)
    faults.append(("avro", f"NOT coalesce(CASE {whole} END, false)" if whole else "true"))
    shown = " ".join(f"WHEN _id <=> {literal(id)} THEN {literal(value)}" for id, (_, value) in refused.items())
    value = f"CASE {shown} ELSE CAST(_id AS STRING) END" if shown else "CAST(_id AS STRING)"
    cells = [sql for column in contract.source_columns for sql in _cells(column, readings, contract)]
    return rows.selectExpr(*PLACE, "_raw", f"{first_fault(faults)} AS _fault", f"{value} AS _fault_value", *cells)


def misfits(rows: DataFrame, contract: Contract, schema: WriterSchema) -> list[str]:
    """What keeps every message of a schema out of a contract's table, in words; ``rows`` are any that have a session.

    Raises UnusableSchemaError for a schema that Spark does not take."""
    kinds = dict(zip(schema.fields, _spark_types(rows, schema), strict=True))
    columns = {column.name: column for column in contract.source_columns}
    found = []
    if contract.dialect.extra_columns == "refuse":
        found += [f"it has the field '{name}', which the contract does not" for name in kinds if name not in columns]
    for name, column in columns.items():
        if name not in kinds and column.required:
            found.append(f"it lacks the field '{name}', which the contract requires")
        elif name in kinds and (reason := unfit_for(column, kinds[name], contract.dialect)):
            found.append(f"its field '{name}' {reason}")
    return found


def _with_extra_fields(contract: Contract, schemas: Known, unusable: Collection[int | None]) -> dict[int | None, tuple[str, str]]:
    """Of schemas with a field that the contract lacks and does not ignore: the rule, and the field."""
    columns, found = {column.name for column in contract.source_columns}, {}
    for id, schema in schemas.items():
        extra = [name for name in schema.fields if name not in columns] if isinstance(schema, WriterSchema) else []
        if extra and id not in unusable and contract.dialect.extra_columns == "refuse":
            found[id] = ("extra_column", extra[0])
    return found


def _readings(rows: DataFrame, contract: Contract, schemas: Known) -> tuple[list[_Reading], dict[int | None, str]]:
    """Schemas that differ in words alone are read as one. Also why others cannot be read."""
    alike: dict[WriterSchema, list[int | None]] = {}
    unusable: dict[int | None, str] = {}
    for id, schema in schemas.items():
        try:
            if isinstance(schema, UnusableSchemaError):
                raise schema
            _spark_types(rows, schema)
            alike.setdefault(schema, []).append(id)
        except UnusableSchemaError as error:
            unusable[id] = str(error)
    names = {column.name for column in contract.source_columns}
    readings = []
    for number, (schema, ids) in enumerate(alike.items()):
        kinds = zip(schema.fields, _spark_types(rows, schema), strict=True)
        places = {name: (f"_avro_{number}.value.f{place}", held) for place, (name, held) in enumerate(kinds) if name in names}
        readings.append(_Reading(tuple(ids), f"_avro_{number}", schema.frame, places))
    return readings, unusable


def _spark_types(rows: DataFrame, schema: WriterSchema) -> tuple[T.DataType, ...]:
    """What Spark makes of the fields. Raises UnusableSchemaError when it takes none of it."""
    found = _analysed(rows, schema.frame)
    if isinstance(found, str):
        raise UnusableSchemaError(found)
    return found


def _analysed(rows: DataFrame, frame: str) -> tuple[T.DataType, ...] | str:
    if frame not in ANALYSED:
        try:
            (field,) = rows.limit(0).selectExpr(f"{_from_avro('CAST(NULL AS BINARY)', frame)} AS frame").schema.fields
            value = field.dataType["value"].dataType  # type: ignore[index]
            ANALYSED[frame] = tuple(field.dataType for field in value.fields)
        except Py4JJavaError as error:
            ANALYSED[frame] = str(error.java_exception.getMessage())
        except PySparkException as error:
            ANALYSED[frame] = str(error).split(" SQLSTATE")[0].splitlines()[0]
    return ANALYSED[frame]


def _from_avro(body: str, frame: str) -> str:
    return f"from_avro({body}, {literal(frame)}, map('mode', 'PERMISSIVE', 'datetimeRebaseMode', 'CORRECTED'))"


def _is_of(ids: tuple[int | None, ...]) -> str:
    return "true" if None in ids else f"_id IN ({literals(ids)})"


def _cells(column: Column, readings: list[_Reading], contract: Contract) -> list[str]:
    """A column's cell, and where there may be something, what is wrong with it."""
    kind_of_cell = "STRING" if is_number(column) else column.type
    values, wrongs, kinds = [], [], []
    for reading in readings:
        if column.name not in reading.values:
            continue
        value, held = reading.values[column.name]
        when = f"WHEN {_is_of(reading.ids)} THEN"
        if unfit_for(column, held, contract.dialect):
            # Shown as a text where the cell is one.
            text = f"CAST({value} AS STRING)" if kind_of_cell.lower() == "string" else "NULL"
            values.append(f"{when} {text}")
            if column.type == "string":
                kinds.append(f"{when} {literal(held.simpleString())}")
            else:
                wrongs.append(f"{when} {value} IS NOT NULL")
            continue
        text, _, fault = cell_of_value(column, value, held, contract.dialect)
        values.append(f"{when} {text}")
        wrongs += [f"{when} {fault}"] if fault else []
    whole = f"CASE {' '.join(values)} END" if values else "NULL"
    cells = [f"CAST({whole} AS {kind_of_cell}) AS {quote_name(cell(column.name))}"]
    if wrongs:
        cells.append(f"coalesce(CASE {' '.join(wrongs)} END, false) AS {quote_name(wrong(column.name))}")
    if kinds:
        cells.append(f"CASE {' '.join(kinds)} ELSE 'STRING' END AS {quote_name(kind(column.name))}")
    return cells
