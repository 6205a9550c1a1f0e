"""JSON lines: one object a line, and what kind of value each key has."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from etl.infer.types import is_integer
from lakering.errors import InputError

NESTED = "nested"
#: Of lists of numbers the text is their length.
INTEGERS, NUMBERS = "array<bigint>", "array<double>"
Cell = tuple[str, str]


class Number(str):
    """A number as it was written: ``1.50`` is not 1.5 here."""


class _RepeatedKey(ValueError):
    pass


def read_objects(content: bytes, path: str, max_rows: int) -> tuple[list[dict[str, Cell | None]], Counter[str]]:
    """Rows of (text, kind) by key, None for null, and how many lines could not be read, by what is wrong with them.

    Raises InputError when most lines are no objects."""
    rows: list[dict[str, Cell | None]] = []
    faults: Counter[str] = Counter()
    first_bad = ""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        if len(rows) + faults.total() == max_rows:
            break
        rule, row = _read_line(line)
        if row is None:
            faults[rule] += 1
            first_bad = first_bad or f"line {number}: {line[:60].decode('utf-8', 'replace')!r}"
        else:
            rows.append(row)
    if faults.total() > len(rows):
        raise InputError(
            f"{path}: {faults.total():,} of {faults.total() + len(rows):,} lines are no JSON objects; first {first_bad}",
            next_step="write one object a line, such as: jq -c '.[]' IN.json > OUT.jsonl",
        )
    return rows, faults


def _read_line(line: bytes) -> tuple[str, dict[str, Cell | None] | None]:
    try:
        value = json.loads(line.decode("utf-8"), parse_int=Number, parse_float=Number, parse_constant=_refuse,
                           object_pairs_hook=_object)  # fmt: skip
    except UnicodeDecodeError:
        return "utf8", None
    except _RepeatedKey:
        return "repeated_key", None
    except (ValueError, RecursionError):
        return "json", None
    if not isinstance(value, dict):
        return "json", None
    return "", {name: None if item is None else _cell(item) for name, item in value.items()}


def _cell(value: Any) -> Cell:
    if isinstance(value, bool):
        return str(value).lower(), "boolean"
    if isinstance(value, Number):
        return str(value), "number"
    if isinstance(value, str):
        return value, "string"
    if isinstance(value, list) and value and all(isinstance(item, Number) for item in value):
        return str(len(value)), INTEGERS if all(is_integer(item) for item in value) else NUMBERS
    return "", NESTED


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKey
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
