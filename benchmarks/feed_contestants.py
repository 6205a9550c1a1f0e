"""Who takes part in benchmarks/feed.py: each goes once over a table and tells its time, and what it handed on."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks import feed_peers
from benchmarks.feed_child import NUM_ROW_GROUPS, build_feed
from benchmarks.feed_table import Table, Tally, Work, flights, wide, write_many_row_groups, write_table
from recipes.training import Training
from training.distributed import World
from training.feed import Batch, Feed
from training.models import ModelColumns, build_model
from training.optimizers import Optimizer
from training.step import Step

ROOT = Path(__file__).resolve().parents[1]
BATCH = 4096
#: What goes row by row gets fewer rows: its speed does not depend on their number.
FEW_ROWS = 131_072
STEP_BATCH, STEP_ROWS = 1024, 300_000


@dataclass(frozen=True)
class Turn:
    """``cpu_seconds`` are of all threads, and of all processes where there are several. ``peak_mib`` is measured where
    a process of its own did the work."""

    rows: int
    seconds: float
    cpu_seconds: float
    steps: int = 0
    peak_mib: float | None = None


class Contestants:
    """Each method that takes ``whole`` is a contestant: it asserts that it handed on what was written, in an untimed
    turn (``whole``) the bits of every column. What it needs is made, untimed, when it first asks for it."""

    def __init__(self, folder: Path, rows: int) -> None:
        self._folder, self._num_rows = folder, rows
        self._epochs = itertools.count()
        self._feeds: dict[str, Feed] = {}
        self._children: dict[tuple[int, int], subprocess.Popen[str]] = {}

    def run(self, name: str, *, whole: bool) -> Turn:
        contestant: Callable[..., Turn] = getattr(self, name)
        return contestant(whole=whole)

    def close(self) -> None:
        for feed in self._feeds.values():
            feed.close()
        for child in self._children.values():
            child.stdin.close()  # type: ignore[union-attr]
            child.wait()

    # One process, the wide table

    def scan(self, *, whole: bool) -> Turn:
        """The limit: one thread of pyarrow, row group by row group."""
        columns = build_feed(self._table.lake, self._table.manifest, BATCH).columns
        return _timed(self._table, partial(feed_peers.scan, self._table, columns), whole)

    def feed(self, *, whole: bool) -> Turn:
        """Ours, nothing cached: shuffled batches as tensors."""
        return self._epoch(self._feed("none"), whole)

    def memory(self, *, whole: bool) -> Turn:
        """Ours, a later epoch of a feed that keeps all in memory."""
        return self._cached("memory", whole)

    def disk(self, *, whole: bool) -> Turn:
        """Ours, a later epoch of a feed that keeps all in files."""
        return self._cached("disk", whole)

    def _cached(self, cache: str, whole: bool) -> Turn:
        """The untimed turn fills the cache."""
        feed = self._feed(cache)
        before = feed.statistics.row_groups
        turn = self._epoch(feed, whole)
        if not whole and feed.statistics.row_groups > before:
            sys.exit(f"{cache}: {feed.statistics.row_groups - before} row groups were read from the table, not from the cache")
        return turn

    def _feed(self, cache: str) -> Feed:
        """It stays from turn to turn, as from epoch to epoch in a training, and so does the memory that it works in: what
        the system takes to hand that out is part of the untimed turn."""
        if cache not in self._feeds:
            room = {"cache_mib": 64 + 200 * self._num_rows // 2**20, "cache_folder": str(self._folder / "cache")}
            self._feeds[cache] = build_feed(self._table.lake, self._table.manifest, BATCH, cache=cache, **room)
        return self._feeds[cache]

    def _epoch(self, feed: Feed, whole: bool) -> Turn:
        epoch = next(self._epochs)

        def run(tally: Tally) -> None:
            with closing(feed.epoch(epoch)) as batches:
                for batch in batches:
                    tensors = batch.tensors()
                    tally.add((cells.numpy() for cells in tensors[:2]), tensors.label.numpy())

        return _timed(self._table, run, whole)

    def stock(self, *, whole: bool) -> Turn:
        """Petastorm's own way to TensorFlow, on fewer rows."""
        return _timed(self._small_table, partial(feed_peers.read_stock, self._small_table, BATCH), whole)

    def tfdata_cache(self, *, whole: bool) -> Turn:
        """tf.data's cache of the row groups, on fewer rows."""
        return _timed(self._small_table, partial(feed_peers.read_cached, self._cached_row_groups, BATCH), whole)

    @cached_property
    def _cached_row_groups(self) -> tf.data.Dataset:
        return feed_peers.cached_row_groups(self._small_table)

    # Ranks of one feed, each a process

    def one_rank(self, *, whole: bool) -> Turn:
        return self._ranks(1, whole)

    def two_ranks(self, *, whole: bool) -> Turn:
        return self._ranks(2, whole)

    def _ranks(self, ranks: int, whole: bool) -> Turn:
        """They stay from turn to turn, so that their start takes no part, and go over an epoch at the same time."""
        epoch = next(self._epochs)
        children = [self._child(rank, ranks) for rank in range(ranks)]
        for child in children:
            child.stdin.write(f"{json.dumps({'epoch': epoch, 'whole': whole})}\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
        found = [_answer(child) for child in children]
        work = Work(sum(f["rows"] for f in found), sum(f["label"] for f in found),
                    tuple(sum(column) % 2**64 for column in zip(*(f["columns"] for f in found), strict=True)))  # fmt: skip
        _validate(self._table, work)
        return Turn(work.rows, max(f["seconds"] for f in found), sum(f["cpu_seconds"] for f in found))

    def _child(self, rank: int, ranks: int) -> subprocess.Popen[str]:
        if (rank, ranks) not in self._children:
            self._children[rank, ranks] = _start("rank", self._table.lake.storage.root, str(rank), str(ranks), str(BATCH))
        return self._children[rank, ranks]

    # A plan

    def plan(self, *, whole: bool) -> Turn:
        """From the manifest's files to what the first batch asks for, in a new process each time."""
        child = _start("plan", str(self._many_row_groups))
        found = _answer(child)
        child.communicate()
        assert found["row_groups"] == NUM_ROW_GROUPS, found
        return Turn(found["rows"], found["seconds"], found["cpu_seconds"], peak_mib=found["peak_mib"])

    # Steps of the demo's model

    def step_feed(self, *, whole: bool) -> Turn:
        """Steps on batches out of the feed, the wait for the first one counted."""
        with closing(self._flights_feed.epoch(next(self._epochs))) as batches:
            return self._steps(batches, whole)

    def step_memory(self, *, whole: bool) -> Turn:
        """The limit: the same steps on batches that are there before the first."""
        return self._steps(self._flights_batches, whole)

    def _steps(self, batches: Iterable[Batch], whole: bool) -> Turn:
        steps = 0

        def run(tally: Tally) -> None:
            nonlocal steps
            for batch in batches:
                self._step(batch, steps, 1e-3)
                steps += 1
                tally.add((batch.floats, batch.ids), batch.label)

        turn = _timed(self._flights, run, whole)
        return Turn(turn.rows, turn.seconds, turn.cpu_seconds, steps)

    @cached_property
    def _step(self) -> Step:
        section = {"name": "wide_and_deep"}
        model = build_model(section, ModelColumns.of(self._flights.manifest), seed=3)
        return Step(model, Optimizer(Training(), model.variables), World(), seed=3)

    # What they share

    @cached_property
    def _table(self) -> Table:
        return write_table(self._folder / "wide", wide(self._num_rows))

    @cached_property
    def _small_table(self) -> Table:
        return write_table(self._folder / "small", wide(FEW_ROWS))

    @cached_property
    def _flights(self) -> Table:
        return write_table(self._folder / "flights", flights(STEP_ROWS))

    @cached_property
    def _flights_batches(self) -> list[Batch]:
        return list(self._flights_feed.epoch(0))

    @cached_property
    def _flights_feed(self) -> Feed:
        return build_feed(self._flights.lake, self._flights.manifest, STEP_BATCH)

    @cached_property
    def _many_row_groups(self) -> Path:
        write_many_row_groups(self._folder / "many", NUM_ROW_GROUPS)
        return self._folder / "many"


def _timed(table: Table, run: Callable[[Tally], None], whole: bool) -> Turn:
    tally = Tally(whole=whole)
    seconds, cpu_seconds = time.perf_counter(), time.process_time()
    run(tally)
    seconds, cpu_seconds = time.perf_counter() - seconds, time.process_time() - cpu_seconds
    _validate(table, tally.work)
    return Turn(tally.work.rows, seconds, cpu_seconds)


def _validate(table: Table, work: Work) -> None:
    if not work.is_same(table.work):
        sys.exit(f"written were {table.work}, handed on {work}: nothing to compare")


def _start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.feed_child", *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    line = child.stdout.readline()  # type: ignore[union-attr]
    if not line:
        sys.exit(f"a process of benchmarks.feed_child ended with status {child.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found
