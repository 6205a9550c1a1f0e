"""Carries a plan out: the main table's rows, with every feature joined to them, before anything is learnt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from pyspark.errors import AnalysisException
from pyspark.sql import Column as Expr
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from etl.examples.kinds import carried
from etl.examples.plan import Aggregate, Asof, Feature, Plan
from etl.transforms.point_in_time import MOMENT, Stream, at_scale, finite, fixed_point, micros, with_past
from etl.transforms.row_ids import ROW_ID
from etl.transforms.selection import to_feature, with_prediction
from etl.transforms.splits import SPLIT, split_of
from lakering.documents import Path_
from schemas import Contract
from schemas.expressions import Expression, quote_name

SECOND = 1_000_000
Tables = Callable[[str], DataFrame]
Keep = Callable[[DataFrame], DataFrame]
NUMBERS = (T.NumericType, T.BooleanType)
#: Fractional numbers are no ids: 0.1 + 0.2 is not 0.3.
FRACTIONS = (T.FloatType, T.DoubleType, T.DecimalType)
CLASSES = (T.StringType, T.IntegralType)
NESTED = (T.BinaryType, T.ArrayType)


def select_examples(plan: Plan, rows: DataFrame) -> DataFrame:
    """The main table with ``label``, ``weight``, ``_moment`` and ``_dropped`` (see ``transforms.selection``)."""
    predict, at = plan.examples.predict, ("examples", "predict")
    label = evaluate(plan, rows, plan.label, (*at, "label"))
    kind = rows.select(label).schema[0].dataType
    if predict.kind == "binary" and not isinstance(kind, T.BooleanType):
        raise plan.recipe.document.error(
            (*at, "label"),
            f"a binary label is a condition such as 'delay > 30'; this one is {kind.simpleString()} "
            "(for a number to be predicted: kind: regression)",
        )
    if predict.kind == "regression" and not isinstance(kind, T.NumericType):
        raise plan.recipe.document.error((*at, "label"), f"a regression label is a number, this one is {kind.simpleString()}")
    if predict.kind == "multiclass" and not isinstance(kind, CLASSES):
        raise plan.recipe.document.error(
            (*at, "label"), f"a multiclass label is a text or a whole number, this one is {kind.simpleString()}"
        )
    moment = evaluate(plan, rows, plan.moment, (*at, "moment"), (T.TimestampType, T.DateType), "a timestamp")
    where = evaluate(plan, rows, plan.where, (*at, "where"), (T.BooleanType,), "a condition") if plan.where else None
    weight = evaluate(plan, rows, plan.weight, (*at, "weight"), (T.NumericType,), "a number") if plan.weight else None
    return with_prediction(rows, label=label, moment=moment, where=where, weight=weight, label_known=plan.label_known,
                           classes=predict.classes or ())  # fmt: skip


def project_examples(plan: Plan, rows: DataFrame) -> DataFrame:
    """What is kept of the main table's rows: ``row_id``, split, label, weight, the key (``_key_*``), the columns to join
    by (``_on_*``) and the features of the main table itself."""
    own = [f for f in plan.features if f.name in plan.expressions]
    features = [as_feature(plan, f, rows, evaluate(plan, rows, plan.expressions[f.name], f.at)) for f in own]
    return rows.select(
        ROW_ID,
        split_of(plan.examples.split, plan.examples.seed).alias(SPLIT),
        MOMENT,
        "label",
        *(["weight"] if plan.weight else []),
        *[F.col(quote_name(name)).alias(f"_key_{name}") for name in plan.key],
        *[F.col(quote_name(name)).alias(f"_on_{name}") for name in plan.join_columns],
        *features,
    )


def join_features(plan: Plan, rows: DataFrame, tables: Tables, keep: Keep) -> DataFrame:
    """Adds the look-ups, as-of joins and windows to rows of ``project_examples``, which the caller has cached; ``keep``
    caches what is read more than once."""
    joined = rows
    for lookup in plan.lookups:
        side = tables(lookup.table)
        chosen = [_joined_feature(plan, side, name, column) for name, column in lookup.columns.items()]
        on = [F.col(quote_name(right)).alias(f"_on_{left}") for left, right in lookup.on.items()]
        joined = joined.join(side.select(*on, *chosen), [f"_on_{left}" for left in lookup.on], "left")
    groups = _group_streams(plan, tables, keep)
    if groups:
        keys = sorted({key for group in groups for key in group})
        past = rows.select(ROW_ID, MOMENT, *keys)
        found: list[str] = []
        for group, members in groups.items():
            results = [result for _, features in members for result in features]
            past = with_past(past, group, [stream for stream, _ in members]).select(ROW_ID, MOMENT, *keys, *found, *results)
            found = past.columns[2 + len(keys) :]
        joined = joined.join(past.select(ROW_ID, *found), ROW_ID, "left")
    weight = ["weight"] if plan.weight else []
    kept = [name for name in joined.columns if name.startswith("_key_")]
    return joined.select(ROW_ID, SPLIT, "label", *weight, *kept, *[feature.name for feature in plan.features])


def _group_streams(plan: Plan, tables: Tables, keep: Keep) -> dict[tuple[str, ...], list[tuple[Stream, list[Expr]]]]:
    """Streams, and the features that come out of them, by the key that they are partitioned by: one shuffle each."""
    groups: dict[tuple[str, ...], list[tuple[Stream, list[Expr]]]] = defaultdict(list)
    for i, asof in enumerate(plan.asofs):
        groups[_keys(asof.on)].append(_asof_stream(plan, f"asof{i}", asof, tables(asof.table)))
    for table in sorted({aggregate.table for aggregate in plan.aggregates}):
        chosen = [(f"agg{i}", aggregate) for i, aggregate in enumerate(plan.aggregates) if aggregate.table == table]
        events = keep(_aggregated_rows(plan, table, dict(chosen), tables(table)))
        scales = _fit_scales(events, [name for name, _ in chosen])
        for name, aggregate in chosen:
            groups[_keys(aggregate.by)].append(_aggregate_stream(name, aggregate, events, scales[name]))
    return groups


def _keys(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"_on_{name}" for name in sorted(names))


def _asof_stream(plan: Plan, name: str, asof: Asof, rows: DataFrame) -> tuple[Stream, list[Expr]]:
    side = plan.contracts[asof.table]
    assert side.event_time is not None
    on = [F.col(quote_name(right)).alias(f"_on_{left}") for left, right in asof.on.items()]
    known = micros([F.col(quote_name(side.event_time))])
    values = F.struct(*[_joined_feature(plan, rows, feature, column) for feature, column in asof.columns.items()])
    last = F.struct(known.alias("known"), values.alias("value"))
    tie = _tie(side, [*asof.on.values(), side.event_time])
    frame = rows.select(*on, known.alias("known"), last.alias("last"), tie.alias("tie"))
    # One microsecond more: a row exactly as old as the limit still counts.
    stream = Stream(name, frame, last_within=asof.seconds * SECOND + 1)
    return stream, [F.col(f"{stream.last}.value")[feature].alias(feature) for feature in asof.columns]


def _tie(table: Contract, matched: Iterable[str]) -> Expr:
    """Of rows that become known together, the one with the greater hash of its key counts as the later; a key whose
    columns are all matched cannot tie."""
    key = table.key or ("_source", "_position")
    return F.lit(0).cast("bigint") if set(key) <= set(matched) else F.xxhash64(*[F.col(quote_name(name)) for name in key])


def _aggregated_rows(plan: Plan, table: str, aggregates: dict[str, Aggregate], rows: DataFrame) -> DataFrame:
    """What the aggregates need of a table, once: keys (``_on_*``), ``_known_NAME``, ``_value_NAME``, ``_tie``."""
    columns = {f"_on_{name}": F.col(quote_name(name)) for aggregate in aggregates.values() for name in aggregate.by}
    if any("last" in features for aggregate in aggregates.values() for features in aggregate.windows.values()):
        columns["_tie"] = _tie(plan.contracts[table], ())
    for name, aggregate in aggregates.items():
        columns[f"_known_{name}"] = micros([F.col(quote_name(column)) for column in aggregate.known])
        columns[f"_value_{name}"] = F.when(F.col(f"_known_{name}").isNotNull(), _aggregated(plan, aggregate, rows))
    return rows.select("*", *[value.alias(name) for name, value in columns.items() if name.startswith("_known")]).select(
        *[F.col(name) if name.startswith("_known") else value.alias(name) for name, value in columns.items()]
    )


def _aggregate_stream(name: str, aggregate: Aggregate, events: DataFrame, scale: float) -> tuple[Stream, list[Expr]]:
    known, value = F.col(f"_known_{name}"), F.col(f"_value_{name}")
    columns = [known.alias("known"), at_scale(value, scale).alias("number")]
    figures = {seconds * SECOND: features for seconds, features in aggregate.windows.items()}
    lasts = [window for window, features in figures.items() if "last" in features]
    if lasts:
        columns += [F.struct(known.alias("known"), value.alias("value")).alias("last"), F.col("_tie").alias("tie")]
    frame = events.where(value.isNotNull()).select(*_keys(aggregate.by), *columns)
    sums = {window: bool({"avg", "sum"} & features.keys()) for window, features in figures.items() if features.keys() - {"last"}}
    stream = Stream(name, frame, sums, last_within=max(lasts) if lasts else None)
    results = []
    for window, features in figures.items():
        number, total, last = F.col(stream.count(window)), F.col(stream.sum(window)) / F.lit(scale), F.col(stream.last)
        formulas = {
            "count": number,
            "sum": total,
            "avg": F.when(number > 0, total / number),
            "last": F.when(last["known"] > F.col(MOMENT) - window, last["value"]),
        }
        results += [to_feature(formulas[function]).alias(feature) for function, feature in features.items()]
    return stream, results


def _aggregated(plan: Plan, aggregate: Aggregate, rows: DataFrame) -> Expr:
    value = finite(evaluate(plan, rows, aggregate.value, (*aggregate.at, "aggregate"), NUMBERS, "a number"))
    if aggregate.where is None:
        return value
    return F.when(evaluate(plan, rows, aggregate.where, (*aggregate.at, "where"), (T.BooleanType,), "a condition"), value)


def _fit_scales(events: DataFrame, names: list[str]) -> dict[str, float]:
    """The fixed point of each aggregate's sums; one pass."""
    values = {name: F.col(f"_value_{name}") for name in names}
    found = events.agg(*[F.max(F.abs(v)).alias(f"max_{n}") for n, v in values.items()],
                       *[F.count(v).alias(f"count_{n}") for n, v in values.items()]).first()  # fmt: skip
    assert found is not None
    return {name: fixed_point(found[f"max_{name}"], found[f"count_{name}"]) for name in names}


