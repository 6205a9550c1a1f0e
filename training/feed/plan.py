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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from training.feed.random import mixed, random_keys

Ints = npt.NDArray[np.int64]
MAX_DEFAULT_LANES = 1024
#: Keys that are sorted at once: 256 KiB, which stay in a core's own cache.
TILE = 32_768


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


def default_lanes(batch_size: int) -> int:
    """The largest divisor of the batch size up to 1024, so that a batch takes equally from every lane."""
    return max(n for n in range(1, min(batch_size, MAX_DEFAULT_LANES) + 1) if batch_size % n == 0)


def num_steps(num_rows: int, batch_size: int, drop_last: bool = False) -> int:
    """Steps of an epoch, the same on every rank. ``drop_last`` leaves a short last batch out."""
    return num_rows // batch_size if drop_last else -(-num_rows // batch_size)


def rows_of_step(num_rows: int, batch_size: int, step: int) -> int:
    """Rows of a global batch: the batch size, but for the last one."""
    return min(batch_size, num_rows - step * batch_size)


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

    @property
    def last_output(self) -> int:
        return self.first_output + self.num_rows


class Windows(Sequence[Window]):
    """The windows of an epoch, in the order in which they are read. Each is cut when it is asked for: a million row
    groups are two arrays."""

    def __init__(self, row_counts: npt.ArrayLike, order: Order, epoch: int) -> None:
        counts = np.asarray(row_counts, dtype=np.int64)
        self._size = order.window
        self._row_groups = np.argsort(random_keys(np.arange(len(counts)), order.seed, epoch), kind="stable")
        self._bounds = np.concatenate([[0], np.cumsum(counts[self._row_groups])]).astype(np.int64)

    def __len__(self) -> int:
        return -(-len(self._row_groups) // self._size)

    @overload
    def __getitem__(self, index: int) -> Window: ...
    @overload
    def __getitem__(self, index: slice) -> list[Window]: ...
    def __getitem__(self, index: int | slice) -> Window | list[Window]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, last = index * self._size, min((index + 1) * self._size, len(self._row_groups))
        start = int(self._bounds[first])
        return Window(index, self._row_groups[first:last], self._bounds[first : last + 1] - start, start)

    def between(self, first_output: int, last_output: int) -> Iterator[Window]:
        """The windows that hold outputs of [first_output, last_output), and none without a row."""
        first = max(int(np.searchsorted(self._bounds, first_output, side="right")) - 1, 0) // self._size
        for index in range(first, len(self)):
            window = self[index]
            if window.first_output >= last_output:
                return
            if max(first_output, window.first_output) < min(last_output, window.last_output):
                yield window


def cut_windows(row_counts: npt.ArrayLike, order: Order, epoch: int) -> Windows:
    """The windows of an epoch, in the order in which they are read."""
    return Windows(row_counts, order, epoch)


def lane_starts(num_rows: int, lanes: int) -> Ints:
    """Lane l holds rows [starts[l], starts[l + 1]) of the window; L + 1 numbers."""
    lane = np.arange(lanes + 1, dtype=np.int64)
    return lane * (num_rows // lanes) + np.minimum(lane, num_rows % lanes)


def lanes_of(rank: int, ranks: int, lanes: int) -> tuple[int, int]:
    """The lanes [first, last) that a rank serves. Raises ValueError when there are more ranks than lanes."""
    if ranks > lanes:
        raise ValueError(f"{ranks} ranks need at least as many lanes, got {lanes}")
    return rank * lanes // ranks, (rank + 1) * lanes // ranks


@dataclass(frozen=True)
class Share:
    """What one rank serves of one window: its lanes [first_lane, last_lane), which are the window's rows [first, last).

    The share's rows are numbered in the order in which they are served: see ``rows`` and ``outputs``."""

    window: Window
    order: Order
    epoch: int
    first_lane: int
    last_lane: int
    first: int
    last: int

    @property
    def num_rows(self) -> int:
        return self.last - self.first

    def rows(self, places: npt.NDArray | None = None) -> npt.NDArray:
        """The rows in the order in which they are served, int32: row i served is row ``first + rows[i]`` of the window.
        With ``places``, which tells where each row of the share lies, the places in that order."""
        lanes, window = self.order.lanes, self.window
        longest = -(-window.num_rows // lanes)
        served = np.empty((longest, self.last_lane - self.first_lane), np.int32)
        if not self.num_rows:
            return served[:0, 0]
        starts = lane_starts(window.num_rows, lanes) - self.first
        keys_of_place = random_keys(np.arange(longest), self.order.seed, self.epoch, window.index)
        tile = max(1, TILE // longest)
        for lane in range(self.first_lane, self.last_lane, tile):
            end = min(lane + tile, self.last_lane)
            permuted = _permuted(keys_of_place, lane, end, num_longer=window.num_rows % lanes or lanes)
            permuted += starts[lane:end, None]
            column = slice(lane - self.first_lane, end - self.first_lane)
            served[:, column] = permuted.T if places is None else places.take(permuted.T, mode="clip")
        return served.reshape(-1)[: self.num_rows]

    def num_before(self, output: int) -> int:
        """How many of the share's rows are served before an output index of the epoch."""
        place, lane = divmod(min(max(output - self.window.first_output, 0), self.window.num_rows), self.order.lanes)
        lanes = self.last_lane - self.first_lane
        return place * lanes + min(max(lane - self.first_lane, 0), lanes)

    def outputs(self, first: int, last: int) -> Ints:
        """The output indices, in the epoch, of the rows [first, last) of the order of serving; they ascend."""
        lanes, start = self.last_lane - self.first_lane, self.window.first_output
        if lanes == self.order.lanes:
            return np.arange(start + first, start + last, dtype=np.int64)
        places = np.arange(first // lanes, -(-last // lanes), dtype=np.int64) * self.order.lanes + (start + self.first_lane)
        skipped = first // lanes * lanes
        return (places[:, None] + np.arange(lanes)).reshape(-1)[first - skipped : last - skipped]


def share(window: Window, order: Order, epoch: int, rank: int = 0, ranks: int = 1) -> Share:
    """What a rank serves of a window."""
    first_lane, last_lane = lanes_of(rank, ranks, order.lanes)
    starts = lane_starts(window.num_rows, order.lanes)
    return Share(window, order, epoch, first_lane, last_lane, int(starts[first_lane]), int(starts[last_lane]))


def most_rows_held(row_counts: npt.ArrayLike, order: Order, rank: int, ranks: int) -> int:
    """At least as many rows as a rank serves of two windows, one after the other, in any epoch."""
    counts = np.asarray(row_counts, dtype=np.int64)
    first_lane, last_lane = lanes_of(rank, ranks, order.lanes)
    two_windows = int(np.sort(counts)[-2 * order.window :].sum())
    # In each of the two, a lane is longer than the mean by less than one row.
    return min((two_windows // order.lanes + 2) * (last_lane - first_lane), int(counts.sum()))


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


def _permuted(keys_of_place: npt.NDArray[np.uint64], first: int, last: int, num_longer: int) -> Ints:
    """A permutation of the places of each of the lanes [first, last), [lanes, places]: places sorted by random keys.

    A key's lowest bits are replaced by its place, so that sorting keys sorts places. A shorter lane (from lane
    ``num_longer`` on) has no last place: it is sorted to the end."""
    lane = np.arange(first, last, dtype=np.int64).astype(np.uint64)
    keys = mixed(keys_of_place[None, :] ^ lane[:, None])
    places = len(keys_of_place)
    bits = np.uint64((1 << (places - 1).bit_length()) - 1)
    keys &= ~bits
    keys |= np.arange(places, dtype=np.uint64)
    keys[max(num_longer - first, 0) :, -1] = np.iinfo(np.uint64).max
    keys.sort(axis=1)
    keys &= bits
    if num_longer < last:  # what such a lane has at its end is dropped with the last place; it need only be a valid one
        np.minimum(keys, np.uint64(places - 1), out=keys)
    return keys.view(np.int64)
