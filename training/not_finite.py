"""Which rows of a batch a loss that is not finite comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from training.distributed import World
from training.feed import Batch, Feed, FeedStatistics
from training.models import ModelColumns

#: Of all ranks together, that an error names.
MOST_ROWS = 10


def explain(world: World, feed: Feed, columns: ModelColumns, batch: Batch | None, epoch: int, step: int) -> tuple[str, str]:
    """What is not finite in the rows of all ranks, and what to do; called on every rank with its part of the batch."""
    named: list[str] = []
    if batch is not None and any(not np.isfinite(values).all() for _, values in _values(batch, columns)):
        named = [f"{feed.manifest.row_id} {row}: {column} is {value}" for row, column, value in _rows(feed, columns, epoch, step)]
    ranks = [json.loads(text) for text in world.gather(json.dumps([len(named), named[:MOST_ROWS]]), "not finite")]
    total, shown = sum(count for count, _ in ranks), [row for _, rows in ranks for row in rows][:MOST_ROWS]
    if not total:
        return "all features, labels and weights of the batch are finite", "lower training.learning_rate, or set clip_norm"
    more = f" and {total - len(shown):,} more" if total > len(shown) else ""
    return (
        f"of the batch's values {total:,} are not finite: {', '.join(shown)}{more}",
        f"correct these rows of split {feed.split} where the example table comes from, or bound the columns in its contract",
    )


def _values(batch: Batch, columns: ModelColumns) -> Iterator[tuple[str, npt.NDArray]]:
    """By column, [rows] or [rows, ...] of all that may be no finite number."""
    for i, column in enumerate(columns.floats):
        yield column.name, batch.floats[:, i]
    yield columns.label.name, batch.label
    if batch.weight is not None:
        yield "weight", batch.weight
    yield from batch.arrays.items()
    yield from ((name, cells) for name, cells in batch.images.items() if not cells.dtype.hasobject)


def _rows(feed: Feed, columns: ModelColumns, epoch: int, step: int) -> list[tuple[int, str, float]]:
    """(row id, column, value) of this rank's part, which is read again, now with the ids of its rows."""
    again = replace(feed, row_ids=True, cache="none", statistics=FeedStatistics())
    with closing(again), closing(again.epoch(epoch, step)) as batches:
        batch = next(batches)
    found = []
    for column, values in _values(batch, columns):
        flat = values.reshape(batch.num_rows, -1)
        for row in np.flatnonzero(~np.isfinite(flat).all(1)):
            found.append((int(batch.row_id[row]), column, float(flat[row][~np.isfinite(flat[row])][0])))
    return sorted(found)
