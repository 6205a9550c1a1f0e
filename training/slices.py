"""The figures of parts of the rows: for each value of an id, or each range of a float, over all ranks.

What is kept is bounded: an id's values of the greatest weight, the rest as one, and a small state of metrics for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from lakering.errors import SettingError, nearest
from lakering.lake import Lake
from lakering.manifest import Manifest
from training.distributed import World
from training.feed import Batch, Feed
from training.metrics import COMPARED_BY, build_small_metrics
from training.models.base import QUANTILE, Label

#: Between which quantiles of train a float column is cut.
CUTS = (10, 25, 50, 75, 90)
#: Beside an example table: columns feature, value, id.
VOCABULARY = ("learnt", "vocabulary")
PADDING, NULL = 0, 1
#: What is shown of a kind of label.
SHOWN = {
    "binary": ("rows", "base_rate", "mean_prediction", "log_loss", "normalised_entropy", "auc"),
    "multiclass": ("rows", "accuracy", "auc", "log_loss"),
    "regression": ("rows", "mae", "bias", "rmse"),
}
OTHER = "other"

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SliceColumn:
    """A column, its slices by name (``ids`` of an id column's; the rest have no id), and the slice of each row."""

    name: str
    values: tuple[str, ...]
    places: Callable[[Batch], Places]
    ids: tuple[int, ...] = ()


class Slices:
    """The metrics of each slice; ``add`` takes the rows of this rank, ``join`` sums over all."""

    def __init__(self, columns: Sequence[SliceColumn], label: Label) -> None:
        self._columns, self._kind = columns, label.kind
        self._metrics = {column.name: [build_small_metrics(label) for _ in column.values] for column in columns}

    def add(self, batch: Batch, predictions: npt.NDArray[np.float64]) -> None:
        for column in self._columns:
            places = column.places(batch)
            for place in np.unique(places):
                rows = places == place
                weight = None if batch.weight is None else batch.weight[rows]
                self._metrics[column.name][place].add(predictions[rows], batch.label[rows], weight)

    def join(self, world: World) -> None:
        for name, metrics in self._metrics.items():
            states = world.sum(np.stack([each.state for each in metrics]), f"slices.{name}")
            for each, state in zip(metrics, states, strict=True):
                each.state = state

    def tables(self, names: Mapping[str, Mapping[int, str]]) -> dict[str, list[dict[str, Any]]]:
        """For each column its slices that have rows, the worst first; ``names`` are of ids, by column."""
        metric, sign = COMPARED_BY[self._kind]
        tables: dict[str, list[dict[str, Any]]] = {}
        for column in self._columns:
            texts = [names.get(column.name, {}).get(id_, f"id {id_}") for id_ in column.ids]
            texts += column.values[len(column.ids) :]
            figures = [each.figures() for each in self._metrics[column.name]]
            rows: list[dict[str, Any]] = [{"value": text, **{name: each[name] for name in SHOWN[self._kind]}}
                    for text, each in zip(texts, figures, strict=True) if each["rows"]]  # fmt: skip
            tables[column.name] = sorted(rows, key=lambda row: math.inf if math.isnan(row[metric]) else sign * row[metric])
        return tables


def validate_slices(manifest: Manifest, names: Sequence[str]) -> None:
    """Raises SettingError unless all are float or id columns of the snapshot."""
    known = {column.name: column.kind for column in manifest.columns}
    for name in names:
        if name not in known:
            raise SettingError(f"evaluation.slices: snapshot {manifest.id} has no feature {name!r}{nearest(name, known)}")
        if known[name] not in ("float", "id"):
            raise SettingError(f"evaluation.slices: {name} is of the kind {known[name]}",
                               next_step="slice by float and id columns")  # fmt: skip


def choose_slices(world: World, manifest: Manifest, names: Sequence[str], feed_of: Callable[[Manifest], Feed],
                  most: int) -> list[SliceColumn]:  # fmt: skip
    """The slices of a split, the same on all ranks: of an id column the ``most`` values of the greatest weight, and the
    rest. ``places`` are of batches with the manifest's columns; a feed of the split is read once for the weights."""
    sizes = {column.name: int(column.num_ids or 0) for column in manifest.id_columns if column.name in names}
    weights = _weights_of_ids(world, feed_of(manifest.with_columns(sizes)), sizes) if sizes else {}
    ids = [column.name for column in manifest.id_columns]
    return [
        _id_column(name, ids.index(name), weights[name], most) if name in weights
        else _float_column(name, manifest.float_columns.index(name), manifest.statistics.get(name, {}))
        for name in names
    ]  # fmt: skip


def _weights_of_ids(world: World, feed: Feed, sizes: Mapping[str, int]) -> dict[str, npt.NDArray[np.float64]]:
    starts = np.concatenate([[0], np.cumsum(list(sizes.values()))])
    weights = np.zeros(starts[-1])

    def read() -> None:
        with closing(feed.epoch(0)) as batches:
            for batch in batches:
                for place, start in enumerate(starts[:-1]):
                    np.add.at(weights, start + batch.ids[:, place], 1.0 if batch.weight is None else batch.weight)

    world.together("slices", read)
    feed.close()
    parts = np.split(world.sum(weights, "slices"), starts[1:-1])
    return dict(zip(sizes, parts, strict=True))


def _id_column(name: str, place: int, weights: npt.NDArray[np.float64], most: int) -> SliceColumn:
    ids = np.argsort(-weights, kind="stable")[: min(most, int((weights > 0).sum()))]
    slots = np.full(len(weights), len(ids))
    slots[ids] = np.arange(len(ids))
    values = (*(f"id {id_}" for id_ in ids), OTHER)
    return SliceColumn(name, values, lambda batch: slots[batch.ids[:, place]], tuple(map(int, ids)))


def _float_column(name: str, place: int, statistics: Mapping[str, float]) -> SliceColumn:
    shares = {key: QUANTILE.fullmatch(key) for key in statistics}
    found = [statistics[key] for key, share in shares.items() if share and float(share[1].replace("_", ".")) in CUTS]
    cuts = np.unique(np.array(found or [statistics.get("mean", 0.0)], np.float32))
    texts = [f"{cut:.4g}" for cut in cuts]
    between = (f"{low} to {high}" for low, high in pairwise(texts))
    values = (f"below {texts[0]}", *between, f"{texts[-1]} and above")
    return SliceColumn(name, values, lambda batch: np.searchsorted(cuts, batch.floats[:, place], side="right"))


def read_id_names(lake: Lake, manifest: Manifest, columns: Sequence[SliceColumn]) -> dict[str, dict[int, str]]:
    """The values of the columns' ids, from the vocabulary beside the example table; empty for a table without one."""
    folder = (*lake.build(manifest.recipe, manifest.build), *VOCABULARY)
    wanted = [[("feature", "=", column.name), ("id", "in", column.ids)] for column in columns if column.ids]
    files = [name for name in lake.storage.list(*folder) if name.endswith(".parquet")]
    if not wanted or not files:
        return {}
    # What no vocabulary names is padding, null, or a bucket of values that train did not show often enough.
    names = {column.name: {id_: {PADDING: "padding", NULL: "null"}.get(id_, f"unknown {id_}") for id_ in column.ids}
             for column in columns}  # fmt: skip
    for file in files:
        found = pq.read_table(lake.storage.path(*folder, file), filesystem=lake.storage.filesystem, partitioning=None,
                              columns=["feature", "value", "id"], filters=wanted)  # fmt: skip
        for row in found.to_pylist():
            names[row["feature"]][row["id"]] = row["value"]
    return names
