"""From lines to cells: the structure of a line, before its values mean anything.

A line that cannot be taken apart gets a ``_fault``: a struct of rule and value. Every other line has its cells: texts by
column name, null where the file says null.
"""

from __future__ import annotations

from pyspark.sql import Column as Expr
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas import Contract, Dialect

FAULT = "struct<rule:string,value:string>"


def fault(rule: str, value: Expr | None = None) -> Expr:
    text = F.lit(None) if value is None else value
    return F.struct(F.lit(rule).alias("rule"), text.cast("string").alias("value"))


def cell(name: str) -> str:
    """The column that holds a cell's text; its kind (JSON alone) stands in ``kind(name)``."""
    return f"_cell_{name}"


def kind(name: str) -> str:
    return f"_kind_{name}"


def with_csv_cells(lines: DataFrame, contract: Contract, header: tuple[str, ...]) -> DataFrame:
    """Takes single-line CSV apart, under a header in any order. The header's own line must be gone.

    Adds ``_fault`` and a text per source column. Univocity's parser fills a short line and cuts a long one without a word
    unless it is asked for the corrupt record; a lone quote it takes as text, so an odd number of quotes is refused."""
    dialect, fields = contract.dialect, [f"c{index}" for index in range(len(header))]
    schema = ", ".join(f"{name} string" for name in [*fields, "corrupt"])
    options = {"sep": dialect.delimiter, "quote": dialect.quote, "escape": dialect.escape, "mode": "PERMISSIVE",
               "columnNameOfCorruptRecord": "corrupt", "emptyValue": "", "nullValue": "",
               "maxCharsPerColumn": "-1", "unescapedQuoteHandling": "STOP_AT_DELIMITER"}  # fmt: skip
    # A generator is a barrier: without it the optimizer would parse the line once for every column that is taken out.
    parsed = lines.select("*", F.inline_outer(F.array(F.from_csv("_raw", schema, options))))
    present = dict(zip(header, fields, strict=True))
    tokens = list(dialect.null_tokens)
    cells = []
    for column in contract.source_columns:
        text = F.coalesce(F.col(present[column.name]), F.lit(""))
        cells.append(F.when(~text.isin(tokens), text).alias(cell(column.name)))
    reasons = [
        F.when(~F.is_valid_utf8("_raw"), fault("utf8")),
        F.when(_num_quotes(dialect) % 2 != 0, fault("quote")),
        F.when(F.col("corrupt").isNotNull(), fault("num_cells")),
    ]
    return parsed.select(*lines.columns, F.coalesce(*reasons).alias("_fault"), *cells)


def _num_quotes(dialect: Dialect) -> Expr:
    """Quotes in the line, escaped ones left out where the escape is another character."""
    text = F.col("_raw")
    if dialect.escape != dialect.quote:
        for escaped in (dialect.escape * 2, dialect.escape + dialect.quote):
            text = F.replace(text, F.lit(escaped), F.lit(""))
    return F.length(text) - F.length(F.replace(text, F.lit(dialect.quote), F.lit("")))


def with_json_cells(lines: DataFrame, contract: Contract) -> DataFrame:
    """Takes JSON lines apart: one object a line, plain values alone, no key twice.

    Adds ``_fault`` and for each source column its text and its JSON kind (string, number, boolean; null for null)."""
    # Spark's parser stops at the object's end and takes what follows for nothing. Wrapped in an array, what follows is an
    # error, unless it closes the array; then it is one in the other parse, which wraps the line in an object.
    texts = F.from_json(F.concat(F.lit("["), "_raw", F.lit("]")), "array<map<string,string>>")
    kinds = F.from_json(F.concat(F.lit('{"x":'), "_raw", F.lit("}")), "map<string,map<string,variant>>")["x"]
    is_object = F.col("_raw").rlike(r"\A\s*\{")
    parsed = lines.select(
        "*", F.inline_outer(F.array(F.struct(F.when(is_object, texts).alias("objects"), F.when(is_object, kinds).alias("kinds"))))
    ).withColumn("texts", F.when(F.size("objects") == 1, F.col("objects")[0]))
    names = F.map_keys("texts")
    known = F.array(*[F.lit(column.name) for column in contract.source_columns])
    extra = F.element_at(F.array_except(names, known), 1)
    reasons = [
        F.when(~F.is_valid_utf8("_raw"), fault("utf8")),
        F.when(F.col("texts").isNull() | F.col("kinds").isNull(), fault("json")),
        F.when(F.size(names) != F.size(F.array_distinct(names)), fault("repeated_key")),
    ]
    if contract.dialect.extra_columns == "refuse":
        reasons.append(F.when(F.size(F.array_except(names, known)) > 0, fault("extra_column", extra)))
    cells = []
    for column in contract.source_columns:
        is_null = F.is_variant_null(F.col("kinds")[column.name])
        cells.append(F.when(~is_null, F.col("texts")[column.name]).alias(cell(column.name)))
        cells.append(F.when(~is_null, F.schema_of_variant(F.col("kinds")[column.name])).alias(kind(column.name)))
    return parsed.select(*lines.columns, F.coalesce(*reasons).alias("_fault"), *cells)
