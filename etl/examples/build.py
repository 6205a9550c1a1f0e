"""Builds the rows of an example table: joined, learnt from the train split, encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.examples import kinds
from etl.examples.joins import Tables, join_features, project_examples, select_examples
from etl.examples.plan import Plan
from etl.transforms.ids import fit_vocabulary, num_ids, with_ids
from etl.transforms.row_ids import ROW_ID, with_row_ids
from etl.transforms.selection import DROPPED, REASONS
from etl.transforms.splits import SPLIT
from etl.transforms.statistics import Moments, fill_expressions, fit_moments, fit_quantiles, float32, indicator
from lakering.errors import InputError
from lakering.manifest import SPLITS, Column, share_name

Stage = Callable[[str, DataFrame], DataFrame]
_LABEL = "label"


@dataclass(frozen=True)
class Built:
    """``rows`` has split, row_id, label, [weight], floats, ids, arrays, tokens, images; ``keys`` maps row_id to the key;
    ``vocabulary`` is as ``transforms.ids`` makes it. ``facts`` go into the build's record: counts, columns, statistics,
    fills. ``widths`` are the bytes that a cell of a binary column takes, in the mean."""

    rows: DataFrame
    keys: DataFrame
    vocabulary: DataFrame | None
    num_rows: dict[str, int]
    facts: dict[str, Any]
    widths: dict[str, int]


@contextmanager
def built_examples(plan: Plan, tables: Tables, stage: Stage | None = None) -> Iterator[Built]:
    """The examples of a plan; ``tables`` gives a table by name. What is cached is let go at the end.

    ``stage`` puts rows under a name into a file and reads them back: what comes after the joins is planned many times,
    and a plan that starts at a file is short. Without it they are cached. Raises InputError when no row is left to train on."""
    cached: list[DataFrame] = []

    def keep(rows: DataFrame) -> DataFrame:
        cached.append(rows.persist())
        return rows

    try:
        selected = select_examples(plan, tables(plan.main.table))
        counts = {row[DROPPED]: row["count"] for row in selected.groupBy(DROPPED).count().collect()}
        if not counts.get(None):
            raise InputError(f"recipe '{plan.recipe.name}': no row of table '{plan.main.table}' became an example "
                             f"({sum(counts.values()):,} read, left out: {_dropped(counts)})")  # fmt: skip
        rows = keep(project_examples(plan, with_row_ids(selected.where(F.col(DROPPED).isNull()), plan.key)))
        put = stage or (lambda _, rows: keep(rows))
        joined = join_features(plan, rows, tables, keep)
        joined = put("joined", joined.where(kinds.has_images(plan)) if plan.of("image") else joined)
        yield _encode(plan, joined, put, counts)
    finally:
        for rows in cached:
            rows.unpersist()


def _encode(plan: Plan, joined: DataFrame, stage: Stage, counts: dict[str | None, int]) -> Built:
    floats = [f.name for f in plan.of("number")]
    ids = {f.name: f.ids for f in plan.of("id") if f.ids}
    texts = {f.name: f.ids for f in plan.of("text") if f.ids}
    moments = fit_moments(joined, [*floats, _LABEL, *kinds.figure_columns(plan)])
    num_rows = {split: moments[split][_LABEL].count for split in SPLITS if split in moments}
    counts = {**counts, None: sum(num_rows.values()), "no_image": (counts[None] or 0) - sum(num_rows.values())}
    if "train" not in moments:
        what = f"recipe '{plan.recipe.name}': the train split is empty (rows: {num_rows}, left out: {_dropped(counts)})"
        raise InputError(what, next_step="move the bounds of examples.split, or look at what was left out")
    kinds.validate_arrays(plan, moments)
    train = moments["train"]
    fills = {name: float32(train[name].mean) for name in floats}
    # Whether a column has an indicator is learnt, so train decides: elsewhere it would be a weight that nothing trained.
    indicators = [name for name in floats if train[name].nulls]
    filled = fill_expressions(fills, indicators) | kinds.array_indicators(plan, train)
    only_train = joined.where(F.col(SPLIT) == "train")
    quantiles = fit_quantiles(
        only_train.select(ROW_ID, _LABEL, *[e.alias(n) for n, e in filled.items()]), [_LABEL, *filled], num_rows["train"]
    )
    vocabulary = stage("vocabulary", fit_vocabulary(only_train, ids | texts, texts)) if ids or texts else None
    sizes = {r["feature"]: r["count"] for r in vocabulary.groupBy("feature").count().collect()} if vocabulary is not None else {}

    cells = kinds.written_cells(plan, vocabulary)
    encoded = with_ids(joined, vocabulary, ids) if vocabulary is not None else joined
    weight = ["weight"] if plan.weight else []
    rows = encoded.select(SPLIT, ROW_ID, _LABEL, *weight, *[e.alias(n) for n, e in filled.items()], *ids,
                          *[cell.alias(name) for name, cell in cells.items()])  # fmt: skip
    keys = joined.select(ROW_ID, SPLIT, *[F.col(f"_key_{name}").alias(name) for name in plan.key])
    columns = [Column(name, "float") for name in filled]
    columns += [Column(name, "id", num_ids(settings, sizes.get(name, 0))) for name, settings in ids.items()]
    columns += kinds.written_columns(plan, sizes)
    by_split = {s: _figures(m, fills, indicators) | kinds.array_figures(plan, m, train) for s, m in moments.items()}
    by_split["train"][_LABEL] |= _class_shares(plan, only_train, num_rows["train"])
    facts = {
        "columns": columns,
        "rows_read": sum(counts.values()),
        "dropped": _dropped(counts),
        "statistics": {name: {**figures, **quantiles.get(name, {})} for name, figures in by_split["train"].items()},
        "by_split": by_split,
        "fills": fills,
        "vocabulary_sizes": {name: sizes.get(name, 0) for name in ids | texts},
        **_told(plan, moments, floats),
    }
    return Built(rows, keys, vocabulary, num_rows, facts, kinds.cell_widths(columns, facts["images"]))


def _told(plan: Plan, moments: dict[str, dict[str, Moments]], floats: list[str]) -> dict[str, Any]:
    """What a person is told of the values: which were null, not finite or cut."""
    not_finite = {name: sum(m[name].not_finite for m in moments.values()) for name in floats} | kinds.not_finite(plan, moments)
    nulls = {name: {split: m[name].nulls for split, m in moments.items()} for name in floats} | kinds.nulls(plan, moments)
    counted = {name: moments["train"][kinds.counted(plan, name)].count for name in nulls}
    return {
        "nulls": nulls,
        "not_finite": {name: count for name, count in not_finite.items() if count},
        "never_in_train": [name for name, count in counted.items() if not count],
        "texts": kinds.text_facts(plan, moments),
        "images": kinds.image_facts(plan, moments),
    }


def _class_shares(plan: Plan, train: DataFrame, num_rows: int) -> dict[str, float]:
    """Of a multi-class label the share of each class in train. Raises InputError for a class that has no row there."""
    classes = plan.examples.predict.classes
    if classes is None:
        return {}
    found = {int(row[_LABEL]): row["count"] for row in train.groupBy(_LABEL).count().collect()}
    missing = [name for number, name in enumerate(classes) if number not in found]
    if missing:
        raise InputError(f"recipe '{plan.recipe.name}': the train split has no row of {len(missing)} of {len(classes)} classes: "
                         f"{', '.join(map(repr, missing[:10]))}{', ...' if len(missing) > 10 else ''}",
                         next_step="take them out of examples.predict.classes, or move the bounds of examples.split")  # fmt: skip
    return {share_name(number): found[number] / num_rows for number in range(len(classes))}


def _dropped(counts: dict[str | None, int]) -> dict[str, int]:
    return {reason: counts[reason] for reason in REASONS if counts.get(reason)}


def _figures(moments: dict[str, Moments], fills: dict[str, float], indicators: list[str]) -> dict[str, dict[str, float]]:
    """Figures of the columns as they are written: filled, with their indicators."""
    figures = {_LABEL: moments[_LABEL].figures()}
    for name, fill in fills.items():
        figures[name] = moments[name].filled(fill).figures()
        if name in indicators:
            figures[indicator(name)] = moments[name].indicator_figures()
    return figures
