"""What an example table is made of, worked out from the recipe and the contracts before any Spark work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from etl.examples.checks import Checker
from lakering.documents import Path_
from lakering.durations import parse_duration
from recipes import Recipe
from recipes.settings import (
    AggregateFeature,
    AsofFeature,
    ColumnFeature,
    Examples,
    ExpressionFeature,
    FeatureColumn,
    IdSettings,
    LookupFeature,
)
from schemas import Column, Contract
from schemas.expressions import Expression

How = Literal["column", "expression", "as-of", "look-up", "window"]
Kind = Literal["number", "id", "text", "array", "image"]
#: Names that an example table takes for itself.
RESERVED = ("row_id", "label", "weight", "split")


@dataclass(frozen=True)
class Feature:
    """One feature as it is joined, before nulls are filled and ids are looked up. ``at`` is its place in the recipe.

    ``ids`` are of ids and texts; ``shape`` is an array's, and of a text how many ids it becomes."""

    name: str
    how: How
    at: Path_
    kind: Kind = "number"
    ids: IdSettings | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Lookup:
    """``on`` maps columns of the main table to the side table's; ``columns`` maps features to the side table's columns."""

    table: str
    on: dict[str, str]
    columns: dict[str, str]
    at: Path_


@dataclass(frozen=True)
class Asof(Lookup):
    seconds: int


