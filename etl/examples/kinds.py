"""Features that are more than a number: arrays, texts and images, from their columns to the cells of an example table.

They are carried as structs: of an array its packed bytes and figures, of a text its words, of an image its bytes and size.
So what is learnt of them is read without reading them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

from pyspark.sql import Column as Expr
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.examples.plan import Feature, Plan
from etl.transforms.ids import num_ids
from etl.transforms.statistics import Moments, indicator
from etl.transforms.words import words_of
from lakering.errors import IntegrityError
from lakering.manifest import Column

Splits = Mapping[str, Mapping[str, Moments]]
#: Bytes that Spark hands to Python at a time; it counts rows, and some rows are long.
ARROW_BATCH_BYTES = 32 * 2**20
ELEMENT_BYTES, WORD_BYTES = 8, 16


def carried(feature: Feature, value: Expr) -> Expr:
    """A value of an array, text or image as it is carried; its fields are null where the value is."""
    if feature.kind == "image":
        return F.struct(value.alias("bytes"), F.length(value).alias("size"))
    assert feature.shape is not None
    if feature.kind == "text":
        return words_of(value, feature.shape[0])
    from etl.transforms.packing import packed_array  # takes pandas, for which other builds need not wait

    return packed_array(value, feature.shape)


def has_images(plan: Plan) -> Expr:
    """Whether a row has all of its images; without one it can be no example."""
    return reduce(Expr.__and__, [F.coalesce(F.col(f"{f.name}.size") > 0, F.lit(False)) for f in plan.of("image")], F.lit(True))


def figure_columns(plan: Plan) -> list[str]:
    """The numbers in the structs, of which moments are learnt."""
    names = [f"{f.name}.{field}" for f in plan.of("text") for field in ("total", "is_cut")]
    names += [f"{f.name}.size" for f in plan.of("image")]
    if plan.of("array"):
        from etl.transforms.packing import FIGURES

        names += [f"{f.name}.{field}" for f in plan.of("array") for field in FIGURES]
    return names


def counted(plan: Plan, name: str) -> str:
    """The column whose moments count the rows that have a value of a feature."""
    return f"{name}.total" if any(f.name == name for f in plan.of("array", "text")) else name


def validate_arrays(plan: Plan, splits: Splits) -> None:
    """Raises IntegrityError when a table holds arrays of another size than its contract tells."""
    for feature in plan.of("array"):
        wrong = sum(_sum(moments[f"{feature.name}.wrong"]) for moments in splits.values())
        if wrong:
            raise IntegrityError(f"feature '{feature.name}': {wrong:,} rows hold arrays of another size than the shape "
                                 f"{list(feature.shape or ())} of its contract",
                                 next_step="mend the contract, or move the table away and ingest it again")  # fmt: skip


def array_indicators(plan: Plan, train: Mapping[str, Moments]) -> dict[str, Expr]:
    """An indicator of each array that is null at times in train."""
    names = [f.name for f in plan.of("array") if train[f"{f.name}.total"].nulls]
    return {indicator(name): F.col(f"{name}.bytes").isNull().cast("float") for name in names}


def array_figures(plan: Plan, moments: Mapping[str, Moments], train: Mapping[str, Moments]) -> dict[str, dict[str, float]]:
    """Of each array count, mean, std, min and max over the elements of the arrays that are there; and of its indicator."""
    figures: dict[str, dict[str, float]] = {}
    for f in plan.of("array"):
        total, squares, size = moments[f"{f.name}.total"], moments[f"{f.name}.squares"], math.prod(f.shape or ())
        mean = total.mean / size
        figures[f.name] = {"count": 0} if not total.count else {
            "count": total.count * size, "mean": mean, "std": math.sqrt(max(squares.mean / size - mean * mean, 0.0)),
            "min": moments[f"{f.name}.low"].min, "max": moments[f"{f.name}.high"].max}  # fmt: skip
        if train[f"{f.name}.total"].nulls:
            figures[indicator(f.name)] = total.indicator_figures()
    return figures


def nulls(plan: Plan, splits: Splits) -> dict[str, dict[str, int]]:
    """Rows without a value of each array and text, by split."""
    return {f.name: {split: m[f"{f.name}.total"].nulls for split, m in splits.items()} for f in plan.of("array", "text")}


def not_finite(plan: Plan, splits: Splits) -> dict[str, int]:
    """Elements of each array that were null or not finite, and are 0 in the examples."""
    return {f.name: sum(_sum(moments[f"{f.name}.bad"]) for moments in splits.values()) for f in plan.of("array")}


def text_facts(plan: Plan, splits: Splits) -> dict[str, dict[str, Any]]:
    """Of each text how many rows were cut to its length, by split, and the words of a row in train before that."""
    return {f.name: {"length": (f.shape or (0,))[0],
                     "cut": {split: _sum(m[f"{f.name}.is_cut"]) for split, m in splits.items()},
                     "words": splits["train"][f"{f.name}.total"].figures()} for f in plan.of("text")}  # fmt: skip


def image_facts(plan: Plan, splits: Splits) -> dict[str, dict[str, float]]:
    """Of each image its mean and greatest size in bytes, over all splits."""
    facts = {}
    for f in plan.of("image"):
        sizes = [moments[f"{f.name}.size"] for moments in splits.values()]
        total = sum(_sum(size) for size in sizes)
        facts[f.name] = {"mean_bytes": total / sum(size.count for size in sizes), "max_bytes": max(size.max for size in sizes)}
    return facts


def _sum(moments: Moments) -> int:
    """The sum of whole numbers."""
    return round(moments.mean * moments.count)


def written_cells(plan: Plan, vocabulary: DataFrame | None) -> dict[str, Expr]:
    """The cells of arrays, texts and images, in the order of ``written_columns``."""
    cells = {}
    for f in plan.of("array"):
        zeros = bytearray(ELEMENT_BYTES // 2 * math.prod(f.shape or ()))
        cells[f.name] = F.coalesce(F.col(f"{f.name}.bytes"), F.lit(zeros))
    if plan.of("text"):
        from etl.transforms.packing import packed_ids

        assert vocabulary is not None
        known: dict[str, dict[str, int]] = {f.name: {} for f in plan.of("text")}
        words = vocabulary.where(F.col("feature").isin(*known)).select("feature", "value", "id").toArrow()
        for name, value, id_ in zip(*(words[field].to_pylist() for field in words.column_names), strict=True):
            known[name][value] = id_
        for f in plan.of("text"):
            assert f.ids is not None
            assert f.shape is not None
            cells[f.name] = packed_ids(F.col(f"{f.name}.words"), known[f.name], f.ids, f.shape[0])
    return cells | {f.name: F.col(f"{f.name}.bytes") for f in plan.of("image")}


def written_columns(plan: Plan, vocabulary_sizes: Mapping[str, int]) -> list[Column]:
    columns = [Column(f.name, "array", shape=f.shape) for f in plan.of("array")]
    columns += [
        Column(f.name, "tokens", num_ids(f.ids, vocabulary_sizes.get(f.name, 0)), f.shape) for f in plan.of("text") if f.ids
    ]
    return columns + [Column(f.name, "image") for f in plan.of("image")]


def cell_widths(columns: Iterable[Column], images: Mapping[str, Mapping[str, float]]) -> dict[str, int]:
    """The bytes that a cell of each binary column takes in a file, in the mean: its length stands before it."""
    widths = {c.name: 4 + c.cell_bytes for c in columns if c.cell_bytes is not None}
    return widths | {name: 4 + round(facts["mean_bytes"]) for name, facts in images.items()}


def arrow_rows(plan: Plan) -> int | None:
    """Rows that Spark may hand to Python at a time, for the longest of them to fit; None when it hands none."""
    longest = [ELEMENT_BYTES * math.prod(f.shape or ()) for f in plan.of("array")]
    longest += [WORD_BYTES * (f.shape or (1,))[0] for f in plan.of("text")]
    return max(1, ARROW_BATCH_BYTES // max(longest)) if longest else None
