"""From the Open Data Contract Standard's own model to ``schemas.contract.Contract``.

What the standard has a place for is read from that place: types, ``required``, ``primaryKey``, ``partitioned``,
``logicalTypeOptions``, the ``invalidValues`` quality metric. What it has none for stands in ``customProperties``, of the
schema object (``TableProperties``) and of its properties (``ColumnProperties``).
"""

from __future__ import annotations

import codecs
import datetime
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar, get_args
from zoneinfo import available_timezones

from open_data_contract_standard.model import CustomProperty, OpenDataContractStandard, SchemaObject, SchemaProperty
from pydantic import BaseModel, Field, StrictInt, ValidationError

from lakering.documents import Document, Settings
from lakering.durations import Duration
from lakering.errors import LakeringError, SettingError, nearest
from lakering.names import validate_name
from schemas.arrays import BINARY, build_array_type, is_nested, validate_nested
from schemas.contract import MODIFIED, PROVENANCE, Column, Contract, Dialect, Rule
from schemas.expressions import parse_expression
from schemas.messages import validate_message_columns

At = tuple[str | int, ...]
Model = TypeVar("Model", bound=Settings)
SCHEMA: At = ("schema", 0)
DEFAULT_TYPES = {"string": "string", "integer": "bigint", "number": "double", "boolean": "boolean", "date": "date",
                 "timestamp": "timestamp"}  # fmt: skip
PHYSICAL_TYPES = {
    "string": ("string", "varchar", "text", BINARY),
    "integer": ("tinyint", "smallint", "int", "integer", "bigint", "long"),
    "number": ("float", "double", "decimal(p,s)"),
    "boolean": ("boolean",),
    "date": ("date",),
    "timestamp": ("timestamp",),
}
SPELLINGS = {"integer": "int", "long": "bigint", "varchar": "string", "text": "string"}
NUMBER_RULES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
TEXT_RULES = ("minLength", "maxLength", "pattern")
#: What Python calls encodings, and are ways to write Unicode in ASCII.
NOTATIONS = ("idna", "punycode", "undefined", "unicode_escape", "unicode-escape", "raw_unicode_escape", "raw-unicode-escape")
RULES = {"string": TEXT_RULES, BINARY: ("minLength", "maxLength"), "boolean": ()}


class TableProperties(Settings):
    """Our custom properties of a table."""

    repeated_key: Literal["keep", "replace"] = Field("keep", alias="repeatedKey")
    order_by: str | None = Field(None, alias="orderBy")
    event_time: str | None = Field(None, alias="eventTime")
    max_refused_share: float = Field(1.0, alias="maxRefusedShare", ge=0, le=1)
    late: Duration | None = None
    future: Duration | None = None
    extra_columns: Literal["refuse", "ignore"] = Field("refuse", alias="extraColumns")
    delimiter: str = Field(",", min_length=1, max_length=1)
    quote: str = Field('"', min_length=1, max_length=1)
    escape: str = Field('"', min_length=1, max_length=1)
    null_tokens: tuple[str, ...] = Field(("",), alias="nullTokens")
    encoding: str = "UTF-8"
    multi_line: bool = Field(False, alias="multiLine")
    timestamp_format: str | None = Field(None, alias="timestampFormat")
    timestamp_zone: str | None = Field(None, alias="timestampZone")


class ColumnProperties(Settings):
    """Our custom properties of a column."""

    available_at: Literal["prediction", "outcome"] = Field("prediction", alias="availableAt")
    known_at: str | None = Field(None, alias="knownAt")
    derived: str | None = None
    shape: tuple[Annotated[StrictInt, Field(ge=1)], ...] | None = Field(None, min_length=1)
    from_message: str | None = Field(None, alias="fromMessage")


