"""Where the time of a training's steps goes, on this rank and over all ranks, in a fixed amount of memory."""

from __future__ import annotations

import json
import math
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import tensorflow as tf

from training.distributed import World

T = TypeVar("T")
#: Bounds of the histogram's buckets: 1 microsecond, and each so many times the one before, up to 11 hours.
SHORTEST, FACTOR, BUCKETS = 1e-6, 1.05, 500
#: A rank is named as the slowest when its own work takes so many times that of the others.
UNEVEN = 1.05


def timed(before: Any, work: Callable[[], T]) -> tuple[T, tf.Tensor]:
    """What the work of all ranks returns, and the seconds it took (float64, waiting for slower ranks included), inside a
    ``tf.function``.

    From when this rank has all tensors of ``before`` to when it has all of the result. On a GPU the first moment is when the
    last kernel was started, not when it was done: the seconds then include what was left of the gradients' computation."""
    with tf.control_dependencies(tf.nest.flatten(before, expand_composites=True)):
        start = tf.timestamp()
    with tf.control_dependencies([start]):
        found = work()
    with tf.control_dependencies(tf.nest.flatten(found, expand_composites=True)):
        return found, tf.timestamp() - start


@dataclass
class StepTimes:
    """Sums over the steps of one rank, in seconds; ``rows`` are global ones. A step is from asking for its batch to its
    result: waiting for the ``input``, the ``allreduce`` with its waiting for others, and the rest, ``compute``. ``seconds``
    are the loop's from its first step to its last one's end, with what it does between them; ``paused`` is the longest
    time between two steps (a checkpoint), ``validated`` the time of the validation split."""

    steps: int = 0
    rows: int = 0
    input: float = 0.0
    compute: float = 0.0
    allreduce: float = 0.0
    seconds: float = 0.0
    paused: float = 0.0
    validated: float = 0.0
    shortest: float = math.inf
    longest: float = 0.0
    last: float = 0.0
    last_allreduce: float = 0.0
    last_input: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    _asked: float = 0.0
    _begun: float = 0.0
    _ended: float | None = None

    def ask(self) -> None:
        """The loop asks for a batch."""
        self._asked = time.perf_counter()
        if self._ended is not None and self._asked - self._ended > self.paused:
            self.paused = self._asked - self._ended

    def begin(self) -> None:
        """It has the batch."""
        self._begun = time.perf_counter()

    def end(self, rows: int, allreduce: float) -> None:
        """Its step is done. ``allreduce``, in seconds, comes from another clock, which may have been set meanwhile."""
        self._ended = now = time.perf_counter()
        allreduce = min(max(allreduce, 0.0), now - self._begun)
        self.steps += 1
        self.rows += rows
        self.last, self.last_input, self.last_allreduce = now - self._asked, self._begun - self._asked, allreduce
        self.input += self.last_input
        self.allreduce += allreduce
        self.compute += now - self._begun - allreduce
        self._count(self.last)

    def _count(self, seconds: float) -> None:
        self.shortest, self.longest = min(self.shortest, seconds), max(self.longest, seconds)
        bucket = int(math.log(max(seconds, SHORTEST) / SHORTEST) / math.log(FACTOR))
        self.counts[min(bucket, BUCKETS - 1)] += 1

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Around what keeps the loop from its next step, such as an epoch's last checkpoint."""
        started = time.perf_counter()
        yield
        self.paused = max(self.paused, time.perf_counter() - started)

    @contextmanager
    def validating(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.validated += time.perf_counter() - started

    def add(self, other: StepTimes) -> None:
        """Takes up another's steps, such as an epoch's."""
        for name in ("steps", "rows", "input", "compute", "allreduce", "seconds", "validated"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.paused = max(self.paused, other.paused)
        self.shortest, self.longest = min(self.shortest, other.shortest), max(self.longest, other.longest)
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]

    def quantile(self, share: float) -> float:
        """Seconds that a ``share`` of the steps did not exceed, to 2.5%."""
        seen, wanted = 0, math.ceil(share * self.steps)
        for bucket, count in enumerate(self.counts):
            seen += count
            if seen >= wanted > 0:
                middle = SHORTEST * FACTOR ** (bucket + 0.5)
                return min(max(middle, self.shortest), self.longest)
        return 0.0


@dataclass(frozen=True)
class RankTimes:
    """A rank's sums of seconds, as all ranks learn them."""

    host: str
    input: float
    compute: float
    allreduce: float

    @property
    def own(self) -> float:
        """Its own work: the allreduce of a fast rank is mostly waiting for a slow one."""
        return self.input + self.compute


def gather_times(world: World, times: StepTimes) -> list[RankTimes]:
    """Every rank's sums, in the order of ranks; called on every rank."""
    mine = RankTimes(socket.gethostname(), times.input, times.compute, times.allreduce)
    return [RankTimes(**json.loads(text)) for text in world.gather(json.dumps(asdict(mine)), "step times")]


def slowest_rank(ranks: Sequence[RankTimes]) -> str:
    """The rank whose own work takes longest, and the part of it by which it falls behind; measured against the median of the
    other ranks."""
    if len(ranks) == 1:
        return "one rank"
    slowest = max(range(len(ranks)), key=lambda rank: ranks[rank].own)
    others = [rank for i, rank in enumerate(ranks) if i != slowest]
    if ranks[slowest].own <= UNEVEN * statistics.median(rank.own for rank in others):
        return "ranks even"
    found = ranks[slowest]
    medians = {part: statistics.median(getattr(rank, part) for rank in others) for part in ("input", "compute")}
    lags = {part: getattr(found, part) - median for part, median in medians.items()}
    part = max(lags, key=lambda name: lags[name])
    # A wait of next to nothing has no telling ratio.
    if medians[part] > 0.01 * found.own:
        ratio = f"{getattr(found, part) / medians[part]:.2g}x the others' median"
    else:
        ratio = f"{lags[part] / found.own:.0%} of its work, of the others' next to none"
    return f"rank {slowest} on {found.host} ({part} {ratio})"


def time_facts(world: World, times: StepTimes) -> dict[str, Any]:
    """What summaries, records and logs tell of steps: milliseconds, rows a second of all ranks, pauses in seconds. Called
    on every rank.

    ``allreduce`` is the least of all ranks, since the rank that comes last waits for none; the other ranks' waiting, on
    an average, is ``waiting_for_others``. What neither of them explains is told as ``between_steps``: logs, checkpoints."""
    ranks = gather_times(world, times)
    steps, seconds = max(times.steps, 1), max(times.seconds, 1e-9)

    def mean(part: str) -> float:
        return statistics.fmean(getattr(rank, part) for rank in ranks)

    parts = {"input": mean("input"), "compute": mean("compute")}
    if world.size > 1:
        least = min(rank.allreduce for rank in ranks)
        parts |= {"allreduce": least, "waiting_for_others": mean("allreduce") - least}
    parts["between_steps"] = max(times.seconds - times.input - times.compute - times.allreduce, 0.0)
    whole = times.input + times.compute + times.allreduce
    facts: dict[str, Any] = {
        "rows_per_second": times.rows / seconds, "rows_per_second_per_rank": times.rows / seconds / world.size,
        "milliseconds_per_step": {name: 1e3 * value / steps for name, value in parts.items()},
        "step_milliseconds": {"min": 1e3 * times.shortest if times.steps else 0.0, "mean": 1e3 * whole / steps,
                              "p95": 1e3 * times.quantile(0.95), "max": 1e3 * times.longest},
        "longest_pause_seconds": times.paused, "validation_seconds": times.validated}  # fmt: skip
    return facts if world.size == 1 else {**facts, "slowest": slowest_rank(ranks)}
