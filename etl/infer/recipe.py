"""A recipe to start from: what is known of the table is filled in, what is to be predicted is a guess to be edited."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator

from etl.infer.columns import WHOLE, Column
from etl.infer.keys import ID_NAME
from etl.infer.table import Table
from etl.infer.types import parse_timestamp
from etl.infer.yaml_text import flow, plain

#: Of the sample's rows by time: what comes before trains, what comes before the second validates, the rest tests.
TRAIN, VALIDATION = 0.7, 0.85
MAX_IDS = 0.5
NO_MOMENT = "cast('2000-01-01' as timestamp)"


def write_recipe(table: Table, recipe: str, contract: str) -> str:
    """The text of a recipe that is to lie at ``recipe``, of a contract that lies at ``contract``."""
    folder = os.path.dirname(os.path.abspath(recipe))
    lines = [
        f"# Data set '{table.name}'. What each key means stands in recipes/settings.py; recipes/flights.yaml is a larger one.",
        f"name: {table.name}",
        *([f"storage: {{endpoint: {flow(table.sample.endpoint)}}}"] if table.sample.endpoint else []),
        "tables:",
        f"  {table.name}:",
        f"    contract: {plain(relative(contract, folder))}",
        f"    sources: [{{files: {flow(relative(table.sample.files, folder))}, format: {table.sample.format}}}]",
        "",
        "# What is below is a guess. Say what is to be predicted and when, and leave out of the features what is known only",
        "# afterwards (in the contract it is marked availableAt: outcome). To take the '# ' away:",
        f"#   sed -i '/^# examples:/,$ s/^# //' {recipe}",
        *(f"# {line}" for line in _guess(table)),
    ]
    return "\n".join(lines) + "\n"


def relative(path: str, folder: str) -> str:
    """A path as a recipe in that folder names it; URLs stay as they are."""
    return path if "://" in path else os.path.relpath(os.path.abspath(path), folder)


def _guess(table: Table) -> Iterator[str]:
    label, kind = _label(table)
    moment = table.times[0] if table.times else None
    yield "examples:"
    yield f"  from: {table.name}"
    yield f"  predict: {{label: {flow(label[1])}, kind: {kind}, moment: {flow(moment or NO_MOMENT)}}}"
    yield "  features:"
    features = list(_features(table, label[0]))
    yield from (f"    - {feature}" for feature in features)
    yield f"  split: {_split(table, moment)}"
    yield "model: {name: wide_and_deep}"
    yield f"training: {{global_batch_size: {_batch_size(table.sample.num_rows)}, epochs: 3, learning_rate: 0.001}}"


def _label(table: Table) -> tuple[tuple[str, str], str]:
    """The column and the expression to be predicted, and of what kind: the last number that names nothing, else a truth,
    else one value of a short set."""
    numbers = [c for c in table.columns if c.logical in ("number", "integer") and c.distinct > 1 and not _is_id(c, table)]
    if numbers:
        return (numbers[-1].name, numbers[-1].name), "regression"
    truths = [c.name for c in table.columns if c.type == "boolean"]
    if truths:
        return (truths[-1], truths[-1]), "binary"
    texts = [c for c in table.columns if c.values] or list(table.columns)
    value = texts[-1].examples[0] if texts[-1].examples else ""
    return (texts[-1].name, f"{texts[-1].name} = '{value.replace(chr(39), '')}'"), "binary"


def _is_id(column: Column, table: Table) -> bool:
    return bool(ID_NAME.search(column.name)) or (table.key is not None and column.name in table.key.columns)


def _features(table: Table, label: str) -> Iterator[str]:
    single = table.key is not None and len(table.key.columns) == 1
    for column in table.columns:
        if column.name == label or column.distinct < 2 or (single and column.name == table.key.columns[0]):  # type: ignore[union-attr]
            continue
        if column.type == "boolean":
            yield f'{{expression: "if({column.name}, 1, 0)", name: {column.name}_is_true}}'
        elif column.type == "timestamp":
            yield f'{{expression: "hour({column.name})", name: {column.name}_hour, as: id}}'
        elif column.logical == "number" or (column.logical == "integer" and not ID_NAME.search(column.name)):
            yield f"{{column: {column.name}}}"
        elif column.type in ("string", *WHOLE) and column.distinct <= MAX_IDS * column.num_rows:
            yield f"{{column: {column.name}, as: id}}"


def _split(table: Table, moment: str | None) -> str:
    """By time, where the sample says how long a time that is; else by a hash of what names a row."""
    bounds = _bounds(table, moment) if moment else None
    if bounds:
        return f'{{by: time, train: "< {bounds[0]}", validation: "< {bounds[1]}"}}'
    of = list(table.key.columns) if table.key else [column.name for column in table.columns if column.logical != "array"][:4]
    return f"{{by: hash, of: {flow_names(of)}, validation: 0.15, test: 0.15}}"


def _bounds(table: Table, moment: str | None) -> tuple[str, str] | None:
    """Days between which the parts of the sample lie; None unless every row was read, and each part has days of its own."""
    if not table.sample.is_whole or moment is None:
        return None
    column = table.column(moment)
    texts = [text for text in table.sample.columns[moment].texts if text is not None and text not in table.tokens]
    days = sorted(_day(text, column) for text in texts)
    if not days:
        return None
    train, validation = (days[int(share * len(days))] for share in (TRAIN, VALIDATION))
    return (train.isoformat(), validation.isoformat()) if days[0] < train < validation <= days[-1] else None


def _day(text: str, column: Column) -> datetime.date:
    return parse_timestamp(text, column.pattern).astimezone(datetime.UTC).date()


def flow_names(names: list[str]) -> str:
    return "[" + ", ".join(names) + "]"


def _batch_size(rows: int) -> int:
    """Some hundred steps an epoch, within what trains well."""
    return next((size for size in (1024, 512, 256, 128) if rows >= 100 * size), 64)
