"""An Avro writer's schema, as Spark is to decode what was written with it.

Names, defaults and documentation say nothing of how values are written, and each is a way to stumble: two fields that differ
in case alone, a name that is another's in another namespace. So the schema that Spark is given has names of its own, and
fields by their number; the writer's names stay on this side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
#: Of those that Spark makes values of. What the others say is not lost: their numbers and texts are read as such.
INSTANTS = ("timestamp-millis", "timestamp-micros", "local-timestamp-millis", "local-timestamp-micros")
MAX_DIGITS = 38
MAX_DEPTH = 100
#: A ``fixed`` is made in memory before its bytes are read.
MAX_FIXED_BYTES = 64 << 20
#: The field of a frame behind the message's own value.
END_BYTES = 16


class UnusableSchemaError(ValueError):
    """A schema that no row can be read with; the text says why."""


@dataclass(frozen=True)
class WriterSchema:
    """``fields`` are the names of a record's fields, in order; ``frame`` is JSON of an Avro record of that record (``value``, its
    fields ``f0``, ``f1``, ...) and of ``END_BYTES`` bytes behind it (``end``): who appends these to a message, and finds them
    again in their place, knows that the message is whole and has nothing left over."""

    fields: tuple[str, ...]
    frame: str


def parse_writer_schema(text: str) -> WriterSchema:
    """The schema in a JSON text. Raises UnusableSchemaError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UnusableSchemaError("not JSON") from None
    if not isinstance(value, dict) or value.get("type") not in ("record", "error"):
        raise UnusableSchemaError("not a record")
    rewritten = _Rewriter().rewrite(value, "", 0)
    mark = {"type": "fixed", "name": "mark", "size": END_BYTES}
    fields = [{"name": "value", "type": rewritten}, {"name": "end", "type": mark}]
    frame = {"type": "record", "name": "frame", "fields": fields}
    return WriterSchema(tuple(field["name"] for field in value["fields"]), json.dumps(frame, separators=(",", ":")))


class _Rewriter:
    """Follows a schema as Avro's specification has it: a name without a dot belongs to the namespace around it."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._open: set[str] = set()

    def rewrite(self, schema: Any, space: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise UnusableSchemaError(f"nested more than {MAX_DEPTH} deep")
        if isinstance(schema, str):
            return self._named(schema, space)
        if isinstance(schema, list):
            return self._union(schema, space, depth)
        if not isinstance(schema, dict):
            raise UnusableSchemaError(f"{schema!r} is no schema")
        kind = schema.get("type")
        if kind in ("record", "error"):
            return self._record(schema, space, depth)
        if kind == "enum":
            return {"type": "enum", "name": self._define(schema, space)[0], "symbols": schema.get("symbols")}
        if kind == "fixed":
            return self._fixed(schema, space)
        if kind == "array":
            return {"type": "array", "items": self.rewrite(schema.get("items"), space, depth + 1)}
        if kind == "map":
            return {"type": "map", "values": self.rewrite(schema.get("values"), space, depth + 1)}
        if isinstance(kind, str) and kind in PRIMITIVES:
            return _with_meaning(kind, schema)
        return self.rewrite(kind, space, depth + 1)  # {"type": {"type": ...}}

    def _union(self, members: list[Any], space: str, depth: int) -> list[Any]:
        rewritten = [self.rewrite(member, space, depth + 1) for member in members]
        # A union holds a kind once; beside a long an int stays what it is.
        if sum(_kind(member) == "long" for member in rewritten) > 1:
            rewritten = ["int" if _kind(old) == "int" else new for old, new in zip(members, rewritten, strict=True)]
        return rewritten

    def _record(self, schema: dict[str, Any], space: str, depth: int) -> dict[str, Any]:
        fields = schema.get("fields")
        if not isinstance(fields, list) or not all(isinstance(f, dict) and isinstance(f.get("name"), str) for f in fields):
            raise UnusableSchemaError("a record without a list of named fields")
        names = [field["name"] for field in fields]
        if len(set(names)) < len(names):
            raise UnusableSchemaError("a record with a field twice")
        name, inside = self._define(schema, space)
        self._open.add(name)
        kinds = [self.rewrite(field.get("type"), inside, depth + 1) for field in fields]
        self._open.remove(name)
        return {"type": "record", "name": name, "fields": [{"name": f"f{n}", "type": kind} for n, kind in enumerate(kinds)]}

    def _fixed(self, schema: dict[str, Any], space: str) -> dict[str, Any]:
        size = schema.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_FIXED_BYTES:
            raise UnusableSchemaError(f"a fixed of {size!r} bytes")
        fixed = {"type": "fixed", "name": self._define(schema, space)[0], "size": size}
        if schema.get("logicalType") == "decimal" and size:
            digits = min(len(str(2 ** (8 * size - 1) - 1)) - 1, MAX_DIGITS)
            return {**fixed, **_decimal(schema, digits)}
        return fixed

    def _define(self, schema: dict[str, Any], space: str) -> tuple[str, str]:
        """A new name for what the schema names, and the namespace of what stands in it."""
        name, own = schema.get("name"), schema.get("namespace")
        if not isinstance(name, str) or not name:
            raise UnusableSchemaError(f"a {schema['type']} without a name")
        full = name if "." in name else _joined(own if isinstance(own, str) else space, name)
        if full in self._names:
            raise UnusableSchemaError(f"{full} is defined twice")
        self._names[full] = f"n{len(self._names)}"
        return self._names[full], full.rpartition(".")[0]

    def _named(self, name: str, space: str) -> str:
        if name in PRIMITIVES:
            return _whole(name)
        # A name that its namespace does not have is looked for without one, as Avro's Java library does.
        found = self._names.get(name if "." in name else _joined(space, name)) or self._names.get(name)
        if found is None:
            raise UnusableSchemaError(f"{name} is not defined")
        if found in self._open:
            raise UnusableSchemaError(f"{name} holds itself, which no column does")
        return found


def _kind(schema: Any) -> Any:
    return schema.get("type") if isinstance(schema, dict) else schema


def _joined(space: str, name: str) -> str:
    return f"{space}.{name}" if space else name


def _whole(kind: str) -> str:
    """An int is written as a long is, and read as one nothing of a greater number is cut."""
    return "long" if kind == "int" else kind


def _with_meaning(kind: str, schema: dict[str, Any]) -> Any:
    """A primitive with its logical type, if Spark makes something of it."""
    meaning = schema.get("logicalType")
    if (kind, meaning) == ("int", "date") or (kind == "long" and meaning in INSTANTS):
        return {"type": kind, "logicalType": meaning}
    if (kind, meaning) == ("bytes", "decimal"):
        return {"type": "bytes", **_decimal(schema, MAX_DIGITS)}
    return _whole(kind)


def _decimal(schema: dict[str, Any], digits: int) -> dict[str, Any]:
    """With as many digits as can be: of a decimal that is said to have up to 18, Spark cuts what is beyond 64 bits."""
    scale = schema.get("scale", 0)
    if not isinstance(scale, int) or not 0 <= scale <= digits:
        raise UnusableSchemaError(f"a decimal of scale {scale!r}")
    return {"logicalType": "decimal", "precision": digits, "scale": scale}