@dataclass(frozen=True)
class Aggregate:
    """Figures over one value. ``known`` are the columns the greatest of which is when the value is known; ``windows``
    maps lengths in seconds to the features by function."""

    table: str
    by: tuple[str, ...]
    value: Expression
    where: Expression | None
    known: tuple[str, ...]
    at: Path_
    windows: dict[int, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything that decides what an example row holds."""

    recipe: Recipe
    examples: Examples
    contracts: dict[str, Contract]
    label: Expression
    moment: Expression
    where: Expression | None
    weight: Expression | None
    label_known: tuple[str, ...]
    features: tuple[Feature, ...]
    expressions: dict[str, Expression]
    lookups: tuple[Lookup, ...]
    asofs: tuple[Asof, ...]
    aggregates: tuple[Aggregate, ...]

    @property
    def main(self) -> Contract:
        return self.contracts[self.examples.from_]

    @property
    def key(self) -> tuple[str, ...]:
        """The main table's key; without one, where a row came from is its key."""
        return self.main.key or ("_source", "_position")

    @property
    def join_columns(self) -> tuple[str, ...]:
        """Columns of the main table by which other rows are found."""
        found = {name for join in (*self.lookups, *self.asofs) for name in join.on}
        return tuple(sorted(found | {name for aggregate in self.aggregates for name in aggregate.by}))

    def of(self, *kinds: Kind) -> tuple[Feature, ...]:
        """The features of some kinds, in the recipe's order."""
        return tuple(feature for feature in self.features if feature.kind in kinds)


def plan_examples(recipe: Recipe) -> Plan:
    """Plans a recipe's examples. Raises SettingError, with file and line, for an unknown name, for a feature that would
    see an outcome too early, and for two features of one name."""
    return _Planner(recipe).plan()


class _Planner:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.examples = recipe, recipe.examples()
        self.contracts: dict[str, Contract] = {}
        self.features: list[Feature] = []
        self.expressions: dict[str, Expression] = {}
        self.lookups: list[Lookup] = []
        self.asofs: list[Asof] = []
        self.aggregates: list[Aggregate] = []
        self.main = self.contract(self.examples.from_, ("examples", "from"))
        self.check = Checker(recipe.document)

    def contract(self, table: str, at: Path_) -> Contract:
        if table not in self.contracts:
            Checker(self.recipe.document).known(table, self.recipe.settings.tables, "table", at)
            self.contracts[table] = self.recipe.contract(table)
        return self.contracts[table]

    def plan(self) -> Plan:
        predict, at, check = self.examples.predict, ("examples", "predict"), self.check
        label = check.expression(predict.label, self.main, (*at, "label"))
        moment = check.expression(predict.moment, self.main, (*at, "moment"), outcomes=False)
        where = check.expression(predict.where, self.main, (*at, "where")) if predict.where else None
        weight = check.expression(predict.weight, self.main, (*at, "weight")) if predict.weight else None
        for index, feature in enumerate(self.examples.features):
            self._add(feature, ("examples", "features", index))
        if self.examples.split.by == "hash":
            for name in self.examples.split.of:
                check.column(name, self.main, ("examples", "split", "of"))
        self._validate_names()
        return Plan(self.recipe, self.examples, self.contracts, label, moment, where, weight,
                    check.known_columns(self.main, label.columns, at, required=False), tuple(self.features),
                    self.expressions, tuple(self.lookups), tuple(self.asofs), tuple(self.aggregates))  # fmt: skip

    def _add(self, feature: object, at: Path_) -> None:
        if isinstance(feature, ColumnFeature):
            self.expressions[feature.column] = self.check.expression(f"`{feature.column}`", self.main, at, outcomes=False)
            self._feature(feature.column, "column", at, feature, feature.ids, self.check.column(feature.column, self.main, at))
        elif isinstance(feature, ExpressionFeature):
            self.expressions[feature.name] = self.check.expression(feature.expression, self.main, at, outcomes=False)
            self._feature(feature.name, "expression", at, feature, feature.ids)
        elif isinstance(feature, LookupFeature):
            self._add_lookup(feature, at)
        elif isinstance(feature, AsofFeature):
            self._add_asof(feature, at)
        elif isinstance(feature, AggregateFeature):
            self._add_aggregate(feature, at)

    def _feature(self, name: str, how: How, at: Path_, wanted: FeatureColumn | ExpressionFeature | None = None,
                 ids: IdSettings | None = None, column: Column | None = None) -> None:  # fmt: skip
        kind: Kind = wanted.as_ if wanted else "number"
        if column is not None:
            self.check.kind(column, kind, at)
        shape = (wanted.length,) if wanted and kind == "text" else column.shape if column else None
        self.features.append(Feature(name, how, at, kind, ids if kind in ("id", "text") else None, shape))

    def _joined(self, feature: LookupFeature | AsofFeature, side: Contract, how: How, at: Path_) -> dict[str, str]:
        for left, right in feature.on.items():
            self.check.column(left, self.main, (*at, "on", left), outcomes=False)
            self.check.column(right, side, (*at, "on", left), outcomes=False)
            self.check.same_type(self.main, left, side, right, (*at, "on", left))
        columns = {}
        for item in feature.columns:
            column = self.check.column(item.column, side, (*at, "columns"), outcomes=False)
            name = f"{feature.prefix}_{item.column}" if feature.prefix else item.column
            columns[name] = item.column
            self._feature(name, how, at, item, feature.ids, column)
        return columns

    def _add_lookup(self, feature: LookupFeature, at: Path_) -> None:
        side = self.contract(feature.lookup, (*at, "lookup"))
        if side.repeated_key != "replace":
            raise self.check.error(
                (*at, "lookup"),
                f"table '{side.table}' keeps every row of its time (repeatedKey: keep): join it with 'asof' instead of 'lookup'",
            )
        missing = sorted(set(side.key) - set(feature.on.values()))
        if missing:
            raise self.check.error(
                (*at, "on"),
                f"a look-up finds one row by the whole key of table '{side.table}'; {', '.join(missing)} is missing",
            )
        self.lookups.append(Lookup(side.table, dict(feature.on), self._joined(feature, side, "look-up", at), at))

    def _add_asof(self, feature: AsofFeature, at: Path_) -> None:
        side = self.contract(feature.asof, (*at, "asof"))
        if side.repeated_key != "keep" or side.event_time is None:
            raise self.check.error(
                (*at, "asof"),
                f"table '{side.table}' does not tell what was known when (it needs repeatedKey keep "
                "and an eventTime): join it with 'lookup' instead of 'asof'",
            )
        self.check.column(side.event_time, side, (*at, "asof"), outcomes=False)
        columns = self._joined(feature, side, "as-of", at)
        self.asofs.append(Asof(side.table, dict(feature.on), columns, at, parse_duration(feature.at_most)))

    def _add_aggregate(self, feature: AggregateFeature, at: Path_) -> None:
        table = feature.table or self.examples.from_
        events = self.contract(table, (*at, "table"))
        if events.repeated_key != "keep":
            raise self.check.error(
                at, f"table '{table}' holds values of today (repeatedKey: replace), nothing to aggregate over the past"
            )
        value = self.check.expression(feature.aggregate, events, (*at, "aggregate"))
        where = self.check.expression(feature.where, events, (*at, "where")) if feature.where else None
        for name in feature.by:
            self.check.column(name, self.main, (*at, "by"), outcomes=False)
            self.check.column(name, events, (*at, "by"), outcomes=False)
            self.check.same_type(self.main, name, events, name, (*at, "by"))
        known = self.check.known_columns(events, value.columns | (where.columns if where else frozenset()), at)
        new = Aggregate(table, tuple(sorted(set(feature.by))), value, where, known, at)
        same = [a for a in self.aggregates if (a.table, a.by, a.value, a.where) == (new.table, new.by, new.value, new.where)]
        aggregate = same[0] if same else new
        if not same:
            self.aggregates.append(new)
        features = aggregate.windows.setdefault(parse_duration(feature.window), {})
        for function in feature.functions:
            name = _aggregate_name(feature, function, self.examples.from_)
            if function in features:
                raise self.check.error(at, f"feature '{name}' stands here twice (first as '{features[function]}')")
            features[function] = name
            self._feature(name, "window", at)

    def _validate_names(self) -> None:
        seen: dict[str, Feature] = {}
        for feature in self.features:
            # Spark takes names of columns without regard to case.
            name = feature.name.lower()
            if name in RESERVED:
                raise self.check.error(
                    feature.at,
                    f"feature name '{feature.name}' is taken by the example table; give it a 'name' or a 'prefix'",
                )
            if name in seen:
                raise self.check.error(
                    feature.at,
                    f"two features are called '{feature.name}' (the other stands at "
                    f"{self.recipe.document.where(seen[name].at)}); give one a 'name' or a 'prefix'",
                )
            seen[name] = feature
        for feature in self.features:
            if f"{feature.name.lower()}_is_null" in seen:
                raise self.check.error(
                    feature.at, f"the name '{feature.name}_is_null' is kept for the indicator of '{feature.name}'"
                )


def _aggregate_name(feature: AggregateFeature, function: str, main: str) -> str:
    """Such as ``dep_delay_avg_origin_1h``."""
    number, unit = feature.window.split()
    table = [feature.table] if feature.table not in (None, main) else []
    return "_".join([*table, str(feature.name or feature.aggregate), function, *feature.by, number + unit[0]])
