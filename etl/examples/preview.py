"""What a build would hold, told without building it: the main table is read once, nothing is joined, learnt or written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pyspark.sql import functions as F
from pyspark.sql import types as T

from etl.examples.joins import NUMBERS, Tables, as_feature, evaluate, project_examples, select_examples
from etl.examples.plan import Plan
from etl.transforms.row_ids import ROW_ID
from etl.transforms.selection import DROPPED, REASONS
from etl.transforms.splits import SPLIT, split_of
from lakering.errors import InputError
from lakering.manifest import SPLITS
from lakering.summary import Summary
from schemas.expressions import quote_name

CONDITION = (T.BooleanType,)


@dataclass(frozen=True)
class Counts:
    """Rows of the main table that would become examples, by split, and that would not, by reason."""

    num_rows: dict[str, int]
    dropped: dict[str, int]

    @property
    def rows_read(self) -> int:
        return sum(self.num_rows.values()) + sum(self.dropped.values())


def count_examples(plan: Plan, tables: Tables) -> Counts:
    """Counts what would become of the main table's rows, once Spark has accepted every expression of the recipe.

    Raises SettingError, with file and line, for a value of the wrong type."""
    selected = select_examples(plan, tables(plan.main.table))
    _validate_types(plan, tables)
    project_examples(plan, selected.withColumn(ROW_ID, F.lit(0)))  # never run: it is analysed for its errors
    split = F.when(F.col(DROPPED).isNull(), split_of(plan.examples.split, plan.examples.seed))
    found = {(row[DROPPED], row[SPLIT]): row["count"] for row in selected.groupBy(DROPPED, split.alias(SPLIT)).count().collect()}
    return Counts({name: found[None, name] for name in SPLITS if (None, name) in found},
                  {reason: found[reason, None] for reason in REASONS if (reason, None) in found})  # fmt: skip


def _validate_types(plan: Plan, tables: Tables) -> None:
    """Spark's judgement of what is joined; no row is read for it."""
    features = {feature.name: feature for feature in plan.features}
    for join in (*plan.lookups, *plan.asofs):
        side = tables(join.table)
        for name, column in join.columns.items():
            as_feature(plan, features[name], side, F.col(quote_name(column)))
    for aggregate in plan.aggregates:
        evaluate(plan, tables(aggregate.table), aggregate.value, (*aggregate.at, "aggregate"), NUMBERS, "a number")
        if aggregate.where:
            evaluate(plan, tables(aggregate.table), aggregate.where, (*aggregate.at, "where"), CONDITION, "a condition")


def report_preview(summary: Summary, plan: Plan, build_id: str, versions: dict[str, tuple[str, int]], *, is_there: bool) -> None:
    """Adds what is known before any row is read: the build's id, its inputs by version, its features."""
    would = "report it: it is complete (--new makes another)" if is_there else "build it"
    summary.add("build", id=build_id, dry_run="nothing was written", would=would, format=plan.examples.format)
    summary.add("would read", **{name: f"version {version} (table {table})" for name, (table, version) in versions.items()})
    by_kind: dict[str, list[str]] = {}
    for feature in plan.features:
        by_kind.setdefault(feature.how, []).append(feature.name)
    summary.add("features", **by_kind)
    others = Counter(f"{feature.kind}s" for feature in plan.of("text", "array", "image"))
    unseen = "; rows without an image are counted as examples here" if plan.of("image") else ""
    summary.add("columns", numbers=len(plan.of("number")), ids=len(plan.of("id")), **others,
                note="a number that is ever null on train gets an indicator, NAME_is_null, beside it" + unseen)  # fmt: skip


def report_counts(summary: Summary, plan: Plan, counts: Counts) -> None:
    """Adds the rows. Raises InputError when the build would find nothing to train on."""
    summary.add("rows", rows_read=counts.rows_read, examples=counts.num_rows, dropped=counts.dropped)
    if not counts.num_rows.get("train"):
        raise InputError(
            f"recipe '{plan.recipe.name}': nothing to train on (examples: {counts.num_rows or 'none'}, "
            f"left out: {counts.dropped or 'none'})",
            next_step="move the bounds of examples.split, or look at examples.predict",
        )
