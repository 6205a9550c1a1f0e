"""Where a stream begins, and whether what it stands on is still there."""

from __future__ import annotations

from dataclasses import replace

from etl.sources.broker import Topic
from etl.stream.state import CHOICES, Place, State
from lakering.errors import IntegrityError, StageError

EARLIEST, LATEST, TABLE = "earliest", "latest", "table"


def begin(place: Place, topic: Topic, start: str | None, accept_gap: bool) -> State:
    """The state that a query starts with, written beside its checkpoint. ``start`` (table, earliest, latest) sets aside the
    checkpoint that is there; with ``accept_gap`` lost messages are recorded, and passed over.

    Raises IntegrityError when there is no checkpoint though the query has written its table, when the checkpoint is another
    query's or broken, and when messages are lost; StageError for ``--from table`` without anything to go by."""
    if start is not None:
        return _anew(place, topic, start, accept_gap)
    state, checkpoint_id = place.read(), place.checkpoint_id()
    what = f"topic '{place.topic}' into table '{place.table}'"
    if state is None or (checkpoint_id is None and state.batch >= 0):
        if checkpoint_id is not None:
            raise IntegrityError(f"the checkpoint of {what} has lost its record beside it", next_step=CHOICES)
        if state is not None or place.origins(None):
            raise IntegrityError(f"{what} was streamed before, and its checkpoint is missing", next_step=CHOICES)
        return _write(place, topic, topic.begin)
    if checkpoint_id is None and place.origins(state):
        raise IntegrityError(f"{what} was streamed before, and its checkpoint is missing", next_step=CHOICES)
    if state.checkpoint_id is not None and checkpoint_id != state.checkpoint_id:
        raise IntegrityError(f"the checkpoint of {what} is another query's: its id is {checkpoint_id}, not "
                             f"{state.checkpoint_id}", next_step=CHOICES)  # fmt: skip
    table = place.table_version()[0]
    if state.table_id is not None and state.table_id != table:
        raise IntegrityError(f"table '{place.table}' is not the one that topic '{place.topic}' was streamed into: its id is "
                             f"{table}, not {state.table_id}", next_step=CHOICES)  # fmt: skip
    place.validate_checkpoint(state.batch)
    gap = find_gap(state, topic)
    if gap is None and checkpoint_id is None:
        return _write(place, topic, {**topic.begin, **state.starting}, state)
    if gap is None:
        return state
    return _over_gap(place, state, topic, gap, accept_gap)


def find_gap(state: State, topic: Topic) -> str | None:
    """What is lost of a topic since the state was written, in words; None when nothing is. More partitions are no loss."""
    known = {**state.starting, **state.next}
    read = sum(known[p] - state.starting.get(p, 0) for p in known)
    known = {**{p: 0 for p in topic.begin if p >= state.partitions}, **known}  # those that were added are read whole
    if topic.id != state.topic_id:
        return (f"topic '{topic.name}' was deleted and created again: its id was {state.topic_id}, of which {read:,} messages "
                f"in {state.partitions} partitions were read, and is {topic.id}, which holds {topic.num_messages:,} in "
                f"{len(topic.end)}; what the old one held behind those is lost")  # fmt: skip
    if len(topic.end) < state.partitions:
        return f"topic '{topic.name}' has {len(topic.end)} partitions, and had {state.partitions}"
    lost = {p: topic.begin[p] - offset for p, offset in known.items() if topic.begin[p] > offset}
    if lost:
        each = ", ".join(f"{count:,} of partition {p} (offsets {known[p]} to {topic.begin[p] - 1})" for p, count in lost.items())
        return f"topic '{topic.name}' no longer holds {sum(lost.values()):,} messages that were not read: {each}"
    back = {p: offset for p, offset in known.items() if topic.end[p] < offset}
    if back:
        each = ", ".join(f"partition {p} ends at {topic.end[p]}, and was read to {offset}" for p, offset in back.items())
        return f"topic '{topic.name}' has lost messages that were read: {each}"
    return None


def gap_error(gap: str) -> IntegrityError:
    return IntegrityError(gap, next_step="run with --accept-gap, which records the gap and goes on with what the topic holds")


def _over_gap(place: Place, state: State, topic: Topic, gap: str, accept_gap: bool) -> State:
    if not accept_gap:
        raise gap_error(gap)
    known = {**state.starting, **state.next}
    same = topic.id == state.topic_id
    # Of a topic that is another one, or that has lost its end, all is new; what is in the table is not written twice.
    starting = {p: max(first, known[p]) if same and first <= known.get(p, -1) <= topic.end[p] else first
                for p, first in topic.begin.items()}  # fmt: skip
    place.tell_gap(gap, state, {p: (offset, starting.get(p, offset) if same else offset) for p, offset in known.items()})
    return _write(place, topic, starting, state)


def _anew(place: Place, topic: Topic, start: str, accept_gap: bool) -> State:
    if start != TABLE:
        return _write(place, topic, topic.begin if start == EARLIEST else topic.end)
    try:
        state = place.read()
    except IntegrityError:
        state = None  # it is broken, and the table of batches and the table's commits tell
    if state is not None and state.table_id is not None and state.table_id != place.table_version()[0]:
        state = None  # what it tells of is another table
    state = state or place.told()
    known = {**state.starting, **state.next} if state else {}
    topic_id = state.topic_id if state else None
    origins = place.origins(state)
    for number, origin in enumerate(origins, start=1):
        if origin["topic_id"] != topic_id:
            topic_id, known = origin["topic_id"], {}
        for partition, (first, end) in origin["offsets"].items():
            # The last batch is read again: its job may have died before what it refused was in quarantine.
            known[int(partition)] = first if number == len(origins) else max(end, known.get(int(partition), 0))
    if topic_id is None:
        raise StageError("--from table: neither a record, nor a batch that was told, nor the commits of table "
                         f"'{place.table}' tell of topic '{place.topic}'", next_step="run with --from earliest")  # fmt: skip
    found = State(topic.name, topic_id, max(known, default=-1) + 1, {}, known)
    gap = find_gap(found, topic)
    if gap is not None:
        return _over_gap(place, found, topic, gap, accept_gap)
    return _write(place, topic, {p: known.get(p, first) for p, first in topic.begin.items()}, state)


def _write(place: Place, topic: Topic, starting: dict[int, int], before: State | None = None) -> State:
    """A new state with no checkpoint. The old checkpoint goes first: killed in between, the choice is asked for again."""
    place.lake.storage.delete(*place.checkpoint)
    table_id, version = place.table_version()
    state = State(topic.name, topic.id, len(topic.end), dict(starting), table_id=table_id, table_version=version)
    if before is not None:
        state = replace(state, totals=before.totals, watermark=before.watermark)
    place.write(state)
    return state
