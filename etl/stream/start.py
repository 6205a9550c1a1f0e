"""Where a stream begins, and whether what it stands on is still there."""

from __future__ import annotations

from dataclasses import replace

from etl.sources.broker import Topic
from etl.stream.state import CHOICES, Place, State
from lakering.errors import IntegrityError, StageError

EARLIEST, LATEST, TABLE = "earliest", "latest", "table"


def begin(place: Place, topic: Topic, start: str | None, accept_gap: bool) -> State:
    """The state that a query starts with, written beside its checkpoint. ``start`` (table, earliest, latest) sets aside the
    checkpoint that is there; with ``accept_gap`` lost messages are recorded, and passed over, with ``latest`` all that were not
    read.

    Raises IntegrityError when there is no checkpoint though the query has written its table, when the checkpoint is another
    query's or broken, and when messages are lost; StageError for ``--from table`` without anything to go by."""
    if start is not None:
        return _anew(place, topic, start, accept_gap)
    state = place.read()
    if state is not None and state.discard:  # a start was killed here
        state = _discard(place, state)
    checkpoint_id = place.checkpoint_id()
    what, path = f"topic '{place.topic}' into table '{place.table}'", place.lake.storage.path(*place.checkpoint)
    missing = f"{what} was streamed before, and its checkpoint is missing ({path})"
    if state is None or (checkpoint_id is None and state.batch >= 0):
        if checkpoint_id is not None:
            raise IntegrityError(f"the checkpoint of {what} ({path}) has lost its record beside it", next_step=CHOICES)
        if state is not None or place.origins(None) or place.told() is not None:
            raise IntegrityError(missing, next_step=CHOICES)
        return _write(place, topic, topic.begin)
    if checkpoint_id is None and place.origins(state):
        raise IntegrityError(missing, next_step=CHOICES)
    if state.checkpoint_id is not None and checkpoint_id != state.checkpoint_id:
        raise IntegrityError(f"the checkpoint of {what} ({path}) is another query's: its id is {checkpoint_id}, not "
                             f"{state.checkpoint_id}", next_step=CHOICES)  # fmt: skip
    validate_table(place, state)
    place.validate_checkpoint(state.batch)
    noted = place.unfinished(state.starting)
    # Spark takes no batch (with --once) that knows less than all partitions, and none whose messages are gone, though it is in.
    # What is not told of it is read again.
    takes = not noted or noted.keys() == topic.begin.keys()
    takes = takes and all(topic.begin.get(p, first) <= first for p, first in place.recorded_again(state).items())
    if checkpoint_id is not None and takes and find_gap(state, topic, noted) is None:
        return state
    state = place.with_told(state)
    if (gap := find_gap(state, topic, noted)) is not None:
        return _write(place, topic, _over_gap(place, state, topic, gap, accept_gap), state)
    return _write(place, topic, {**topic.begin, **state.starting, **state.next}, state)


def validate_table(place: Place, state: State) -> None:
    """Raises IntegrityError when the table is not the one that the state tells of."""
    table = place.table_version()[0]
    if state.table_id is not None and state.table_id != table:
        raise IntegrityError(f"table '{place.table}' is not the one that topic '{place.topic}' was streamed into: its id is "
                             f"{table}, not {state.table_id}", next_step=CHOICES)  # fmt: skip


def find_gap(state: State, topic: Topic, noted: dict[int, int] | None = None) -> str | None:
    """What is lost of a topic since the state was written, in words; None when nothing is. More partitions are no loss. ``noted``
    are the ends of a batch that was begun, which Spark would take as it was."""
    known = {**state.starting, **state.next}
    if topic.id != state.topic_id:
        return (f"topic '{topic.name}' was deleted and created again: its id was {state.topic_id}, read to {_places(known)}, and "
                f"is {topic.id}, which holds {topic.num_messages:,} messages in {len(topic.end)} partitions; what the old one "
                "held behind those offsets is lost")  # fmt: skip
    if gone := {p: offset for p, offset in known.items() if p not in topic.end}:
        return (f"topic '{topic.name}' has {len(topic.end)} partitions, and had {state.partitions}; those that are gone were "
                f"read to {_places(gone)}, and what they held behind is lost")  # fmt: skip
    known, told = _with_added(state, topic), []
    if lost := {p: (offset, topic.begin[p]) for p, offset in known.items() if topic.begin[p] > offset}:
        told.append(f"no longer holds {_messages(lost)}")
    if back := {p: offset for p, offset in known.items() if topic.end[p] < offset}:
        each = ", ".join(f"partition {p} ends at {topic.end[p]}, and was read to {offset}" for p, offset in back.items())
        told.append(f"has lost messages that were read: {each}")
    ends = {p: (topic.end.get(p, 0), end) for p, end in (noted or {}).items() if p not in back}
    if cut := {p: (end, wanted) for p, (end, wanted) in ends.items() if end < wanted}:
        each = ", ".join(f"partition {p} ends at {end}, and was to be read to {wanted}" for p, (end, wanted) in cut.items())
        told.append(f"has lost messages of a batch that was begun: {each}")
    return f"topic '{topic.name}' {'; it '.join(told)}" if told else None


