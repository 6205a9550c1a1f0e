"""Threads that read a rank's windows into an arena, ahead of their consumer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from training.feed import plan
from training.feed.arena import Arena, Place
from training.feed.plan import Share


@dataclass(frozen=True)
class Piece:
    """The rows [first, last) of a row group, and where they are to be read to."""

    row_group: int
    first: int
    last: int
    place: Place

    @property
    def lies_at(self) -> npt.NDArray[np.int32]:
        """The arena's row of each of them."""
        start = self.place.at + (self.first if self.place.kept else 0)
        return np.arange(start, start + self.last - self.first, dtype=np.int32)


@dataclass(eq=False)
class Loading:
    """A share of a window on its way. When ``index`` is there it is complete: the arena's rows in order of serving."""

    share: Share
    pieces: list[Piece] = field(default_factory=list)
    missing: int = 1
    """pieces that are not there, and one more until all are asked for"""
    end: int = 0
    index: npt.NDArray[np.int32] | None = None

    def put_in_order(self) -> None:
        nothing: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self.index = self.share.rows(np.concatenate([nothing, *(piece.lies_at for piece in self.pieces)]))


#: Brings a piece to its place, if it is not there.
Fill = Callable[[Piece], None]


class ReadAhead:
    """The shares' rows, in order. Threads take piece after piece in the order of the plan; the arena's room bounds how
    far they run ahead. ``open_fill`` gives each thread its own way to read."""

    def __init__(self, shares: Iterable[Share], arena: Arena, open_fill: Callable[[], AbstractContextManager[Fill]],
                 threads: int) -> None:  # fmt: skip
        self._arena, self._open_fill = arena, open_fill
        self._changed = threading.Condition()
        self._asked = self._ask_for(shares)
        self._next: tuple[Loading, int, int, int] | None = None
        self._coming: deque[Loading] = deque()
        self._current: Loading | None = None
        self._error: BaseException | None = None
        self._stopped = False
        self._threads = [threading.Thread(target=self._run, name="lakering-feed", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def next(self) -> Loading:
        """The next share, complete. Frees the one before. An exception of a thread is raised here as it was."""
        with self._changed:
            self._free_current()
            self._changed.wait_for(lambda: self._error or (self._coming and self._coming[0].index is not None))
            self.raise_error()
            self._current = self._coming.popleft()
            return self._current

    def raise_error(self) -> None:
        """Raises what a thread has met, though it be further on."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends and joins the threads."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._arena.empty_ring()

    def _free_current(self) -> None:
        if self._current is not None:
            self._arena.free(self._current.end)
            self._current = None
            self._changed.notify_all()

    def _ask_for(self, shares: Iterable[Share]) -> Iterator[tuple[Loading, int, int, int]]:
        """Row groups to read. Runs under the lock, as far as the next that is asked for."""
        for share in shares:
            loading = Loading(share)
            self._coming.append(loading)
            for row_group, first, last in plan.reads(share.window, share.first, share.last):
                yield loading, row_group, first, last
            loading.end = self._arena.position
            yield loading, -1, 0, 0

    def _run(self) -> None:
        try:
            with self._open_fill() as fill:
                while (task := self._next_task()) is not None:
                    loading, piece = task
                    if piece is not None:
                        fill(piece)
                    self._done(loading, piece)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._stopped = True
                self._changed.notify_all()

    def _next_task(self) -> tuple[Loading, Piece | None] | None:
        """The next piece, as soon as there is room for it; None in place of a piece: all of the share are asked for."""
        with self._changed:
            while not self._stopped:
                if self._next is None:
                    self._next = next(self._asked, None)
                if self._next is None:
                    return None
                loading, row_group, first, last = self._next
                if row_group < 0:
                    self._next = None
                    return loading, None
                place = self._arena.place(row_group, last - first)
                if place is not None:
                    self._next = None
                    piece = Piece(row_group, first, last, place)
                    loading.pieces.append(piece)
                    loading.missing += 1
                    return loading, piece
                self._changed.wait()
        return None

    def _done(self, loading: Loading, piece: Piece | None) -> None:
        with self._changed:
            if piece is not None and piece.place.kept:
                self._arena.set_filled(piece.row_group)
            loading.missing -= 1
            complete = loading.missing == 0
        if complete:
            loading.put_in_order()
            with self._changed:
                self._changed.notify_all()
