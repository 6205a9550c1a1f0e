"""Where the rows of a rank's windows lie: one piece of memory, in which any row is found by one number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.feed.blocks import Part, Rows, room_for


@dataclass(frozen=True)
class Place:
    """Where rows of a row group lie, from row ``at`` of the arena on. ``filled``: they are there already."""

    at: int
    filled: bool = False
    kept: bool = False


class Arena:
    """Rows of row groups: first those that are kept for later epochs, then a ring through which windows pass.

    Places in the ring are given and freed in order. A row group that is kept is kept whole, and never removed: among
    epochs in random order none of them is a better one to keep."""

    def __init__(self, parts: tuple[Part, ...], row_counts: npt.NDArray[np.int64], *, kept_rows: int, ring_rows: int) -> None:
        self.rows: Rows = room_for(parts, kept_rows + ring_rows)
        self._counts = row_counts
        self._kept_rows, self._ring_rows = kept_rows, ring_rows
        self._kept_to = 0
        self._kept: dict[int, int] = {}
        self._filled: set[int] = set()
        self._head = self._tail = 0

    @property
    def position(self) -> int:
        """To be given to ``free`` when all that was placed until now is no longer needed."""
        return self._head

    def place(self, row_group: int, num_rows: int) -> Place | None:
        """Where a row group is to be read to: whole, if it is to be kept, else so many of its rows. None: there is no
        room until something is freed."""
        if row_group not in self._kept:
            count = int(self._counts[row_group])
            if self._kept_to + count > self._kept_rows:
                return self._place_in_ring(num_rows)
            self._kept[row_group] = self._kept_to
            self._kept_to += count
        return Place(self._kept[row_group], row_group in self._filled, kept=True)

    def set_filled(self, row_group: int) -> None:
        """A row group that is kept was read whole."""
        self._filled.add(row_group)

    def _place_in_ring(self, num_rows: int) -> Place | None:
        at = self._head
        to_the_end = self._ring_rows - at % self._ring_rows
        if num_rows > to_the_end:
            at += to_the_end
        if at + num_rows - self._tail > self._ring_rows:
            return None
        self._head = at + num_rows
        return Place(self._kept_rows + at % self._ring_rows)

    def free(self, position: int) -> None:
        """Frees the ring up to a position that ``position`` had."""
        self._tail = position

    def empty_ring(self) -> None:
        """Frees the whole ring."""
        self._head = self._tail = 0
