"""What every step did, as JSON lines in the run's folder, and for TensorBoard (``training.events``).

Lines are written in segments, each just before the checkpoint that completes it, so that a run which was killed and
resumed has every step once: ``steps/0000000000.jsonl`` holds the steps from global step 0 to the next segment's.
"""

from __future__ import annotations

import json
import math
import threading
import time
from typing import Any

from lakering.lake import Lake
from training import events

FOLDER = "steps"


class StepLog:
    """Collects lines; ``flush`` writes those since the last flush as one segment. One rank alone writes; it may add lines
    while its other threads flush those before."""

    def __init__(self, lake: Lake, run: tuple[str, ...], global_step: int, *, tensorboard: bool = False) -> None:
        self._lake, self._run, self._tensorboard = lake, run, tensorboard
        self._first = global_step
        self._lines: list[dict[str, Any]] = []
        self._epochs: list[events.Scalars] = []
        self._flushing = threading.Lock()

    def drop_after(self) -> None:
        """Removes what a killed run wrote beyond the checkpoint that is resumed."""
        for name in self._lake.storage.list(*self._run, FOLDER):
            number = name.removesuffix(".jsonl")
            if not number.isdigit() or int(number) >= self._first:  # no number: it was half-written
                self._lake.storage.delete(*self._run, FOLDER, name)
        for name in self._lake.storage.list(*self._run, events.FOLDER):
            if events.first_step_of(name) >= self._first:
                self._lake.storage.delete(*self._run, events.FOLDER, name)

    def add(self, facts: dict[str, Any]) -> None:
        self._lines.append(facts)

    def add_epoch(self, global_step: int, figures: dict[str, Any]) -> None:
        """An epoch's validation figures; ``global_step`` is its last one."""
        self._epochs.append(events.of_epoch(time.time(), global_step, figures))

    def flush(self, before: int | None = None) -> None:
        """Writes the lines of all steps, or of those before a global step. They are kept until they are written."""
        with self._flushing:
            self._flush(before)

    def _flush(self, before: int | None) -> None:
        lines = self._lines[: None if before is None else max(before - self._first, 0)]
        if not lines:
            return
        text = "".join(json.dumps(plain(line)) + "\n" for line in lines)
        self._lake.storage.write(text.encode(), *self._run, FOLDER, f"{self._first:010d}.jsonl")
        if self._tensorboard:
            epochs = list(self._epochs)
            content = events.event_file([*map(events.of_step, lines), *epochs])
            self._lake.storage.write(content, *self._run, events.FOLDER, events.file_name(self._first))
            del self._epochs[: len(epochs)]
        self._first += len(lines)
        del self._lines[: len(lines)]


def read_steps(lake: Lake, run: tuple[str, ...]) -> list[dict[str, Any]]:
    """All logged steps of a run, in order."""
    lines: list[dict[str, Any]] = []
    for name in lake.storage.list(*run, FOLDER):
        if not name.removesuffix(".jsonl").isdigit():
            continue
        lines += [json.loads(line) for line in lake.storage.read(*run, FOLDER, name).decode().splitlines()]
    return lines


def plain(value: Any) -> Any:
    """The value as JSON can hold it: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
