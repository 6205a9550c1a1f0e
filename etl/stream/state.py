"""How far a topic is in its table: a record beside Spark's checkpoint, written after each micro-batch.

What a stream goes on by is one JSON file that is replaced. What it did is a small table with a row for each micro-batch.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from typing import Any
from uuid import uuid4

from etl.tables import append_progress, has_log, read_origins, read_progress, table_version
from lakering.errors import IntegrityError
from lakering.lake import Lake

STATE, CHECKPOINT, BATCHES = "state.json", "checkpoint", "batches"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """``next`` is of each partition the first offset that is not in; ``starting`` what the checkpoint began with. ``batch`` is
    the number of the checkpoint's last batch (-1: none), ``checkpoint_id`` Spark's id of it. ``table_version`` is the version
    up to which the table's commits are told here; -1 before there is a table. ``discard``: the checkpoint that is there is of a
    start before this one, and is to go."""

    topic: str
    topic_id: str
    partitions: int
    starting: dict[int, int]
    next: dict[int, int] = field(default_factory=dict)
    batch: int = -1
    checkpoint_id: str | None = None
    table_id: str | None = None
    table_version: int = -1
    totals: dict[str, int] = field(default_factory=dict)
    watermark: int | None = None
    discard: bool = False

    def after(self, offsets: dict[int, tuple[int, int]]) -> dict[int, int]:
        """``next`` once these ranges are in."""
        known = {**self.starting, **self.next}
        return known | {partition: max(end, known.get(partition, 0)) for partition, (_, end) in offsets.items()}

    def with_unchanged(self, offsets: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
        """These ranges, and empty ones of the partitions that are known besides."""
        return {**{partition: (offset, offset) for partition, offset in self.after({}).items()}, **offsets}


@dataclass(frozen=True)
class Place:
    """Where the state of one topic of one table lies."""

    lake: Lake
    table: str
    topic: str

    @property
    def folder(self) -> tuple[str, ...]:
        return self.lake.topic(self.table, self.topic)

    @property
    def checkpoint(self) -> tuple[str, ...]:
        return (*self.folder, CHECKPOINT)

    def read(self) -> State | None:
        """The record; None when there is none. Raises IntegrityError for one that is not whole."""
        storage = self.lake.storage
        if not storage.exists(*self.folder, STATE):
            return None
        try:
            found = json.loads(storage.read(*self.folder, STATE))
            offsets = {name: {int(p): int(o) for p, o in found[name].items()} for name in ("starting", "next")}
            return replace(State(**{**found, **offsets}))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise IntegrityError(f"{storage.path(*self.folder, STATE)} is not a stream's record: {error}",
                                 next_step=CHOICES) from None  # fmt: skip

    def write(self, state: State) -> None:
        self.lake.storage.write_json(asdict(state), *self.folder, STATE)

    def tell_batch(self, state: State, offsets: dict[int, tuple[int, int]], fates: dict[str, int]) -> None:
        """Adds the row of the state's last micro-batch, which took in these offsets; it names the other partitions too."""
        named = ("topic", "topic_id", "checkpoint_id", "batch", "table_id", "table_version", "watermark")
        row = {"offsets": _ranges(state.with_unchanged(offsets)), **{name: getattr(state, name) for name in named},
               **{f"rows_{name}": count for name, count in fates.items()}}  # fmt: skip
        append_progress(self.lake, (*self.folder, BATCHES), row, str(state.checkpoint_id), state.batch)

    def tell_gap(self, gap: str, state: State, offsets: dict[int, tuple[int, int]]) -> None:
        """Adds a row of messages that are not in the table, and that someone chose to go on without: ``offsets`` are of each
        partition of the topic that was read the first that was not in, and where the stream goes on. One that was told last, by
        a job that was killed then, is not told again."""
        row = {"topic": state.topic, "topic_id": state.topic_id, "table_id": self.table_version()[0], "offsets": _ranges(offsets),
               "gap": gap}  # fmt: skip
        last = takewhile(lambda told: told["gap"] is not None, reversed(self.progress()))
        if not any(all(told[name] == value for name, value in row.items()) for told in last):
            append_progress(self.lake, (*self.folder, BATCHES), row, uuid4().hex, 0)
        log.warning("going on without what follows: %s", gap)

    def progress(self) -> list[dict[str, Any]]:
        """What was told, in order."""
        return read_progress(self.lake, (*self.folder, BATCHES))

    def told(self) -> State | None:
        """What the rows that were told say of the topic that was read last; None when they say nothing. What another table held
        that was in this one's place, and what was passed over for it, is to be read again."""
        rows = _of_table(self.progress(), self.table_version()[0])
        if not rows:
            return None
        places = (place for row in rows if row["topic_id"] == rows[-1]["topic_id"] for place in row["offsets"])
        known = {place["partition"]: place["end"] for place in places}  # the last that was told: a stream may have gone back
        version = max((row["table_version"] for row in rows if row["table_version"] is not None), default=-1)
        return State(self.topic, rows[-1]["topic_id"], max(known, default=-1) + 1, {}, known, table_version=version)

    def with_told(self, state: State) -> State:
        """The state, and what the row of the checkpoint's next batch tells whose job died between that and the record."""
        checkpoint_id, tables = self.checkpoint_id(), (None, self.table_version()[0])
        for row in self.progress():
            is_next = row["gap"] is None and row["checkpoint_id"] == checkpoint_id and row["batch"] > state.batch
            if is_next and row["table_id"] in tables:
                offsets = {place["partition"]: (place["first"], place["end"]) for place in row["offsets"]}
                fates = {name.removeprefix("rows_"): count for name, count in row.items() if name.startswith("rows_")}
                totals = {name: count + state.totals.get(name, 0) for name, count in fates.items()}
                watermark = round(row["watermark"].timestamp() * 1e6) if row["watermark"] is not None else None
                state = replace(state, next=state.after(offsets), totals=totals, watermark=watermark)
        return state

    def checkpoint_id(self) -> str | None:
        """Spark's id of the query whose checkpoint this is; None without one. Raises IntegrityError for a file that is cut."""
        if not self.lake.storage.exists(*self.checkpoint, "metadata"):
            return None
        content = self.lake.storage.read(*self.checkpoint, "metadata")
        try:
            return str(json.loads(content)["id"])
        except (ValueError, KeyError, TypeError):
            raise self.broken("metadata") from None

    def validate_checkpoint(self, batch: int) -> None:
        """Raises IntegrityError when the last record of the checkpoint's logs is not whole, of another topic, or earlier than
        ``batch``."""
        for name in ("offsets", "commits"):
            last = self._last(name)
            # Of the last batch Spark's commit may be missing, when the job was killed before it.
            if last < batch - (name == "commits"):
                raise self.broken(name, str(batch))
            if last >= 0 and name == "offsets":
                self._ends(last)
            elif last >= 0:
                self._logged(name, last)

    def unfinished(self, starting: dict[int, int]) -> dict[int, int]:
        """Where the partitions end of the batch that Spark takes first, which it has noted already, or begin where it was told so
        for its first; empty when it plans the batch anew."""
        noted, finished = self._last("offsets"), self._last("commits")
        if noted < 0:
            return starting
        return self._ends(noted) if noted > finished else {}

    def recorded_again(self, state: State) -> dict[int, int]:
        """Where the partitions begin of a batch that is in the record and that Spark takes once more, since its job died before
        Spark's own note of it; empty without one."""
        noted = self._last("offsets")
        if noted > state.batch or noted <= self._last("commits"):
            return {}
        return {partition: first for partition, (first, _) in self.batch_offsets(noted, state.starting).items()}

    def _last(self, name: str) -> int:
        """The number of the last batch that a log of the checkpoint tells of; -1 without one."""
        storage = self.lake.storage
        numbers = storage.list(*self.checkpoint, name) if storage.exists(*self.checkpoint, name) else []
        return max((int(number) for number in numbers if number.isdigit()), default=-1)

    def batch_offsets(self, number: int, starting: dict[int, int]) -> dict[int, tuple[int, int]]:
        """What a micro-batch of the checkpoint takes in: of each partition the first offset and the one behind the last, as Spark
        noted them before it. Offsets that hold no message are among them: a transaction leaves some behind its messages.

        Raises IntegrityError for a log that is not whole."""
        ends, before = self._ends(number), self._ends(number - 1) if number else starting
        # A partition that is new is read from its beginning.
        return {p: (before.get(p, 0), end) for p, end in sorted(ends.items()) if end > before.get(p, 0)}

    def _ends(self, number: int) -> dict[int, int]:
        found = json.loads(self._logged("offsets", number)[-1])
        if self.topic not in found:
            raise IntegrityError(f"the checkpoint {self.lake.storage.path(*self.checkpoint)} is another query's: it reads "
                                 f"{', '.join(found)}, not {self.topic}", next_step=CHOICES)  # fmt: skip
        return {int(partition): offset for partition, offset in found[self.topic].items()}

    def _logged(self, name: str, number: int) -> list[str]:
        """The lines of a record of Spark's logs, less its version."""
        content = self.lake.storage.read(*self.checkpoint, name, str(number))
        first, *others = content.decode("utf-8", "replace").splitlines() or [""]
        try:
            whole = first == "v1" and bool(others) and all(line == "-" or json.loads(line) for line in others)
        except ValueError:
            whole = False
        if not whole:
            raise self.broken(name, str(number))
        return others

    def broken(self, *parts: str) -> IntegrityError:
        return IntegrityError(f"{self.lake.storage.path(*self.checkpoint, *parts)} is not whole: the checkpoint of topic "
                              f"'{self.topic}' is broken", next_step=CHOICES)  # fmt: skip

    def origins(self, state: State | None) -> list[dict[str, Any]]:
        """What the table's commits tell of this topic, those after the state's; without a state, all that the log tells."""
        found = read_origins(self.lake, self.table, state.table_version if state and state.table_version >= 0 else None)
        return [origin for origin in found if origin.get("topic") == self.topic]

    def table_version(self) -> tuple[str | None, int]:
        if not has_log(self.lake, self.lake.table(self.table)):
            return None, -1
        return table_version(self.lake, self.table)


def _of_table(rows: list[dict[str, Any]], table_id: str | None) -> list[dict[str, Any]]:
    """Of what was told the rows that still count where this table is now; None where there is none."""
    following, tables = None, []
    for row in reversed(rows):
        following = row["table_id"] or following
        # What was passed over was so for the table that followed.
        tables.append(following if row["gap"] is not None else row["table_id"])
    counted: list[dict[str, Any]] = []
    for number, (row, table) in enumerate(zip(rows, reversed(tables), strict=True)):
        # A batch that was read while there was no table is in none, but may stand behind messages that are to be read again.
        if table == table_id if table is not None else (row["gap"] is not None or len(counted) == number):
            counted.append(row)
    return counted


def _ranges(offsets: dict[int, tuple[int, int]]) -> list[dict[str, int]]:
    return [{"partition": partition, "first": first, "end": end} for partition, (first, end) in sorted(offsets.items())]


CHOICES = ("run with --from table (behind what the table and its record tell), --from earliest (the whole topic again; what is "
           "there already is not written twice) or --from latest (only what comes from now on)")  # fmt: skip
