"""A table as the text of a contract (Open Data Contract Standard v3.1): what was seen stands in comments, ready to edit."""

from __future__ import annotations

from collections.abc import Iterator

from etl.infer.columns import Column
from etl.infer.table import Table
from etl.infer.yaml_text import flow, shown

HEAD = """\
# What a sample cannot tell is yours to say; then: make check CONTRACT=FILE
#   description   what a column means, in which unit
#   required      true where no null was seen: rows with a null there will be refused. Take it out where one may come
#   rules         logicalTypeOptions and quality under a column: what was seen. Widen them, then take the # away
#   availableAt   of a column that is known only after what is predicted, such as its result:
#                   customProperties: [{property: availableAt, value: outcome}]
#                 and knownAt, the timestamp column from which it is known, if a feature is to use it over the past
apiVersion: v3.1.0
kind: DataContract
"""
#: Of columns with so few nulls it is told what it takes to allow none.
FEW_NULLS = 0.01


def write_contract(table: Table) -> str:
    """The contract's text: one that this project reads as it stands."""
    lines = [*_provenance(table), HEAD.rstrip("\n"), f"id: {table.name}", f"name: {table.name}", "version: 1.0.0",
             "status: draft", "schema:", f"  - name: {table.name}", "    logicalType: object", "    physicalType: table",
             "    description: One row per ...", *_properties(table), *_key_comment(table), "    properties:"]  # fmt: skip
    for column in table.columns:
        lines += _column(column, table)
    for name, reason in table.left_out.items():
        lines.append(f"      # left out: {shown(name)}: {shown(reason, 120)}")
    return "\n".join(lines) + "\n"


def _provenance(table: Table) -> Iterator[str]:
    sample = table.sample
    rows = f"{'all' if sample.is_whole else 'the first'} {sample.num_rows:,} rows"
    files = f"{len(sample.paths):,} of {sample.num_files:,} files" if sample.num_files > 1 else "1 file"
    yield f"# Inferred from {rows} of {files}: {shown(sample.files, 200)}"
    for rule, count in sample.faults.items():
        yield f"# {count:,} more could not be taken apart and would be refused: {rule}"


def _properties(table: Table) -> Iterator[str]:
    found = list(_table_properties(table))
    if any(not line.lstrip().startswith("#") for line in found):
        yield "    customProperties:"
    elif found:
        yield "    # customProperties:"
    yield from (f"      {line}" for line in found)


def _table_properties(table: Table) -> Iterator[str]:
    dialect, tokens = table.sample.dialect, list(table.tokens)
    if dialect is not None:
        for name, value, usual in (("delimiter", dialect.delimiter, ","), ("quote", dialect.quote, '"'),
                                   ("escape", dialect.escape, '"'), ("encoding", dialect.encoding, "UTF-8")):  # fmt: skip
            if value != usual:
                yield f"- {{property: {name}, value: {flow(value)}}}" + (
                    "  # a guess: the bytes are no UTF-8" * (name == "encoding")
                )
        if dialect.multi_line:
            yield "- {property: multiLine, value: true}"
    if tokens and tokens != [""]:
        yield f"- {{property: nullTokens, value: {flow(['', *(token for token in tokens if token)])}}}"
    if table.pattern:
        yield f"- {{property: timestampFormat, value: {flow(table.pattern)}}}"
    if table.needs_zone:
        yield "- {property: timestampZone, value: UTC}  # A GUESS: no zone in the texts. Theirs, such as America/New_York"
    if table.left_out:
        yield "- {property: extraColumns, value: ignore}  # for the columns that are left out below"
    if len(table.times) == 1:
        yield f"- {{property: eventTime, value: {table.times[0]}}}"
    elif table.times:
        yield f"# - {{property: eventTime, value: {table.times[0]}}}  # when the row's event was: one of {', '.join(table.times)}"
    elif table.key:
        yield "# - {property: repeatedKey, value: replace}  # of a side table, whose rows are values of today, read by `lookup`"
    yield "# - {property: maxRefusedShare, value: 0.01}  # stop, and write nothing, when more than this breaks the contract"


def _key_comment(table: Table) -> Iterator[str]:
    if table.key:
        yield f"    # key: {', '.join(table.key.columns)}. {table.key.sure}."
    else:
        yield "    # key: none. No set of up to four columns (fractions, truths and columns with nulls left out) is unique in the"
        yield "    # sample. Without a key every line of every file is a row of its own: what comes again in another file is"
        yield "    # there twice, and nothing can look this table up. To set one: primaryKey: true, primaryKeyPosition: 1, 2, ..."


def _column(column: Column, table: Table) -> Iterator[str]:
    yield f"      - name: {flow(column.name) if _is_word(column.name) else column.name}"
    yield f"        # {_seen(column)}"
    for note in column.notes:
        yield f"        # {shown(note, 300)}"
    yield f"        logicalType: {column.logical}"
    yield f"        physicalType: {'array' if column.logical == 'array' else column.type}"
    if column.logical == "array":
        element = column.type.removeprefix("array<").removesuffix(">")
        logical = "number" if element in ("float", "double") else "integer"
        yield f"        items: {{logicalType: {logical}, physicalType: {element}}}"
        yield f"        customProperties: [{{property: shape, value: [{column.shape or 1}]}}]"
    if table.key and column.name in table.key.columns:
        yield "        primaryKey: true"
        yield f"        primaryKeyPosition: {table.key.columns.index(column.name) + 1}"
    if column.required:
        yield "        required: true"
    elif column.nulls <= FEW_NULLS * column.num_rows:
        yield f"        # required: true  # {column.nulls:,} of {column.num_rows:,} rows would be refused"
    yield from _rules(column)


def _seen(column: Column) -> str:
    """What was seen, in one line."""
    parts = []
    if column.low is not None:
        low, high = shown(str(column.low)), shown(str(column.high))
        unit = "" if column.type != "string" else " character" if high == "1" else " characters"
        parts.append((low if low == high else f"{low} to {high}") + unit)
    if column.examples:
        examples = ", ".join(shown(text) for text in column.examples)
        parts.append(
            f"{column.distinct:,} distinct"
            + (f", such as {examples}" if column.distinct > len(column.examples) else f": {examples}")
        )
    if column.nulls:
        parts.append(f"{column.nulls:,} of {column.num_rows:,} null")
    return "seen: " + ("; ".join(parts) or "no value")


def _rules(column: Column) -> Iterator[str]:
    if column.logical in ("integer", "number") and column.low is not None:
        low, high = (int(text) if column.logical == "integer" else float(text) for text in (column.low, column.high))
        yield f"        # logicalTypeOptions: {{minimum: {flow(low)}, maximum: {flow(high)}}}"
    elif column.values:
        yield f"        # quality: [{{metric: invalidValues, arguments: {{validValues: {flow(column.values)}}}, mustBe: 0}}]"


def _is_word(name: str) -> bool:
    """Whether YAML would take a column's name for something else, such as a truth."""
    return name.lower() in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
