"""From what a file holds to cells: the structure of a row, before its values mean anything.

A row that cannot be taken apart gets a ``_fault`` (rule) and a ``_fault_value``. Every other row has its cells: by column
name a text, null where the file says null; of Parquet and images some cells are values already.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from etl.transforms.sql import literal, literals
from lakering.errors import InputError
from schemas import Column, Contract, Dialect
from schemas.expressions import quote_name

#: What stands before the cells in every frame.
PLACE = ("_file", "_block", "_row")
#: The rule of a line that holds nothing but space, and no delimiter; such rows are dropped, not refused.
BLANK = "(blank)"
SPACES = " \t\v\f\r"
STRICT_JSON = "map('allowSingleQuotes', 'false', 'allowNonNumericNumbers', 'false')"
#: Half of a pair, such as \ud800 by itself, is no character; Spark would make a question mark of it.
LONE_SURROGATE = r"""(contains(_raw, '\\ud') OR contains(_raw, '\\uD')) AND replace(_raw, '\\\\', '') RLIKE
'(?<!\\\\u[dD][89abAB][0-9a-fA-F]{2})\\\\u[dD][c-fC-F]|\\\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\\\u[dD][c-fC-F])'"""


def cell(name: str) -> str:
    """The column that holds a cell; its kind (JSON alone) stands in ``kind(name)``."""
    return f"_cell_{name}"


def kind(name: str) -> str:
    return f"_kind_{name}"


def wrong(name: str) -> str:
    """The column that says whether a value was not what its cell now holds (Parquet, Avro and a
    message's own columns)."""
    return f"_wrong_{name}"


def compare_header(header: Sequence[str], contract: Contract) -> tuple[list[str], list[str]]:
    """The contract's columns that a header lacks, and the header's that the contract does not have."""
    names = [column.name for column in contract.source_columns]
    return [name for name in names if name not in header], [name for name in header if name not in names]


def with_csv_cells(rows: DataFrame, contract: Contract, header: tuple[str, ...]) -> DataFrame:
    """Takes lines (``_raw``) or records (``_cells``) of CSV apart, under a header in any order."""
    multi_line = "_cells" in rows.columns
    if multi_line:
        faults = [("utf8", "exists(_cells, c -> NOT is_valid_utf8(c))"), ("num_cells", f"size(_cells) <> {len(header)}")]
        rows = rows.withColumn("_raw", F.expr("to_json(transform(_cells, c -> make_valid_utf8(c)))"))
    else:
        rows = _split(rows, contract.dialect)
        something = f"[^{SPACES.replace(contract.dialect.delimiter, '')}]"
        # A blank line has no delimiter: the other lines are told from it without a regular expression.
        faults = [(BLANK, f"size(_cells) = 1 AND NOT _raw RLIKE {literal(something)}"), ("utf8", "NOT is_valid_utf8(_raw)"),
                  ("quote", "_misquoted"), ("num_cells", f"size(_cells) <> {len(header)}")]  # fmt: skip
    tokens, cells = literals(contract.dialect.null_tokens), []
    for column in contract.source_columns:
        text = f"coalesce(get(_cells, {header.index(column.name)}), '')"
        text = text if multi_line else _unquoted(text, contract.dialect)
        value = f"if({text} IN ({tokens}), NULL, {text})" if tokens else text
        cells.append(f"{value} AS {quote_name(cell(column.name))}")
    return rows.selectExpr(*PLACE, "_raw", f"{first_fault(faults)} AS _fault", "CAST(NULL AS STRING) AS _fault_value", *cells)


def _split(lines: DataFrame, dialect: Dialect) -> DataFrame:
    """Adds ``_cells`` as they are written, and ``_misquoted``: whether the quotes are not as CSV has them, round whole cells,
    closed, and inside them escaped. Outside of quoted cells an even number is let pass (5" x 4"); an odd one may be half of a
    record.

    An escape counts within quotes alone, and before a quote or an escape; elsewhere it is text. Most lines hold no quote and
    are only cut. (Spark's own parser makes texts of broken quotes, and loses NULs and U+FFFF.)"""
    delimiter, quote, escape = (re.escape(sign) for sign in (dialect.delimiter, dialect.quote, dialect.escape))
    # Possessive throughout: Java's matcher would recurse on long cells otherwise, and overflow its stack.
    if dialect.escape == dialect.quote:
        inside = f"[^{quote}]*+(?:{quote}{quote}[^{quote}]*+)*+"
        bare = "_raw"
    else:
        inside = rf"[^{quote}{escape}]*+(?:{escape}[\s\S][^{quote}{escape}]*+)*+"
        bare = f"replace(replace(_raw, {literal(dialect.escape * 2)}, ''), {literal(dialect.escape + dialect.quote)}, '')"
    a_cell = rf"\G({quote}{inside}{quote}|(?:[^{quote}{delimiter}][^{delimiter}]*+)?+){delimiter}"
    tokens = f"regexp_extract_all(concat(_raw, {literal(dialect.delimiter)}), {literal(a_cell)}, 1)"
    cut = f"split(_raw, {literal(re.escape(dialect.delimiter))}, -1)"
    is_broken = f"array_join(_tokens, {literal(dialect.delimiter)}) <> _raw"
    is_odd = f"(length({bare}) - length(replace({bare}, {literal(dialect.quote)}, ''))) % 2 <> 0"
    quoted = lines.selectExpr("*", f"if(contains(_raw, {literal(dialect.quote)}), {tokens}, NULL) AS _tokens")
    return quoted.selectExpr(*PLACE, "_raw", f"if(_tokens IS NULL, {cut}, _tokens) AS _cells",
                             f"_tokens IS NOT NULL AND ({is_broken} OR {is_odd}) AS _misquoted")  # fmt: skip


def _unquoted(written: str, dialect: Dialect) -> str:
    """What a cell says, as a single expression: an array's ``transform`` would keep the whole step from being compiled."""
    inside, quote = f"substring({written}, 2, length({written}) - 2)", literal(dialect.quote)
    if dialect.escape == dialect.quote:
        inside = f"replace({inside}, {literal(dialect.quote * 2)}, {quote})"
    else:
        escaped = f"{re.escape(dialect.escape)}([{re.escape(dialect.quote)}{re.escape(dialect.escape)}])"
        inside = f"regexp_replace({inside}, {literal(escaped)}, '$1')"
    return f"if(startswith({written}, {quote}), {inside}, {written})"


def first_fault(faults: list[tuple[str, str]]) -> str:
    """The rule of the first condition that holds, else null."""
    return "CASE " + " ".join(f"WHEN {condition} THEN {literal(rule)}" for rule, condition in faults) + " END"


def with_json_cells(lines: DataFrame, contract: Contract) -> DataFrame:
    """Takes JSON lines apart: one object a line, no key twice. Also gives each cell's JSON kind (string, number, boolean,
    array; where the cell is null it may be any)."""
    # Spark's parser stops at the object's end and takes what follows for nothing. Wrapped in an array, what follows is an
    # error, unless it closes the array; then it is one in the other parse, which wraps the line in an object.
    texts = f"from_json(concat('[', _raw, ']'), 'array<map<string,string>>', {STRICT_JSON})"
    kinds = f"from_json(concat('{{\"x\":', _raw, '}}'), 'map<string,map<string,variant>>', {STRICT_JSON})['x']"
    asked = r"_raw RLIKE '\\A\\s*\\{'"
    # A generator is a barrier: without it the optimizer would parse the line once for every cell that is taken out.
    objects = f"inline_outer(array(named_struct('objects', if({asked}, {texts}, NULL), 'kinds', if({asked}, {kinds}, NULL))))"
    parsed = lines.selectExpr("*", objects).selectExpr("*", "if(size(objects) = 1, get(objects, 0), NULL) AS texts")
    known = f"array({literals(column.name for column in contract.source_columns)})"
    extra = f"array_except(map_keys(texts), {known})"
    faults = [(BLANK, r"NOT _raw RLIKE '\\S'"), ("utf8", f"NOT is_valid_utf8(_raw) OR {LONE_SURROGATE}"),
              ("json", "texts IS NULL OR kinds IS NULL"),
              ("repeated_key", "size(map_keys(texts)) <> size(array_distinct(map_keys(texts)))")]  # fmt: skip
    if contract.dialect.extra_columns == "refuse":
        faults.append(("extra_column", f"size({extra}) > 0"))
    cells = []
    for column in contract.source_columns:
        name = literal(column.name)
        is_null = f"is_variant_null(kinds[{name}])"
        cells.append(f"if({is_null}, NULL, texts[{name}]) AS {quote_name(cell(column.name))}")
        cells.append(f"if({is_null}, NULL, schema_of_variant(kinds[{name}])) AS {quote_name(kind(column.name))}")
    fault = f"{first_fault(faults)} AS _fault"
    return parsed.selectExpr(*PLACE, "_raw", fault, f"try_element_at({extra}, 1) AS _fault_value", *cells)


def with_image_cells(rows: DataFrame, contract: Contract) -> DataFrame:
    """Files as rows: their path below the folder and their bytes, as they are. What is neither JPEG nor PNG is refused."""
    texts = [column.name for column in contract.source_columns if column.type == "string"]
    blobs = [column.name for column in contract.source_columns if column.type == "binary"]
    if len(texts) != 1 or len(blobs) != 1 or len(contract.source_columns) != 2:
        raise contract.document.error(
            ("schema",), "a source of images fills two columns, a string (the path) and a binary (the bytes); "
            f"table '{contract.table}' has {', '.join(f'{c.name} {c.type}' for c in contract.source_columns)}")  # fmt: skip
    image = "startswith(_content, X'FFD8FF') OR startswith(_content, X'89504E470D0A1A0A')"
    return rows.selectExpr(*PLACE, "CAST(_content AS STRING) AS _raw", f"if({image}, NULL, 'image') AS _fault",
                           "_path AS _fault_value", f"_path AS {quote_name(cell(texts[0]))}",
                           f"_content AS {quote_name(cell(blobs[0]))}")  # fmt: skip


#: Of each kind of column, the kinds in a Parquet file that hold its values exactly.
WHOLE = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
HOLDS: dict[str, tuple[type[T.DataType], ...]] = {
    "string": (T.StringType,), "boolean": (T.BooleanType,), "date": (T.DateType,), "binary": (T.BinaryType,),
    "timestamp": (T.TimestampType, T.TimestampNTZType), "decimal": (*WHOLE, T.DecimalType),
    "tinyint": WHOLE, "smallint": WHOLE, "int": WHOLE, "bigint": WHOLE,
    "double": (*WHOLE, T.FloatType, T.DoubleType, T.DecimalType), "float": (*WHOLE, T.FloatType, T.DoubleType, T.DecimalType),
    "array<double>": (*WHOLE, T.FloatType, T.DoubleType), "array<float>": (*WHOLE, T.FloatType, T.DoubleType),
    "array<bigint>": WHOLE, "array<int>": WHOLE,
}  # fmt: skip


#: Metadata of a column of whole numbers that are nanoseconds, for which Spark has no type: "utc", or "local" without a zone.
NANOS = "lakering.nanos"
#: How values are written to be read again as they are: by default Spark cuts a timestamp's microseconds.
LOCAL_TEXT, INSTANT_TEXT = "yyyy-MM-dd'T'HH:mm:ss.SSSSSS", "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX"
EXACT_JSON = ("ignoreNullFields", "false", "timestampFormat", INSTANT_TEXT, "timestampNTZFormat", LOCAL_TEXT)


#: Why a timestamp without a zone is no instant.
NO_ZONE = "holds timestamps without a zone, and the contract names none"


def with_parquet_cells(rows: DataFrame, contract: Contract, path: str) -> DataFrame:
    """Columns by name. Numbers go through their text, like a cell's, so that one rule judges what they may be; other values
    stay as they are. Raises InputError for a column of another kind than the contract's."""
    fields = {field.name: field for field in rows.schema.fields}
    cells, texts = [], []
    for column in contract.source_columns:
        name, held = quote_name(column.name), fields[column.name].dataType
        nanos = fields[column.name].metadata.get(NANOS)
        if nanos:
            held = T.TimestampType() if nanos == "utc" else T.TimestampNTZType()
        if reason := unfit_for(column, held, contract.dialect):
            look = "mend the file, or the contract" if reason != NO_ZONE else "set the custom property timestampZone of"
            raise InputError(f"{path}: column '{column.name}' {reason}", next_step=f"{look} {contract.document.path}")
        value, raw, fault = cell_of_value(column, name, held, contract.dialect, bool(nanos))
        cells.append(f"{value} AS {quote_name(cell(column.name))}")
        if fault:
            cells.append(f"{fault} AS {quote_name(wrong(column.name))}")
        texts.append(f"{raw} AS {name}")
    raw = f"to_json(struct({', '.join(texts)}), map({literals(EXACT_JSON)})) AS _raw"
    return rows.selectExpr(*PLACE, raw, "CAST(NULL AS STRING) AS _fault", "CAST(NULL AS STRING) AS _fault_value", *cells)


def unfit_for(column: Column, held: T.DataType, dialect: Dialect) -> str | None:
    """Why values of a kind are none of a column's, in words."""
    element, is_array = _element(held), column.type.startswith("array<")
    if is_array != isinstance(held, T.ArrayType) or not isinstance(element, HOLDS[column.type.split("(")[0]]):
        return f"holds {held.simpleString()}, the contract says {column.type}"
    return NO_ZONE if isinstance(element, T.TimestampNTZType) and dialect.timestamp_zone is None else None


def cell_of_value(
    column: Column, value: str, held: T.DataType, dialect: Dialect, nanos: bool = False
) -> tuple[str, str, str | None]:
    """Of a value (SQL) of a kind that is not unfit: the cell, how it is kept of a refused row, and the condition under which the
    cell is not what the value says."""
    if column.type == "timestamp":
        return _parquet_timestamp(value, held, nanos, dialect.timestamp_zone)
    text, raw = _parquet_value(value, _element(held), column.type)
    return text, raw, f"NOT is_valid_utf8({value})" if column.type == "string" else None


def is_number(column: Column) -> bool:
    """Whether the column's cells are texts, whatever its values are read from."""
    return not column.type.startswith("array<") and issubclass(HOLDS[column.type.split("(")[0]][0], T.NumericType)


def _element(held: T.DataType) -> T.DataType:
    return held.elementType if isinstance(held, T.ArrayType) else held


def _parquet_value(name: str, element: T.DataType, wanted: str) -> tuple[str, str]:
    """A cell, and how it is kept of a refused row."""
    # A float's shortest text is not the double that it is.
    widened = isinstance(element, T.FloatType) and wanted in ("double", "array<double>")
    raw = f"CAST({name} AS {wanted})" if widened else name
    if wanted.startswith("array<"):
        return f"transform({name}, e -> try_cast(e AS {wanted[6:-1]}))", raw
    text = f"CAST({raw} AS STRING)"
    if isinstance(element, T.DecimalType) and wanted.startswith("decimal"):
        return _without_zeros(text, element.scale, int(re.findall(r"\d+", wanted)[1])), raw
    return text if isinstance(element, T.NumericType) else name, raw


def _without_zeros(text: str, scale: int, wanted: int) -> str:
    """1.2500 fits where two digits do. By the text: a comparison of decimals of 38 digits rounds."""
    if scale <= wanted:
        return text
    end = "." * (wanted == 0) + "0" * (scale - wanted)
    return f"if(endswith({text}, '{end}'), left({text}, length({text}) - {len(end)}), {text})"


def _parquet_timestamp(name: str, element: T.DataType, nanos: bool, zone: str | None) -> tuple[str, str, str | None]:
    """An instant, how it is kept of a refused row, and the condition under which it is not what the file says."""
    is_local = isinstance(element, T.TimestampNTZType)
    moment, raw, faults = name, name, []
    if nanos:
        moment = f"timestamp_micros({name} div 1000)"
        text = f"date_format({moment}, {literal(LOCAL_TEXT if is_local else INSTANT_TEXT)})"
        raw = f"if({name} % 1000 = 0, {text}, CAST({name} AS STRING))"
        faults.append(f"{name} % 1000 <> 0")
    if is_local:
        local, zone = f"CAST({moment} AS TIMESTAMP)", literal(zone)
        moment = f"to_utc_timestamp({local}, {zone})"
        faults.append(f"from_utc_timestamp({moment}, {zone}) <> {local}")  # an hour that a change of the clocks left out
    return moment, raw, " OR ".join(faults) or None
