"""What a model must beat: the train split's mean, and boosted trees on the same columns and rows."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from lakering.lake import Lake
from lakering.manifest import Manifest
from recipes.training import Evaluation
from training.feed import Batch, Feed, Order
from training.feed.plan import default_lanes
from training.metrics import Metrics, build_metrics
from training.models import Label, ModelColumns

#: Histogram trees take categories of at most so many values; ids beyond go in as plain ordinals.
MAX_CATEGORIES = 255
BATCH = 8192


def _batches(lake: Lake, manifest: Manifest, split: str) -> Any:
    order = Order(seed=0, batch_size=BATCH, window=16, lanes=default_lanes(BATCH))
    return closing(Feed(lake=lake, manifest=manifest, split=split, order=order).epoch(0))


def base_rate_metrics(lake: Lake, manifest: Manifest, split: str) -> Metrics:
    """Predicts the train split's mean, or its shares of the classes, for every row."""
    label = ModelColumns.of(manifest).label
    metrics = build_metrics(label)
    with _batches(lake, manifest.only(), split) as batches:
        for batch in batches:
            rate = label.shares if label.num_classes else label.mean
            metrics.add(np.full((batch.num_rows, *np.shape(rate)), rate), batch.label, batch.weight)
    return metrics


def tree_metrics(lake: Lake, manifest: Manifest, settings: Evaluation, seed: int) -> tuple[Metrics, dict[str, Any]]:
    """scikit-learn's HistGradientBoosting, trained on the train split (on its first ``max_tree_rows`` rows in shuffled
    order, if it has more) until the validation split gets no better; and how it was made, for the summary. It is given
    floats and ids; other columns are left out, and named.

    Stopping on a part of train instead lets trees learn its period by heart: 0.734 AUC in place of 0.761 on flights."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    label = ModelColumns.of(manifest).label
    left_out = [c.name for c in manifest.binary_columns]
    manifest = manifest.only("float", "id")
    sizes = [int(c.num_ids or 0) for c in manifest.id_columns]
    categorical = [False] * len(manifest.float_columns) + [0 < n <= MAX_CATEGORIES for n in sizes]
    columns, target, weight = _rows(lake, manifest, "train", settings.max_tree_rows)
    kind = HistGradientBoostingRegressor if label.kind == "regression" else HistGradientBoostingClassifier
    trees = kind(max_iter=300, early_stopping=True, random_state=seed, categorical_features=np.array(categorical))
    held_out: dict[str, Any] = {}
    if manifest.num_rows.get("validation") and settings.split != "validation":
        names = ("X_val", "y_val", "sample_weight_val")
        rows, truth, weights = _rows(lake, manifest, "validation", settings.max_tree_rows)
        # Of a class that the rows for training lack, scikit-learn cannot tell the loss.
        known = np.isin(truth, target) if label.kind == "multiclass" else np.ones(len(truth), bool)
        held_out = dict(zip(names, (rows[known], truth[known], weights if weights is None else weights[known]), strict=True))
    trees.fit(columns, target, sample_weight=weight, **held_out)
    metrics = build_metrics(label)
    with _batches(lake, manifest, settings.split) as batches:
        for batch in batches:
            metrics.add(_predictions(trees, _columns(batch), label), batch.label, batch.weight)
    ordinals = [c.name for c, n in zip(manifest.id_columns, sizes, strict=True) if n > MAX_CATEGORIES]
    facts = {"trees": int(trees.n_iter_), "trained_on_rows": len(target), "stopped_on": "validation" if held_out else "train",
             "ids_as_categories": sum(categorical),
             "ids_as_ordinals": ordinals, **({"left_out": left_out} if left_out else {})}  # fmt: skip
    return metrics, facts


def _predictions(trees: Any, rows: npt.NDArray[np.float32], label: Label) -> npt.NDArray[np.float64]:
    if label.kind == "regression":
        return np.asarray(trees.predict(rows))
    probabilities = np.asarray(trees.predict_proba(rows))
    if label.kind == "binary":
        return probabilities[:, 1]
    # A class that the trees were not shown has no column of theirs.
    of_all = np.zeros((len(rows), label.num_classes))
    of_all[:, trees.classes_.astype(int)] = probabilities
    return of_all


def _rows(lake: Lake, manifest: Manifest, split: str, limit: int) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray | None]:
    """Columns, label and weight of a split's first rows in shuffled order."""
    parts: list[tuple[npt.NDArray, npt.NDArray, npt.NDArray | None]] = []
    rows = 0
    with _batches(lake, manifest, split) as batches:
        for batch in batches:
            parts.append((_columns(batch), batch.label, batch.weight))
            rows += batch.num_rows
            if rows >= limit:
                break
    weight = None if manifest.weight is None else np.concatenate([w for _, _, w in parts if w is not None])[:limit]
    return np.concatenate([x for x, _, _ in parts])[:limit], np.concatenate([y for _, y, _ in parts])[:limit], weight


def _columns(batch: Batch) -> npt.NDArray[np.float32]:
    return np.concatenate([batch.floats, batch.ids.astype(np.float32)], axis=1)