def build_contract(document: Document) -> Contract:
    """The contract in a document; see ``schemas.read_contract``."""
    _validate_keys(document, OpenDataContractStandard, document.value, ())
    standard = document.validate(OpenDataContractStandard)
    if not (standard.apiVersion or "").startswith("v3."):
        raise document.error(
            ("apiVersion",), f"expected an Open Data Contract Standard of version 3, got {standard.apiVersion!r}"
        )
    if not standard.version:
        raise document.error((), "key 'version' is missing: the version of the contract")
    objects = standard.schema_ or []
    if len(objects) != 1:
        raise document.error(("schema",), f"expected one table in a contract, got {len(objects)}")
    table, at = objects[0], SCHEMA
    if not table.name:
        raise document.error(at, "key 'name' is missing: the table's name")
    ours = _custom(document, TableProperties, table.customProperties, at)
    if not table.properties:
        raise document.error(at, "key 'properties' is missing: the table's columns")
    columns = tuple(_build_column(document, item, (*at, "properties", i)) for i, item in enumerate(table.properties))
    contract = Contract(
        table=_named(document, table.name, "table", at),
        version=standard.version,
        columns=columns,
        key=_positioned(table.properties, "primaryKey", "primaryKeyPosition"),
        partition_by=_positioned(table.properties, "partitioned", "partitionKeyPosition"),
        dialect=_build_dialect(document, ours, at),
        repeated_key=ours.repeated_key,
        order_by=ours.order_by,
        event_time=ours.event_time,
        max_refused_share=ours.max_refused_share,
        document=document,
        late=ours.late,
        future=ours.future,
    )
    _validate_contract(contract, table)
    return contract


def _validate_keys(document: Document, model: type[BaseModel], value: Any, at: At) -> None:
    """The standard's model lets unknown keys pass below its top; a misspelt rule would then be no rule."""
    if not isinstance(value, dict):
        return
    fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for key, inner in value.items():
        if key not in fields:
            raise document.error((*at, key), f"unknown key {key!r}{nearest(key, fields)}")
        below = _model_of(fields[key])
        if below is not None:
            for index, item in enumerate(inner) if isinstance(inner, list) else [(None, inner)]:
                _validate_keys(document, below, item, (*at, key) if index is None else (*at, key, index))


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, typing.Union, types.UnionType):
        return next((found for inner in get_args(annotation) if (found := _model_of(inner))), None)
    return None


def _custom(document: Document, model: type[Model], properties: list[CustomProperty] | None, at: At) -> Model:
    """Our custom properties among all; others' pass, unless one looks like a misspelt one of ours."""
    known = [field.alias or name for name, field in model.model_fields.items()]
    chosen: dict[str, Any] = {}
    for index, item in enumerate(properties or []):
        name = str(item.property)
        where = (*at, "customProperties", index)
        if name in chosen:
            raise document.error(where, f"custom property {name!r} stands here twice")
        if name in known:
            chosen[name] = item.value
        elif difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.8):
            raise document.error(where, f"unknown custom property {name!r}{nearest(name, known)}")
    try:
        return model.model_validate(chosen)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        index = next(i for i, item in enumerate(properties or []) if item.property == name)
        text = f"custom property {name!r}: {problem['msg']}, got {problem['input']!r}"
        raise document.error((*at, "customProperties", index), text) from None


def _named(document: Document, name: str, what: str, at: At) -> str:
    try:
        return validate_name(name, what)
    except SettingError as error:
        raise document.error((*at, "name"), error.message) from None


def _build_column(document: Document, item: SchemaProperty, at: At) -> Column:
    if not item.name:
        raise document.error(at, "key 'name' is missing: the column's name")
    name = _named(document, item.name, "column", at)
    if name in (*PROVENANCE, MODIFIED):
        raise document.error(at, f"column name {name!r} is taken by provenance")
    ours = _custom(document, ColumnProperties, item.customProperties, at)
    kind = _build_type(document, item, at)
    derived = None
    if ours.derived is not None:
        try:
            derived = parse_expression(ours.derived)
        except LakeringError as error:
            raise document.error(at, f"derived: {error.message}") from None
    return Column(name=name, type=kind, required=bool(item.required or item.primaryKey or item.partitioned),
                  rules=_build_rules(document, item, kind, at), available_at=ours.available_at, known_at=ours.known_at,
                  derived=derived, shape=ours.shape, from_message=ours.from_message)  # fmt: skip