def _joined_feature(plan: Plan, rows: DataFrame, name: str, column: str) -> Expr:
    feature = next(f for f in plan.features if f.name == name)
    return as_feature(plan, feature, rows, F.col(quote_name(column)))


def as_feature(plan: Plan, feature: Feature, rows: DataFrame, value: Expr) -> Expr:
    """A value as it is carried: float32, the text of an id, or as ``kinds`` tells."""
    kind = rows.select(value).schema[0].dataType
    if feature.kind in ("array", "image"):  # the contract's type is checked by the plan
        return carried(feature, value).alias(feature.name)
    if isinstance(kind, NESTED):
        raise plan.recipe.document.error(feature.at, f"'{feature.name}' is {kind.simpleString()}, neither number, id nor text")
    if feature.kind == "text":
        if not isinstance(kind, T.StringType):
            raise plan.recipe.document.error(feature.at, f"'{feature.name}' is {kind.simpleString()}, not a text")
        return carried(feature, value).alias(feature.name)
    if feature.kind == "id":
        if isinstance(kind, FRACTIONS):
            raise plan.recipe.document.error(
                feature.at, f"'{feature.name}' is {kind.simpleString()}: a fractional number is no id"
            )
        return value.cast("string").alias(feature.name)
    if not isinstance(kind, NUMBERS):
        raise plan.recipe.document.error(
            feature.at, f"'{feature.name}' is {kind.simpleString()}, not a number; take it as an id (as: id)"
        )
    return to_feature(value).alias(feature.name)


def evaluate(
    plan: Plan, rows: DataFrame, expression: Expression, at: Path_, kinds: tuple[type, ...] = (), expected: str = ""
) -> Expr:
    """The expression as a column of ``rows``; SettingError when Spark cannot make sense of it, or it is of another type."""
    try:
        value = F.expr(expression.sql)
        kind = rows.select(value).schema[0].dataType
    except AnalysisException as error:
        reason = str(error).split(" SQLSTATE")[0].splitlines()[0]
        raise plan.recipe.document.error(at, f"expression {expression.text!r}: {reason}") from None
    if kinds and not isinstance(kind, kinds):
        raise plan.recipe.document.error(at, f"expression {expression.text!r} gives {kind.simpleString()}, expected {expected}")
    return value
