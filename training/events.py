"""A training's figures as TensorBoard reads them, without its writers: a step costs nothing until its log is written.

Event files lie beside the log of steps, one for each of its segments and in the same order, so that a run that was killed and
resumed shows every step once. TensorFlow's own writers append to one file, which an object store cannot.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

FOLDER = "tensorboard"
_PREFIX, _SUFFIX = "events.out.tfevents.", ".lakering"


class Scalars(NamedTuple):
    """Figures by their tags, of one step; ``time`` is in seconds since 1970."""

    time: float
    step: int
    values: dict[str, float]


def file_name(first_step: int) -> str:
    """TensorBoard reads a folder's event files in the order of their names."""
    return f"{_PREFIX}{first_step:010d}{_SUFFIX}"


def first_step_of(name: str) -> int:
    return int(name.removeprefix(_PREFIX).removesuffix(_SUFFIX))


def of_step(line: dict[str, Any]) -> Scalars:
    """What is shown of a line of the log of steps."""
    values = {name: line[name] for name in ("loss", "learning_rate", "gradient_norm", "rows_per_second")}
    return Scalars(line["time"], line["global_step"], {f"train/{name}": value for name, value in values.items()})


def of_epoch(time: float, global_step: int, figures: dict[str, Any]) -> Scalars:
    """An epoch's validation figures, as ``validation_NAME``, at its last step."""
    values = {name.removeprefix("validation_"): value for name, value in figures.items() if name.startswith("validation_")}
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return Scalars(time, global_step, {f"validation/{name}": float(value) for name, value in numbers.items()})


def event_file(scalars: Iterable[Scalars]) -> bytes:
    """An event file: TFRecords of ``tensorflow.Event`` messages, the first of which names the format's version."""
    event, summary = tf.compat.v1.Event, tf.compat.v1.Summary
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "events")
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(event(file_version="brain.Event:2").SerializeToString())
            for at in scalars:
                shown = [summary.Value(tag=tag, simple_value=value) for tag, value in at.values.items()]
                found = event(wall_time=at.time, step=at.step, summary=summary(value=shown))
                writer.write(found.SerializeToString())
        return path.read_bytes()