def _build_type(document: Document, item: SchemaProperty, at: At) -> str:
    logical = item.logicalType or ""
    if logical == "array":
        return build_array_type(document, item, at)
    if logical not in DEFAULT_TYPES:
        known = [*DEFAULT_TYPES, "array"]
        raise document.error((*at, "logicalType"), f"logical type {logical!r} is not supported{nearest(logical, known)}")
    physical = (item.physicalType or DEFAULT_TYPES[logical]).lower().replace(" ", "")
    physical = SPELLINGS.get(physical, physical)
    decimal = re.fullmatch(r"decimal\((\d{1,2}),(\d{1,2})\)", physical)
    if decimal and logical == "number" and int(decimal[2]) <= int(decimal[1]) <= 38:
        return physical
    if physical not in PHYSICAL_TYPES[logical] or "(" in physical:
        raise document.error((*at, "physicalType"), f"physical type {item.physicalType!r} does not hold a "
                             f"{logical}{nearest(physical, PHYSICAL_TYPES[logical])}")  # fmt: skip
    return physical


def _build_rules(document: Document, item: SchemaProperty, kind: str, at: At) -> tuple[Rule, ...]:
    rules = []
    names = () if item.logicalType == "array" else RULES.get(kind, NUMBER_RULES)
    for name, argument in (item.logicalTypeOptions or {}).items():
        where = (*at, "logicalTypeOptions", name)
        if name not in names:
            raise document.error(where, f"{name!r} is no rule for a {kind}{nearest(name, names)}")
        if not _fits(argument, "string" if name == "pattern" else "bigint" if name in TEXT_RULES else kind):
            raise document.error(where, f"{name} {argument!r} has the wrong type")
        if name == "pattern":
            try:
                re.compile(argument)
            except re.error as error:
                raise document.error(where, f"pattern {argument!r} is not a regular expression: {error}") from None
            if "(?P" in argument:
                raise document.error(where, f"pattern {argument!r}: groups are named as Java does, (?<name>...)")
        rules.append(Rule(name, argument))
    for index, quality in enumerate(item.quality or []):
        where = (*at, "quality", index)
        values = (quality.arguments or {}).get("validValues") if quality.metric == "invalidValues" else None
        if is_nested(kind):
            raise document.error(where, f"a column of type {kind} has no valid values to list")
        if not isinstance(values, list) or quality.mustBe != 0:
            raise document.error(where, "only {metric: invalidValues, arguments: {validValues: [...]}, mustBe: 0} is "
                                        "checked here; write other rules as logicalTypeOptions")  # fmt: skip
        for value in values:
            if not _fits(value, kind):
                raise document.error(
                    where, f"valid value {value!r} is no {kind}" + (" (write it in quotes)" if kind == "string" else "")
                )
        rules.append(Rule("validValues", tuple(values)))
    return tuple(rules)


def _fits(value: Any, kind: str) -> bool:
    """Whether a value of YAML can be compared with a column of this type."""
    if kind in ("date", "timestamp"):
        try:
            return isinstance(value, str) and bool(datetime.datetime.fromisoformat(value))
        except ValueError:
            return False
    if kind in ("string", "boolean"):
        return isinstance(value, str if kind == "string" else bool)
    if isinstance(value, bool) or not isinstance(value, int if kind.endswith("int") else int | float):
        return False
    return abs(value) < 10**38 if isinstance(value, int) else math.isfinite(value)  # more digits are no number to Spark


