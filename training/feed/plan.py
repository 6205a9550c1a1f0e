"""Which rows, in which order, by which rank: pure functions of numbers, without a byte read.

An epoch's row groups, in an order seeded by (seed, epoch), are cut into windows of W. A window's rows, in that order,
are cut into L contiguous lanes of equal length (the first ``rows mod L`` of them one longer), and each lane is permuted
by (seed, epoch, window, lane). Output row x of a window is row ``x div L`` of lane ``x mod L``: since the longer lanes
come first, x runs through 0 .. rows-1 without a gap, and every row has exactly one x. The windows' outputs one after the
other are the epoch; batch t is its rows [tB, (t+1)B). The last batch is short.

Rank r of N serves lanes [rL div N, (r+1)L div N). Lanes are contiguous, and so is what a rank reads of a window. Nothing
but this last step knows N, so the content of a global batch, and the place of each row in it, do not depend on it.

    row groups, seeded:   | g7 | g2 | g9 |     W = 3
    lanes, L = 4:         |-- 0 --|-- 1 --|-- 2 --|-- 3 --|
    permuted in each:        a..     b..     c..     d..
    output:               a0 b0 c0 d0 a1 b1 c1 d1 a2 ...
    ranks, N = 2:         |----- rank 0 ---|--- rank 1 ---|
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.feed.random import random_keys as _random_keys

Ints = npt.NDArray[np.int64]
MAX_DEFAULT_LANES = 1024


@dataclass(frozen=True, kw_only=True)
class Order:
    """All that orders the rows, apart from the row groups' own counts. Stored with the run; never derived from N."""

    seed: int
    batch_size: int
    window: int
    lanes: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "window", "lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Window:
    """Row groups that are shuffled together. Row x of them has output index ``first_output + x`` in its epoch."""

    index: int
    row_groups: Ints
    """indices into the split's row groups, in reading order"""
    bounds: Ints
    """row group i holds the window's rows [bounds[i], bounds[i + 1])"""
    first_output: int

    @property
    def num_rows(self) -> int:
        return int(self.bounds[-1])


@dataclass(frozen=True)
class Share:
    """What one rank serves of one window: the window's rows [first, last), and in which order.

    ``outputs`` are output indices in the epoch, ascending; the row with output ``outputs[i]`` is row ``rows[i]`` of the
    share, that is row ``first + rows[i]`` of the window."""

    first: int
    last: int
    outputs: Ints
    rows: Ints


def default_lanes(batch_size: int) -> int:
    """The largest divisor of the batch size up to 1024, so that a batch takes equally from every lane."""
    return max(n for n in range(1, min(batch_size, MAX_DEFAULT_LANES) + 1) if batch_size % n == 0)


def num_steps(num_rows: int, batch_size: int) -> int:
    """Steps of an epoch, the same on every rank."""
    return -(-num_rows // batch_size)


def rows_of_step(num_rows: int, batch_size: int, step: int) -> int:
    """Rows of a global batch: the batch size, but for the last one."""
    return min(batch_size, num_rows - step * batch_size)


def cut_windows(row_counts: npt.ArrayLike, order: Order, epoch: int) -> list[Window]:
    """The windows of an epoch, in the order in which they are read."""
    counts = np.asarray(row_counts, dtype=np.int64)
    shuffled = np.argsort(_random_keys(np.arange(len(counts)), order.seed, epoch), kind="stable")
    windows, first_output = [], 0
    for index, start in enumerate(range(0, len(shuffled), order.window)):
        chosen = shuffled[start : start + order.window]
        bounds = np.concatenate([[0], np.cumsum(counts[chosen])]).astype(np.int64)
        windows.append(Window(index, chosen, bounds, first_output))
        first_output += int(bounds[-1])
    return windows


def lane_starts(num_rows: int, lanes: int) -> Ints:
    """Lane l holds rows [starts[l], starts[l + 1]) of the window; L + 1 numbers."""
    lane = np.arange(lanes + 1, dtype=np.int64)
    return lane * (num_rows // lanes) + np.minimum(lane, num_rows % lanes)


def lanes_of(rank: int, ranks: int, lanes: int) -> tuple[int, int]:
    """The lanes [first, last) that a rank serves. Raises ValueError when there are more ranks than lanes."""
    if ranks > lanes:
        raise ValueError(f"{ranks} ranks need at least as many lanes, got {lanes}")
    return rank * lanes // ranks, (rank + 1) * lanes // ranks


def share(window: Window, order: Order, epoch: int, rank: int = 0, ranks: int = 1) -> Share:
    """What a rank serves of a window."""
    first_lane, last_lane = lanes_of(rank, ranks, order.lanes)
    starts = lane_starts(window.num_rows, order.lanes)
    lane = np.arange(first_lane, last_lane, dtype=np.int64)[:, None]
    place = np.arange(-(-window.num_rows // order.lanes), dtype=np.int64)[None, :]
    # A permutation of each lane: places sorted by random keys. A shorter lane has no last place: it sorts to the end.
    keys = _random_keys(place, order.seed, epoch, window.index, lane)
    keys[np.broadcast_to(place >= np.diff(starts)[lane], keys.shape)] = np.iinfo(np.uint64).max
    permuted = np.argsort(keys, axis=1, kind="stable")
    output = place * order.lanes + lane
    row = starts[lane] - starts[first_lane] + permuted
    exists = (output < window.num_rows).T
    return Share(
        first=int(starts[first_lane]),
        last=int(starts[last_lane]),
        outputs=window.first_output + output.T[exists],
        rows=row.T[exists],
    )


def reads(window: Window, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """The (row group, first row, last row) that hold the window's rows [first, last), in order."""
    if first == last:
        return
    start = int(np.searchsorted(window.bounds, first, side="right")) - 1
    for i in range(start, len(window.row_groups)):
        low, high = int(window.bounds[i]), int(window.bounds[i + 1])
        if low >= last:
            return
        if high > max(low, first):
            yield int(window.row_groups[i]), max(first, low) - low, min(last, high) - low