def _with_added(state: State, topic: Topic) -> dict[int, int]:
    """Of each partition the first offset that is not in. Partitions that were added since are to be read whole."""
    return {**{p: 0 for p in topic.begin if p >= state.partitions}, **state.starting, **state.next}


def _places(known: dict[int, int]) -> str:
    return ", ".join(f"offset {offset} of partition {p}" for p, offset in sorted(known.items())) or "no offset"


def _messages(ranges: dict[int, tuple[int, int]]) -> str:
    each = ", ".join(f"{end - first:,} of partition {p} (offsets {first} to {end - 1})" for p, (first, end) in ranges.items())
    return f"{sum(end - first for first, end in ranges.values()):,} messages that are not recorded as read: {each}"


def gap_error(gap: str) -> IntegrityError:
    return IntegrityError(gap, next_step="run with --accept-gap, which records the gap and goes on with what the topic holds")


def _over_gap(place: Place, state: State, topic: Topic, gap: str, accept_gap: bool) -> dict[int, int]:
    """Adds a row of the gap, if it is accepted, and returns where the stream goes on behind it."""
    if not accept_gap:
        raise gap_error(gap)
    same = topic.id == state.topic_id
    known = _with_added(state, topic) if same else {**state.starting, **state.next}
    # Of a topic that is another one, or that has lost its end, all is new; what is in the table is not written twice.
    starting = {p: max(first, known[p]) if same and first <= known.get(p, -1) <= topic.end[p] else first
                for p, first in topic.begin.items()}  # fmt: skip
    place.tell_gap(gap, state, {p: (offset, starting.get(p, offset) if same else offset) for p, offset in known.items()})
    return starting


def _anew(place: Place, topic: Topic, start: str, accept_gap: bool) -> State:
    found, noted = _found(place), _noted(place)
    if start == LATEST:
        _tell_passed(place, found, topic, noted)
        return _write(place, topic, topic.end)
    if found is None:
        if start == TABLE:
            raise StageError("--from table: neither a record, nor a batch that was told, nor the commits of table "
                             f"'{place.table}' tell of topic '{place.topic}'", next_step="run with --from earliest")  # fmt: skip
        return _write(place, topic, topic.begin)
    starting = {p: found.next.get(p, first) for p, first in topic.begin.items()}
    if (gap := find_gap(found, topic, noted)) is not None:
        starting = _over_gap(place, found, topic, gap, accept_gap)
    return _write(place, topic, topic.begin) if start == EARLIEST else _write(place, topic, starting, found)


def _noted(place: Place) -> dict[int, int]:
    """The ends of a batch that the checkpoint tells was begun, as far as it is whole and this query's."""
    try:
        return place.unfinished({})
    except IntegrityError:
        return {}


def _found(place: Place) -> State | None:
    """What the record, else the table of batches, and the table's newer commits tell of a topic; None when they tell nothing.

    Raises IntegrityError for a table of batches that cannot be read, where there is no record."""
    try:
        state = place.read()
    except IntegrityError:
        state = None  # it is broken
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
            known[int(partition)] = first if number == len(origins) else end
    if topic_id is None:
        return None
    found = State(place.topic, topic_id, max(known, default=-1) + 1, {}, known)
    return replace(found, totals=state.totals, watermark=state.watermark) if state else found


def _tell_passed(place: Place, found: State | None, topic: Topic, noted: dict[int, int]) -> None:
    """Adds a row of what ``--from latest`` leaves out, if that is anything; of a topic made anew also one of the old."""
    gap = find_gap(found, topic, noted) if found is not None else None
    if found is not None and topic.id != found.topic_id:
        place.tell_gap(str(gap), found, {p: (offset, offset) for p, offset in found.next.items()})
    if found is None or topic.id != found.topic_id:
        found, gap = State(topic.name, topic.id, len(topic.begin), topic.begin), None
    known = _with_added(found, topic)
    # Of a partition that lost its end all is new.
    firsts = {p: max(known.get(p, 0), first) if known.get(p, 0) <= topic.end[p] else first for p, first in topic.begin.items()}
    passed = {p: (firsts[p], end) for p, end in topic.end.items() if end > firsts[p]}
    told = [gap] if gap is not None else []
    if passed:
        told.append(f"--from latest passed over {_messages(passed)}")
    if told:
        place.tell_gap("; ".join(told), found, {p: (known.get(p, 0), end) for p, end in topic.end.items()})


def _write(place: Place, topic: Topic, starting: dict[int, int], before: State | None = None) -> State:
    """A new state with no checkpoint. A kill leaves the state that was, or the new one, with which the next start goes on."""
    table_id, version = place.table_version()
    state = State(topic.name, topic.id, len(topic.end), dict(starting), table_id=table_id, table_version=version)
    if before is not None:
        state = replace(state, totals=before.totals, watermark=before.watermark)
    place.write(replace(state, discard=True))
    return _discard(place, state)


def _discard(place: Place, state: State) -> State:
    place.lake.storage.delete(*place.checkpoint)
    state = replace(state, discard=False)
    place.write(state)
    return state