def _build_dialect(document: Document, ours: TableProperties, at: At) -> Dialect:
    try:
        "a,1\n".encode(ours.encoding)  # refuses what is no encoding of text too, such as base64
        if codecs.lookup(ours.encoding).name in NOTATIONS:
            raise LookupError
    except (LookupError, ValueError):
        raise document.error(at, f"encoding {ours.encoding!r} is not known, or none of text") from None
    if ours.timestamp_zone and ours.timestamp_zone not in available_timezones():
        raise document.error(
            at, f"timestampZone {ours.timestamp_zone!r} is not a zone{nearest(ours.timestamp_zone, available_timezones())}"
        )
    if ours.timestamp_zone and re.search("[XxZVzO]", re.sub("'[^']*'", "", ours.timestamp_format or "")):
        raise document.error(at, "timestampFormat reads a zone from the text, so timestampZone has nothing to say; leave one out")
    if ours.timestamp_format is not None:
        letters = re.sub("'[^']*'", "", ours.timestamp_format)
        if not ours.timestamp_zone and not re.search("[XxZVzO]", letters):
            raise document.error(
                at, f"timestampFormat {ours.timestamp_format!r} reads no zone from the text: set timestampZone too"
            )
        if "S" * 7 in letters:
            raise document.error(
                at, f"timestampFormat {ours.timestamp_format!r} reads nanoseconds, a timestamp holds microseconds"
            )
    if ours.delimiter in (ours.quote, ours.escape):
        raise document.error(at, f"delimiter {ours.delimiter!r} is the quote or the escape too")
    for name in ("delimiter", "quote", "escape"):
        if getattr(ours, name) in "\r\n\0":
            raise document.error(at, f"{name} {getattr(ours, name)!r} cannot be told from the end of a line or of a text")
        if name != "delimiter" and getattr(ours, name) > "\uffff":
            raise document.error(at, f"{name} {getattr(ours, name)!r} is not a character that Spark takes for it")
    return Dialect(ours.delimiter, ours.quote, ours.escape, ours.null_tokens, ours.encoding, ours.multi_line,
                   ours.timestamp_format, ours.timestamp_zone, ours.extra_columns)  # fmt: skip


def _positioned(properties: Iterable[SchemaProperty], flag: str, position: str) -> tuple[str, ...]:
    chosen = [item for item in properties if getattr(item, flag)]
    return tuple(item.name or "" for item in sorted(chosen, key=lambda item: getattr(item, position) or 0))


def _validate_contract(contract: Contract, table: SchemaObject) -> None:
    document, names = contract.document, [column.name for column in contract.columns]
    for index, name in enumerate(names):
        if name.lower() in [other.lower() for other in names[:index]]:
            raise document.error((*SCHEMA, "properties", index), f"column {name!r} stands here twice")
    for index, column in enumerate(contract.columns):
        at = (*SCHEMA, "properties", index)
        for read in sorted(column.derived.columns if column.derived else ()):
            if contract.column(read) is None:
                raise document.error(at, f"derived from {read!r}, which is not a column{nearest(read, names)}")
        if column.known_at is not None:
            known = contract.column(column.known_at)
            if known is None or known.type != "timestamp":
                raise document.error(
                    at, f"knownAt {column.known_at!r} is not a timestamp column{nearest(column.known_at, names)}"
                )
            if column.available_at != "outcome":
                raise document.error(at, "knownAt belongs to an outcome: add availableAt: outcome")
    _ = contract.derived_columns  # raises on a circle
    validate_nested(contract, SCHEMA)
    validate_message_columns(contract, SCHEMA)
    for what, wanted in (("orderBy", contract.order_by), ("eventTime", contract.event_time)):
        if wanted is not None and wanted not in names:
            raise document.error(SCHEMA, f"{what} {wanted!r} is not a column{nearest(wanted, names)}")
    if contract.event_time and contract.require(contract.event_time, "eventTime").type not in ("timestamp", "date"):
        raise document.error(SCHEMA, f"eventTime {contract.event_time!r} is not a timestamp or date")
    is_timed = contract.event_time is not None and contract.require(contract.event_time, "eventTime").type == "timestamp"
    if (contract.late or contract.future) and not is_timed:
        raise document.error(SCHEMA, "late and future are limits of an eventTime that is a timestamp, which it does not name")
    if contract.repeated_key == "replace" and not contract.key:
        raise document.error(SCHEMA, "repeatedKey 'replace' needs a primaryKey")
    if contract.order_by and contract.repeated_key == "keep":
        raise document.error(SCHEMA, "orderBy belongs to repeatedKey 'replace'")
    if contract.key:
        for name in contract.partition_by:
            if not _roots(contract, name) <= set(contract.key):
                raise document.error(SCHEMA, f"partition column {name!r} is not of the key, nor derived from it alone: "
                                             "rows of one key could fall into two partitions")  # fmt: skip


def _roots(contract: Contract, name: str) -> set[str]:
    """The columns that a column comes from, stopping at key columns."""
    reads = contract.reads(name, until=contract.key)
    return {
        column.name for column in contract.columns if column.name in reads and (column.name in contract.key or not column.derived)
    }
